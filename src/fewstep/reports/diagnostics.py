"""The diagnostics section of report.html: alarms, gaps, step errors, sample statistics and gradients of a run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from fewstep.diagnostics.file import FILE, drift, read_diagnostics
from fewstep.reports.charts import Line, shades, student_lines
from fewstep.tracking.names import SAMPLE_STATISTICS, span

Record = Mapping[str, Any]
Points = Iterable[tuple[float, float | None]]
"""(x, value, None where it is not known)."""


@dataclass(frozen=True)
class Seen:
    """The diagnostics of one training run.

    Attributes:
        alarms: the first message of each kind and rung.
        charts: (title, chart) of gaps, step errors and drifts.
        colour: of each rung, in the charts.
        samples, data: statistics at the last record of each rung, and of the data.
        gradients: (part of the network or role, its gradient's norm at the last record of each rung).
    """

    stage: str
    alarms: list[str]
    charts: list[tuple[str, Markup]]
    colour: dict[int | None, str]
    samples: list["SampleRow"]
    data: list[float | None]
    gradients: list[tuple[str, list[float | None]]]


class SampleRow(NamedTuple):
    """(student's, teacher's) of each of SAMPLE_STATISTICS at one rung, over all w or in one bin."""

    rung: int | None
    w: str | None
    pairs: list[tuple[float | None, float | None]]


def seen(folder: Path, stage: str, colour: str) -> Seen | None:
    """The diagnostics of the run in `folder`, drawn in `colour`; None where there are none that can be read."""
    records = read_diagnostics(folder / FILE)
    try:
        rungs = list(dict.fromkeys(record["rung"] for record in records))
        if not rungs:
            return None
        colour_of = shades(rungs, colour)
        by_rung = {rung: [record for record in records if record["rung"] == rung] for rung in rungs}
        last = {rung: own[-1] for rung, own in by_rung.items()}
        data = records[-1]["data"] or {}
        return Seen(
            stage=stage,
            alarms=first_alarms(records),
            charts=charts(by_rung, colour_of),
            colour=colour_of,
            samples=samples(last),
            data=[data.get(name) for name in SAMPLE_STATISTICS],
            gradients=gradients(last),
        )
    except (KeyError, TypeError, ValueError):  # another program's file of this name
        return None


def first_alarms(records: Iterable[Record]) -> list[str]:
    """The first message of each kind of alarm and rung."""
    found: dict[tuple[Any, str], str] = {}
    for record in records:
        for alarm in record["alarms"]:
            found.setdefault((record["rung"], alarm["kind"]), alarm["says"])
    return list(found.values())


class Panel(NamedTuple):
    """A chart's title, the labels of its axes, and the points of a rung's line from the rung's records."""

    title: str
    x: str
    y: str
    points: Callable[[Sequence[Record]], Points]


def gap_over_images(records: Sequence[Record]) -> Points:
    return [(record["images"], record["gap"]) for record in records]


def gap_by(axis: str, records: Sequence[Record]) -> Points:
    return [((bin["low"] + bin["high"]) / 2, bin["gap"]) for bin in records[-1][f"gap_by_{axis}"]]


def step_errors(records: Sequence[Record]) -> Points:
    return [(step["t"], step["error"]) for step in records[-1]["step_errors"]]


def drift_over_images(name: str, records: Sequence[Record]) -> Points:
    return [(record["images"], drift(record, name)) for record in records]


PANELS = (
    Panel("gap over training", "images seen", "gap", gap_over_images),
    *(Panel(f"gap by {axis}, at the end", axis, "gap", partial(gap_by, axis)) for axis in ("t", "w")),
    Panel("one step on its own path", "t", "error", step_errors),
    *(
        Panel(f"drift of {name}", "images seen", "drift", partial(drift_over_images, name))
        for name in ("contrast", "saturation", "diversity")
    ),
)


def charts(by_rung: Mapping[Any, Sequence[Record]], colour: Mapping[Any, str]) -> list[tuple[str, Markup]]:
    """(title, chart) of each panel of which any value is known, a line per rung; drifts alone are not logarithmic."""
    found = []
    for title, x, y, points in PANELS:
        lines = []
        for rung, records in by_rung.items():
            known = [(at, value) for at, value in points(records) if value is not None]
            if known:
                lines.append(Line(rung, [at for at, _ in known], [value for _, value in known]))
        if lines:
            found.append((title, student_lines(lines, colour, x, y, log=y != "drift")))
    return found


def samples(last: Mapping[Any, Record]) -> list[SampleRow]:
    """Student and teacher of each rung, over all w and by bins of w."""
    found = []
    for rung, record in last.items():
        if record["samples"] is None:
            continue
        teacher = record["teacher_samples"]
        found.append(SampleRow(rung, None, pairs_of(record["samples"], teacher)))
        for number, bin in enumerate(record["samples_by_w"]):
            teacher_bin = None if teacher is None else record["teacher_samples_by_w"][number]
            found.append(SampleRow(rung, span(bin["low"], bin["high"]), pairs_of(bin, teacher_bin)))
    return found


def pairs_of(student: Record, teacher: Record | None) -> list[tuple[float | None, float | None]]:
    """(student's, teacher's) of each statistic."""
    return [(student[name], None if teacher is None else teacher[name]) for name in SAMPLE_STATISTICS]


def gradients(last: Mapping[Any, Record]) -> list[tuple[str, list[float | None]]]:
    """(part of the network or role, its gradient's norm at the last record of each rung)."""
    norms = [
        (record["gradient_norm"] or {})
        | {f"{role}, as a whole": norm for role, norm in (record.get("gradient_norm_by_role") or {}).items()}
        for record in last.values()
    ]
    return [(part, [own.get(part) for own in norms]) for part in dict.fromkeys(part for own in norms for part in own)]
