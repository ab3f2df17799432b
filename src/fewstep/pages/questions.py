"""What a view answers to each question, as lines for charts: is it training, which w, which steps, what did it cost."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from statistics import mean
from typing import Any

from fewstep.pages.runs import LADDERS, Run, View
from fewstep.reports.summary import TEACHER, Row
from fewstep.tracking.names import IMAGES, RUNG, SAMPLE_STATISTICS

STUDENT = "progressive"
LESS_IS_BETTER = ("fid", "kid", "same_noise_rmse", "exact_rmse")
FIGURES = {
    "fid": "FID",
    "inception_score": "inception score",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "class accuracy",
    "diversity": "diversity",
    "same_noise_rmse": "same-noise RMSE",
    "exact_rmse": "exact RMSE",
    "kid": "KID",
    "clip_score": "CLIP score",
}


@dataclass(frozen=True)
class Line:
    """One line of a chart, or points of it: `reference` is what the others are compared with."""

    label: str
    x: Sequence[float | str]
    y: Sequence[float]
    reference: bool = False


Lines = Sequence[Line]


def over_images(view: View, stage: str, column: str) -> Lines:
    """A column of metrics.csv over the images seen: a line for each job, or for each rung of the one ladder."""
    lines = []
    for run in view.of(stage):
        rows = [row for row in run.metrics if column in row]
        by_rung = groupby(rows, key=lambda row: None if view.is_sweep else row.get(RUNG))
        for rung, own in by_rung:
            points = list(own)
            label = view.name_of(run) if rung is None else steps_of(rung)
            lines.append(Line(label, [row[IMAGES] for row in points], [row[column] for row in points]))
    return [line for line in lines if line.x]


def gap_over_images(view: View) -> Lines:
    """How far students are from their targets on the fixed probe batch, over training; 0 is a perfect student."""
    return looked_at(view, lambda look: look["gap"])


def drift(view: View, statistic: str) -> Lines:
    """A statistic of the samples less that of the teacher's from the same noise, or of the data's, over training."""

    def of(look: Mapping[str, Any]) -> float | None:
        wanted = look["teacher_samples"] or look["data"]
        if not look["samples"] or look["samples"][statistic] is None or not wanted or wanted[statistic] is None:
            return None
        return look["samples"][statistic] - wanted[statistic]

    assert statistic in SAMPLE_STATISTICS
    return looked_at(view, of)


def looked_at(view: View, of: Callable[[Mapping[str, Any]], float | None]) -> Lines:
    """A number of each look over the images of its stage, a line for each stage and rung, or each run of a sweep."""
    lines = []
    for run in view.runs:
        for rung, own in groupby(run.looks, key=lambda look: None if view.is_sweep else look["rung"]):
            points = [(look["images"], value) for look in own if (value := of(look)) is not None]
            if points:
                start = 0 if view.is_sweep else points[0][0]  # rungs beside each other, all from their own start
                label = f"{run.stage}, {run.name}" if view.is_sweep else run.stage if rung is None else steps_of(rung)
                lines.append(Line(label, [images - start for images, _ in points], [value for _, value in points]))
    return lines


def by_bin(view: View, axis: str) -> Lines:
    """The gap of the newest look by bins of t or of w."""
    lines = []
    for label, look in newest_looks(view):
        if bins := look[f"gap_by_{axis}"]:
            lines.append(Line(label, [(b["low"] + b["high"]) / 2 for b in bins], [b["gap"] for b in bins]))
    return lines


def step_errors(view: View) -> Lines:
    """Error of one student step at each time of its grid, in the newest look of each rung."""
    return [
        Line(label, [step["t"] for step in look["step_errors"]], [step["error"] for step in look["step_errors"]])
        for label, look in newest_looks(view)
        if look["step_errors"]
    ]


def newest_looks(view: View) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """(label, look) of the last look of each run, and in one experiment of each rung."""
    for run in view.runs:
        if run.stage in LADDERS and not view.is_sweep:
            for rung, own in groupby(run.looks, key=lambda look: look["rung"]):
                yield steps_of(rung), list(own)[-1]
        elif run.looks:
            yield (f"{run.stage}, {run.name}" if view.is_sweep else run.stage), run.looks[-1]


@dataclass(frozen=True)
class Chosen:
    """What the reader looks at: a figure of FIGURES, one w, and one number of steps."""

    figure: str = "fid"
    w: float = 1.0
    steps: int = 4


def over_w(view: View, rows: Sequence[tuple[Run, Row]], chosen: Chosen) -> Lines:
    """The figure over w: of the teacher at its most steps and each student, or of each job's of `chosen.steps`."""
    best = max((row.steps for _, row in rows if row.who == TEACHER), default=0)

    def label(run: Run, row: Row) -> str | None:
        if row.model == STUDENT and not view.is_sweep:
            return steps_of(row.steps)
        if row.model == STUDENT and row.steps == chosen.steps:
            return view.name_of(run)
        return TEACHER if not view.is_sweep and (row.who, row.steps) == (TEACHER, best) else None

    return curves(rows, chosen, label, lambda row: row.w)


def over_steps(view: View, rows: Sequence[tuple[Run, Row]], chosen: Chosen) -> Lines:
    """The figure over steps at one w, a line for each model and sampler, or in a sweep of each job's students."""
    return curves(at_w(rows, chosen.w), chosen, partial(who, view), lambda row: row.steps)


def over_evaluations(view: View, rows: Sequence[tuple[Run, Row]], chosen: Chosen) -> Lines:
    """The figure over network evaluations an image, at one w."""
    lines = curves(at_w(rows, chosen.w), chosen, partial(who, view), lambda row: row.nfe)
    return [replace(line, reference=False) for line in lines]


def at_w(rows: Sequence[tuple[Run, Row]], w: float) -> list[tuple[Run, Row]]:
    """The rows of one guidance weight."""
    return [(run, row) for run, row in rows if row.w == w]


def who(view: View, run: Run, row: Row) -> str | None:
    """The model and sampler, or in a sweep the job, whose students alone are shown."""
    if not view.is_sweep:
        return row.who
    return view.name_of(run) if row.model == STUDENT else None


def curves(
    rows: Sequence[tuple[Run, Row]],
    chosen: Chosen,
    label: Callable[[Run, Row], str | None],
    x: Callable[[Row], float],
) -> Lines:
    """Rows as lines of the chosen figure over `x`, apart by `label`; those without one are left out."""
    groups: dict[str, dict[float, float]] = {}
    for run, row in rows:
        value = getattr(row, chosen.figure)
        if value is not None and (name := label(run, row)) is not None:
            groups.setdefault(name, {})[x(row)] = value
    return [
        Line(name, sorted(points), [points[at] for at in sorted(points)], name == TEACHER)
        for name, points in groups.items()
    ]


def front(lines: Lines, less_is_better: bool) -> Line:
    """The Pareto front: the points that no other point beats with as many evaluations or fewer."""
    points = sorted((x, y if less_is_better else -y) for line in lines for x, y in zip(line.x, line.y, strict=True))
    kept: list[tuple[Any, float]] = []
    for x, y in points:
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return Line("Pareto front", [x for x, _ in kept], [y if less_is_better else -y for _, y in kept], reference=True)


def over_setting(view: View, rows: Sequence[tuple[Run, Row]], key: str, chosen: Chosen) -> Lines:
    """A sweep's figure over the values of one swept key: the mean of the jobs of each value, and every job."""
    jobs: dict[str, list[float]] = {}
    for run, row in rows:
        value = getattr(row, chosen.figure)
        wanted = row.model == STUDENT and row.steps == chosen.steps and row.w == chosen.w
        if wanted and value is not None and key in view.swept.get(run.name, {}):
            jobs.setdefault(str(view.swept[run.name][key]), []).append(value)
    order = sorted(jobs, key=as_sorted)
    every = [(value, figure) for value in order for figure in jobs[value]]
    return [
        Line("mean", order, [mean(jobs[value]) for value in order]),
        Line("jobs", [value for value, _ in every], [figure for _, figure in every], reference=True),
    ]


def as_sorted(value: str) -> tuple[int, float, str]:
    """Numbers by size, then words by name."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value


def steps_of(steps: float | None) -> str:
    """1 step, 2 steps."""
    return f"{steps or 0:g} step{'' if steps == 1 else 's'}"
