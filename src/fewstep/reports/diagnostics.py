"""What report.html shows of diagnostics.jsonl: alarms, and where the students of each run are from their teachers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from fewstep.diagnostics.file import FILE, read_diagnostics
from fewstep.reports.charts import Line, shades, student_lines
from fewstep.tracking.names import SAMPLE_STATISTICS, span

Look = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """One training run as its looks saw it.

    Attributes:
        alarms: each kind once a rung, as it was said first.
        charts: (title, chart) of the gap and the step errors.
        colour: of each rung, in the charts.
        samples, data: statistics at the last look at each rung, and of the data.
        gradients: (part of the network, its gradient's norm at each rung).
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
    """The looks of the run in `folder`, drawn in `colour`; None without any that can be read."""
    try:
        looks = [look for look in read_diagnostics(folder / FILE) if look["gap"] is not None]
        rungs = list(dict.fromkeys(look["rung"] for look in looks))
        if not looks:
            return None
        own = shades(rungs, colour)
        last = {look["rung"]: look for look in looks}
        by_rung = [[look for look in looks if look["rung"] == rung] for rung in rungs]
        return Seen(
            stage=stage,
            alarms=said_first(looks),
            charts=[*charts(by_rung, last, own), *drifts(by_rung, own)],
            colour=own,
            samples=samples(last),
            data=[looks[-1]["data"][name] for name in SAMPLE_STATISTICS],
            gradients=gradients(last),
        )
    except (KeyError, TypeError, ValueError):  # another program's file of this name
        return None


def said_first(looks: Iterable[Look]) -> list[str]:
    """The alarms of each kind and rung where they were raised first."""
    found: dict[tuple[Any, str], str] = {}
    for look in looks:
        for alarm in look["alarms"]:
            found.setdefault((look["rung"], alarm["kind"]), alarm["says"])
    return list(found.values())


def charts(
    by_rung: Sequence[Sequence[Look]], last: Mapping[Any, Look], colour: Mapping[Any, str]
) -> list[tuple[str, Markup]]:
    """Gap over training, and at the last look at each rung by t and by w; error of single steps."""
    over = [Line(own[0]["rung"], [look["images"] for look in own], [look["gap"] for look in own]) for own in by_rung]
    found = [("gap over training", student_lines(over, colour, "images seen", "gap"))]
    for axis in ("t", "w"):
        lines = [
            Line(rung, [middle(bin) for bin in look[f"gap_by_{axis}"]], [bin["gap"] for bin in look[f"gap_by_{axis}"]])
            for rung, look in last.items()
            if look[f"gap_by_{axis}"]
        ]
        if lines:
            found.append((f"gap by {axis}, at the end", student_lines(lines, colour, axis, "gap")))
    lines = [
        Line(rung, [step["t"] for step in look["step_errors"]], [step["error"] for step in look["step_errors"]])
        for rung, look in last.items()
        if look["step_errors"]
    ]
    if lines:
        found.append(("one step on its own path", student_lines(lines, colour, "t", "error")))
    return found


def drifts(by_rung: Sequence[Sequence[Look]], colour: Mapping[Any, str]) -> list[tuple[str, Markup]]:
    """Samples less the teacher's from the same noise, or less the data, over training."""
    found = []
    for name in ("contrast", "saturation", "diversity"):
        pairs = [[(look["images"], drift(look, name)) for look in own] for own in by_rung]
        known = [[(x, y) for x, y in pair if y is not None] for pair in pairs]
        lines = [
            Line(own[0]["rung"], [x for x, _ in pair], [y for _, y in pair])
            for own, pair in zip(by_rung, known, strict=True)
            if pair
        ]
        if lines:
            found.append((f"drift of {name}", student_lines(lines, colour, "images seen", "drift", log=False)))
    return found


def drift(look: Look, name: str) -> float | None:
    """One statistic of the samples less the wanted one."""
    wanted = (look["teacher_samples"] or look["data"])[name]
    own = look["samples"] and look["samples"][name]
    return None if own is None or wanted is None else own - wanted


def samples(last: Mapping[Any, Look]) -> list[SampleRow]:
    """Student and teacher of each rung, as a whole and by bins of w."""
    found = []
    for rung, look in last.items():
        if look["samples"] is None:
            continue
        taught = look["teacher_samples"]
        found.append(SampleRow(rung, None, pairs_of(look["samples"], taught)))
        for number, bin in enumerate(look["samples_by_w"]):
            beside = None if taught is None else look["teacher_samples_by_w"][number]
            found.append(SampleRow(rung, span(bin["low"], bin["high"]), pairs_of(bin, beside)))
    return found


def pairs_of(own: Look, taught: Look | None) -> list[tuple[float | None, float | None]]:
    """(student's, teacher's) of each statistic."""
    return [(own[name], None if taught is None else taught[name]) for name in SAMPLE_STATISTICS]


def gradients(last: Mapping[Any, Look]) -> list[tuple[str, list[float | None]]]:
    """(part of the network, its gradient's norm at the last look at each rung)."""
    parts = dict.fromkeys(part for look in last.values() for part in look["gradient_norm"] or {})
    return [(part, [(look["gradient_norm"] or {}).get(part) for look in last.values()]) for part in parts]


def middle(bin: Mapping[str, float]) -> float:
    """Where a bin stands on its axis."""
    return (bin["low"] + bin["high"]) / 2
