"""The diagnostics section of report.html: alarms, gaps, step errors, sample statistics and gradients of a run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from fewstep.diagnostics.file import FILE, drift, read_diagnostics
from fewstep.reports.charts import IMAGES_SEEN, line_chart, shades
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
        by_rung: dict[int | None, list[Record]] = {}
        for record in records:
            by_rung.setdefault(record["rung"], []).append(record)
        if not by_rung:
            return None
        colour_of = shades([*by_rung], colour)
        last = [own[-1] for own in by_rung.values()]
        data = records[-1]["data"] or {}
        return Seen(
            stage=stage,
            alarms=first_alarms(records),
            charts=charts(by_rung, colour_of),
            colour=colour_of,
            samples=[row for record in last for row in sample_rows(record)],
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


def over_images(value: Callable[[Record], float | None], records: Sequence[Record]) -> Points:
    return [(record["images"], value(record)) for record in records]


def gap_by(axis: str, records: Sequence[Record]) -> Points:
    return [((bin["low"] + bin["high"]) / 2, bin["gap"]) for bin in records[-1][f"gap_by_{axis}"]]


def step_errors(records: Sequence[Record]) -> Points:
    return [(step["t"], step["error"]) for step in records[-1]["step_errors"]]


def critic_accuracy(record: Record) -> float | None:
    """Of the first critic, where there is one; 1/2 where it cannot tell samples from real ones."""
    return next((own["accuracy"] for own in record.get("critics", {}).values()), None)


# Title, labels of the axes, and the points of a rung's line from the rung's records.
PANELS: tuple[tuple[str, str, str, Callable[[Sequence[Record]], Points]], ...] = (
    ("gap over training", IMAGES_SEEN, "gap", partial(over_images, lambda record: record["gap"])),
    ("gap by t, at the end", "t", "gap", partial(gap_by, "t")),
    ("gap by w, at the end", "w", "gap", partial(gap_by, "w")),
    ("one step on its own path", "t", "error", step_errors),
    ("accuracy of the critic", IMAGES_SEEN, "accuracy", partial(over_images, critic_accuracy)),
    *(
        (f"drift of {name}", IMAGES_SEEN, "drift", partial(over_images, partial(drift, name=name)))
        for name in ("contrast", "saturation", "diversity")
    ),
)


def charts(
    by_rung: Mapping[int | None, Sequence[Record]], colour: Mapping[int | None, str]
) -> list[tuple[str, Markup]]:
    """(title, chart) of each panel of which any value is known, a line per rung; drifts and shares not logarithmic."""
    found = []
    for title, x, y, points in PANELS:
        lines = {}
        for rung, records in by_rung.items():
            if known := [(at, value) for at, value in points(records) if value is not None]:
                lines[rung] = known
        if lines:
            found.append((title, line_chart(lines, colour, x, y, log=y not in ("drift", "accuracy"))))
    return found


def sample_rows(record: Record) -> Iterable[SampleRow]:
    """Student and teacher over all w and by bins of w; nothing where a record has no samples."""
    if record["samples"] is None:
        return
    has_teacher = record["teacher_samples"] is not None
    yield SampleRow(record["rung"], None, pairs_of(record["samples"], record["teacher_samples"]))
    for number, bin in enumerate(record["samples_by_w"]):
        teacher = record["teacher_samples_by_w"][number] if has_teacher else None
        yield SampleRow(record["rung"], span(bin["low"], bin["high"]), pairs_of(bin, teacher))


def pairs_of(student: Record, teacher: Record | None) -> list[tuple[float | None, float | None]]:
    """(student's, teacher's) of each statistic."""
    return [(student[name], None if teacher is None else teacher[name]) for name in SAMPLE_STATISTICS]


def gradients(records: Iterable[Record]) -> list[tuple[str, list[float | None]]]:
    """(part of the network or role, its gradient's norm in each record)."""
    norms = [
        (record["gradient_norm"] or {})
        | {f"{role}, as a whole": norm for role, norm in (record.get("gradient_norm_by_role") or {}).items()}
        | {f"{role}, over the student's": ratio for role, ratio in record.get("gradient_ratio", {}).items()}
        for record in records
    ]
    return [(part, [own.get(part) for own in norms]) for part in dict.fromkeys(part for own in norms for part in own)]
