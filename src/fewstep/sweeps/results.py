"""A sweep's figures: the jobs of one setting together over their seeds, best first, and what is worth its cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from fewstep.artifacts.quality_file import QualityRow, read_rows
from fewstep.artifacts.run_folder import QUALITY
from fewstep.sweeps.status import FIGURES, Objective, mean_figure
from fewstep.sweeps.sweep import described

SEED = "seed"


class Cell(NamedTuple):
    """What the rows of one model, sampler and number of steps have in common, whatever their w."""

    model: str
    sampler: str
    steps: int
    nfe: int
    name: str
    is_few_step: bool

    @classmethod
    def of(cls, row: QualityRow) -> "Cell":
        return cls(row.model, row.sampler, row.steps, row.nfe, row.name, row.is_few_step)


@dataclass(frozen=True)
class Result:
    """One finished job: what differs, and the rows of its quality.json."""

    job: str
    values: Mapping[str, str]
    rows: Sequence[QualityRow]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; of one seed there is no deviation."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Of those that there are; None where there is none."""
        own = [value for value in values if value is not None]
        return cls(mean(own), stdev(own) if len(own) > 1 else None, len(own)) if own else None


@dataclass(frozen=True)
class Setting:
    """The jobs that differ in their seed alone."""

    values: Mapping[str, str]
    results: Sequence[Result]

    @property
    def name(self) -> str:
        return ", ".join(f"{key} = {value}" for key, value in self.values.items()) or "all jobs"

    @property
    def cells(self) -> list[Cell]:
        """Models, samplers and steps in the order of the tables."""
        return list(dict.fromkeys(Cell.of(row) for result in self.results for row in result.rows))

    def spread(self, cell: Cell, figure: str = "fid", w: float | None = None) -> Spread | None:
        """A figure over the seeds, at one w or as mean over w; None where no job has it."""
        rows = ([row for row in result.rows if Cell.of(row) == cell] for result in self.results)
        return Spread.of(mean_figure(own, figure, w) for own in rows)

    def objective(self, objective: Objective) -> Spread | None:
        """The figure by which settings are compared, over the seeds."""
        return Spread.of(objective.of(result.rows) for result in self.results)


@dataclass(frozen=True)
class Collected:
    """A sweep's settings, best first, and the jobs that have no figures yet."""

    folder: Path
    objective: Objective
    protocol: str
    settings: Sequence[Setting]
    missing: Sequence[str]

    @property
    def keys(self) -> list[str]:
        """What differs, the seed aside."""
        return list(dict.fromkeys(key for setting in self.settings for key in setting.values))

    @property
    def weights(self) -> list[float]:
        return sorted({row.w for setting in self.settings for result in setting.results for row in result.rows})


@dataclass(frozen=True)
class Point:
    """A model in the plane of quality against cost."""

    setting: Setting
    cell: Cell
    fid: Spread


def collected(folder: Path, objective: Objective | None = None) -> Collected:
    """Read what a sweep has so far.

    Args:
        objective: None is the sweep's own.

    Raises:
        ValueError: it is no sweep's folder, nothing is finished, or its jobs were not judged alike.
    """
    about = described(folder)
    objective = objective or Objective(**about["objective"])
    results, missing = [], []
    for job, values in about["jobs"].items():
        files = sorted(folder.glob(f"*/*/{job}/{QUALITY}"))
        if files:
            results.append(Result(job, values, read_rows(files[0])))
        else:
            missing.append(job)
    if not results:
        raise ValueError(f"no job of {folder} has figures yet; the sweep's own line goes on with it")
    require_one_protocol(folder, results)

    def key(setting: Setting) -> tuple[bool, float]:
        spread = setting.objective(objective)
        return (spread is None, objective.sign * (spread.mean if spread else 0.0))

    return Collected(folder, objective, results[0].rows[0].protocol, sorted(grouped(results), key=key), missing)


def require_one_protocol(folder: Path, results: Sequence[Result]) -> None:
    """Refuse figures that share no table.

    Raises:
        ValueError: the jobs were judged in several ways, or at different w.
    """
    protocols: dict[str, list[str]] = {}
    for result in results:
        protocols.setdefault(result.rows[0].protocol, []).append(result.job)
    if len(protocols) > 1:
        ways = "; ".join(f"{protocol}: {jobs[0]} and {len(jobs) - 1} more" for protocol, jobs in protocols.items())
        raise ValueError(
            f"the jobs of {folder} were judged in {len(protocols)} ways, which share no table ({ways}); sweep "
            "over one data set and one stage.evaluate at a time"
        )
    weights = {frozenset(row.w for row in result.rows) for result in results}
    if len(weights) > 1:
        ways = " and ".join(str(sorted(own)) for own in sorted(weights, key=sorted)[:2])
        raise ValueError(
            f"the jobs of {folder} were judged at different w ({ways}), whose means share no table; sweep over one "
            "stage.evaluate at a time"
        )


def grouped(results: Iterable[Result]) -> list[Setting]:
    """The results by all that differs but the seed."""
    found: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        own = tuple((key, value) for key, value in result.values.items() if key != SEED)
        found.setdefault(own, []).append(result)
    return [Setting(dict(values), each) for values, each in found.items()]


def points(sweep: Collected) -> list[Point]:
    """Every model, sampler and number of steps of every setting, by its mean FID over w."""
    return [
        Point(setting, cell, spread)
        for setting in sweep.settings
        for cell in setting.cells
        if (spread := setting.spread(cell)) is not None
    ]


def pareto(candidates: Iterable[Point]) -> list[Point]:
    """Those that no other beats in both FID and evaluations, fewest evaluations first."""
    front: list[Point] = []
    for point in sorted(candidates, key=lambda point: (point.cell.nfe, point.fid.mean)):
        if not front or point.fid.mean < front[-1].fid.mean:
            front.append(point)
    return front


def table(sweep: Collected) -> list[dict[str, Any]]:
    """One row for each setting, model, sampler, steps and w, and one of the mean over w; best setting first."""
    rows = []
    for rank, setting in enumerate(sweep.settings, start=1):
        for cell, w in product(setting.cells, (None, *sweep.weights)):
            spreads = {figure: setting.spread(cell, figure, w) for figure in FIGURES}
            if not (seeds := max((spread.count for spread in spreads.values() if spread), default=0)):
                continue
            row: dict[str, Any] = {"rank": rank, **{key: setting.values.get(key, "") for key in sweep.keys}}
            row |= {"model": cell.model, "sampler": cell.sampler, "steps": cell.steps, "nfe": cell.nfe}
            row |= {"w": "mean" if w is None else w, "seeds": seeds}
            for figure, spread in spreads.items():
                row |= {figure: spread and spread.mean, f"{figure}_std": spread and spread.std}
            rows.append(row | {"protocol": sweep.protocol})
    return rows
