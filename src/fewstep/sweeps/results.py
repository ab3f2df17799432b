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
Rows = Sequence[QualityRow]
"""The rows of one job's quality.json."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; of one seed there is no deviation."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Over the values that are known; None where none is."""
        own = [value for value in values if value is not None]
        return cls(mean(own), stdev(own) if len(own) > 1 else None, len(own)) if own else None


@dataclass(frozen=True)
class Setting:
    """The jobs that differ in their seed alone."""

    values: Mapping[str, str]
    jobs: Sequence[Rows]

    @property
    def name(self) -> str:
        return ", ".join(f"{key} = {value}" for key, value in self.values.items()) or "all jobs"

    @property
    def cells(self) -> list[QualityRow]:
        """One row for each model, sampler, steps and evaluations, in the order of the tables; their w differ."""
        return list({cell_of(row): row for rows in self.jobs for row in rows}.values())

    def spread(self, cell: QualityRow, figure: str = "fid", w: float | None = None) -> Spread | None:
        """A figure over the seeds, at one w or as mean over w; None where no job has it."""
        own = ([row for row in rows if cell_of(row) == cell_of(cell)] for rows in self.jobs)
        return Spread.of(mean_figure(rows, figure, w) for rows in own)

    def objective(self, objective: Objective) -> Spread | None:
        """The figure by which settings are compared, over the seeds."""
        return Spread.of(objective.of(rows) for rows in self.jobs)


def cell_of(row: QualityRow) -> tuple[str, str, int, int]:
    """What rows that differ in w alone have in common."""
    return row.model, row.sampler, row.steps, row.nfe


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


class Point(NamedTuple):
    """A model in the plane of quality against cost."""

    setting: Setting
    cell: QualityRow
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
    files = {job: min(folder.glob(f"*/*/{job}/{QUALITY}"), default=None) for job in about["jobs"]}
    results = {job: read_rows(file) for job, file in files.items() if file is not None}
    if not results:
        raise ValueError(f"no job of {folder} has figures yet; the sweep's own line goes on with it")
    require_one_protocol(folder, results)
    by_values: dict[tuple[tuple[str, str], ...], list[Rows]] = {}
    for job, rows in results.items():
        own = tuple((key, value) for key, value in about["jobs"][job].items() if key != SEED)
        by_values.setdefault(own, []).append(rows)

    def key(setting: Setting) -> tuple[bool, float]:
        spread = setting.objective(objective)
        return (spread is None, objective.sign * (spread.mean if spread else 0.0))

    settings = sorted((Setting(dict(values), jobs) for values, jobs in by_values.items()), key=key)
    missing = [job for job in files if job not in results]
    return Collected(folder, objective, settings[0].jobs[0][0].protocol, settings, missing)


def require_one_protocol(folder: Path, results: Mapping[str, Rows]) -> None:
    """Refuse figures that share no table.

    Raises:
        ValueError: the jobs were judged in several ways, or at different w.
    """
    ways: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    for job, rows in results.items():
        ways.setdefault((rows[0].protocol, tuple(sorted({row.w for row in rows}))), []).append(job)
    if len(ways) > 1:
        listed = "; ".join(
            f"{way[0]} at w = {[*way[1]]}: {jobs[0]} and {len(jobs) - 1} more" for way, jobs in ways.items()
        )
        raise ValueError(
            f"the jobs of {folder} were judged in {len(ways)} ways, by other protocols or at different w, which share "
            f"no table ({listed}); sweep over one data set and one stage.evaluate at a time"
        )


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
    table = []
    weights = sorted({row.w for setting in sweep.settings for rows in setting.jobs for row in rows})
    for rank, setting in enumerate(sweep.settings, start=1):
        for cell, w in product(setting.cells, (None, *weights)):
            spreads = {figure: setting.spread(cell, figure, w) for figure in FIGURES}
            if not (seeds := max((spread.count for spread in spreads.values() if spread), default=0)):
                continue
            row: dict[str, Any] = {"rank": rank, **{key: setting.values.get(key, "") for key in sweep.keys}}
            row |= {"model": cell.model, "sampler": cell.sampler, "steps": cell.steps, "nfe": cell.nfe}
            row |= {"w": "mean" if w is None else w, "seeds": seeds}
            for figure, spread in spreads.items():
                row |= {figure: spread and spread.mean, f"{figure}_std": spread and spread.std}
            table.append(row | {"protocol": sweep.protocol})
    return table
