"""What report.html shows of diagnostics.jsonl: alarms, and where the students of each run are from their teachers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fewstep.tracking.charts import Line, shades, student_lines
from fewstep.tracking.diagnostics_file import FILE, read_diagnostics
from fewstep.tracking.names import SAMPLE_STATISTICS, span

Look = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """One training run as its looks saw it.

    Attributes:
        alarms: each kind once a rung, as it was said first.
        charts: (title, chart) of the gap and the step errors.
        colour: of each rung, in the charts.
        samples: rows (whose, rung, w, contrast, saturation, excess, diversity) of the last look at each rung.
    """

    stage: str
    alarms: list[str]
    charts: list[tuple[str, Markup]]
    colour: dict[int | None, str]
    samples: list[tuple[Any, ...]]


def seen(folder: Path, stage: str, colour: str) -> Seen | None:
    """The looks of the run in `folder`, drawn in `colour`; None without any that can be read."""
    try:
        looks = [look for look in read_diagnostics(folder / FILE) if look["gap"] is not None]
        rungs = list(dict.fromkeys(look["rung"] for look in looks))
        if not looks:
            return None
        own = shades(rungs, colour)
        last = {look["rung"]: look for look in looks}
        return Seen(stage, said_first(looks), charts(looks, last, own), own, samples(last))
    except (KeyError, TypeError, ValueError):  # another program's file of this name
        return None


def said_first(looks: Iterable[Look]) -> list[str]:
    """The alarms of each kind and rung where they were raised first."""
    found: dict[tuple[Any, str], str] = {}
    for look in looks:
        for alarm in look["alarms"]:
            found.setdefault((look["rung"], alarm["kind"]), alarm["says"])
    return list(found.values())


def charts(looks: Sequence[Look], last: Mapping[Any, Look], colour: Mapping[Any, str]) -> list[tuple[str, Markup]]:
    """Gap over training, and at the last look at each rung by t and by w; error of single steps."""
    by_rung = [[look for look in looks if look["rung"] == rung] for rung in last]
    over = [Line(own[0]["rung"], [look["images"] for look in own], [look["gap"] for look in own]) for own in by_rung]
    found = [("over training", student_lines(over, colour, "images seen", "gap"))]
    for axis in ("t", "w"):
        lines = [
            Line(rung, [middle(bin) for bin in look[f"gap_by_{axis}"]], [bin["gap"] for bin in look[f"gap_by_{axis}"]])
            for rung, look in last.items()
            if look[f"gap_by_{axis}"]
        ]
        if lines:
            found.append((f"by {axis}, at the end", student_lines(lines, colour, axis, "gap")))
    lines = [
        Line(rung, [step["t"] for step in look["step_errors"]], [step["error"] for step in look["step_errors"]])
        for rung, look in last.items()
        if look["step_errors"]
    ]
    if lines:
        found.append(("one step, on the student’s own path", student_lines(lines, colour, "t", "error")))
    return found


def samples(last: Mapping[Any, Look]) -> list[tuple[Any, ...]]:
    """Student and teacher of each rung as a whole and by bins of w, and the data."""
    found = []
    for rung, look in last.items():
        for who, key in (("student", "samples"), ("its teacher", "teacher_samples")):
            if look[key] is not None:
                found.append((who, rung, "all", *(look[key][name] for name in SAMPLE_STATISTICS)))
                found += [
                    (who, rung, span(bin["low"], bin["high"]), *(bin[name] for name in SAMPLE_STATISTICS))
                    for bin in look[f"{key}_by_w"]
                ]
    if found:
        data = next(iter(last.values()))["data"]
        found.append(("the data", None, "", *(data[name] for name in SAMPLE_STATISTICS)))
    return found


def middle(bin: Mapping[str, float]) -> float:
    """Where a bin stands on its axis."""
    return (bin["low"] + bin["high"]) / 2
