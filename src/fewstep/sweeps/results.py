"""A sweep's figures: the jobs of one setting together over their seeds, best first, and what is worth its cost."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from scipy.special import stdtrit

from fewstep.artifacts.provenance_file import Provenance, read_provenance
from fewstep.artifacts.quality_file import TEACHER, QualityRow, read_rows
from fewstep.artifacts.run_folder import QUALITY
from fewstep.diffusion.guidance import Weight
from fewstep.sweeps.costs import Cost, ModelCost, cost_among, costs_in
from fewstep.sweeps.objective import FIGURES, Objective, mean_figure
from fewstep.sweeps.sweep import described
from fewstep.system.stored import leave_out

SEED = "seed"
Rows = Sequence[QualityRow]
"""The rows of one job's quality.json."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; of one seed there is no deviation.

    Attributes:
        interval: of the mean at 95 %: by Student's t over the seeds; of one seed that of its images, where it is known.
    """

    mean: float
    std: float | None
    count: int
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Over the values that are known; None where none is."""
        own = [value for value in values if value is not None]
        if len(own) < 2:
            return cls(own[0], None, 1) if own else None
        middle, deviation = mean(own), stdev(own)
        half = float(stdtrit(len(own) - 1, 0.975)) * deviation / len(own) ** 0.5
        return cls(middle, deviation, len(own), (middle - half, middle + half))


@dataclass(frozen=True)
class Setting:
    """The jobs that differ in their seed alone: the rows of each, and what its models cost."""

    values: Mapping[str, str]
    jobs: Sequence[Rows]
    costs: Sequence[Sequence[ModelCost]] = ()

    @property
    def name(self) -> str:
        return ", ".join(f"{key} = {value}" for key, value in self.values.items()) or "all jobs"

    @property
    def cells(self) -> list[QualityRow]:
        """One row for each model, sampler, steps and evaluations, in the order of the tables; their w differ."""
        return list({cell_of(row): row for rows in self.jobs for row in rows}.values())

    def spread(self, cell: QualityRow, figure: str = "fid", w: float | None = None) -> Spread | None:
        """A figure over the seeds, at one w or as mean over w; None where no job has it."""
        own = [[row for row in rows if cell_of(row) == cell_of(cell)] for rows in self.jobs]
        spread = Spread.of(mean_figure(rows, figure, w) for rows in own)
        if spread is None or spread.count > 1 or w is None:
            return spread
        rows = (row for rows in own for row in rows if row.w == w and getattr(row, figure) is not None)
        interval = next(rows).intervals.get(figure)
        return replace(spread, interval=(interval[0], interval[1])) if interval else spread

    def ratio(self, cell: QualityRow, w: float | None = None) -> Spread | None:
        """FID over the teacher's of the most steps in the same job, at one w or as mean over w."""
        return Spread.of(
            fid_ratio([row for row in rows if cell_of(row) == cell_of(cell)], references(rows), w) for rows in self.jobs
        )

    def cost(self, cell: QualityRow, name: str) -> float | None:
        """One of the fields of `Cost` of a cell's model, the mean over the seeds; None where it is not known."""
        found = (cost_among(costs, cell.model, cell.steps) for costs in self.costs)
        known = [value for cost in found if cost is not None and (value := getattr(cost, name)) is not None]
        return mean(known) if known else None

    def milliseconds(self, steps: int) -> float | None:
        """To sample an image, by the students of so many steps, where they were judged; the mean over w and seeds."""
        rates = [row.images_per_second for rows in self.jobs for row in rows if row.is_few_step and row.steps == steps]
        return mean(1000 / rate for rate in rates) if rates else None

    def objective(self, objective: Objective) -> Spread | None:
        """The figure by which settings are compared, over the seeds."""
        return Spread.of(objective.of(rows) for rows in self.jobs)


def references(rows: Rows) -> dict[Weight, float]:
    """For each w the FID of the teacher's most steps."""
    teacher = sorted((row for row in rows if row.name == TEACHER), key=lambda row: row.steps)
    return {row.weight: row.fid for row in teacher}


def fid_ratio(rows: Rows, reference: Mapping[Weight, float], w: float | None) -> float | None:
    """FID over the reference at one w, or the mean over all; None without one."""
    known = [row for row in rows if w in (None, row.w) and reference.get(row.weight, 0.0) > 0]
    ratios = [row.fid / reference[row.weight] for row in known]
    return mean(ratios) if ratios else None


def cell_of(row: QualityRow) -> tuple[str, str, int, int]:
    """What rows that differ in w alone have in common."""
    return row.model, row.sampler, row.steps, row.nfe


@dataclass(frozen=True)
class Collected:
    """A sweep's settings, best first, the jobs that have no figures yet, and where its figures come from."""

    folder: Path
    objective: Objective
    protocol: str
    settings: Sequence[Setting]
    missing: Sequence[str]
    origin: Mapping[str, Any]

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
    objective = objective or about.objective
    found = {job: result for job in about.jobs if (result := result_of(folder, job)) is not None}
    if not found:
        raise ValueError(f"no job of {folder} has figures yet; the sweep's own line goes on with it")
    results = {job: result.rows for job, result in found.items()}
    require_one_protocol(folder, {job: protocol_of(result.provenance) for job, result in found.items()}, results)
    by_values: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for job in results:
        own = tuple((key, value) for key, value in about.jobs[job].items() if key != SEED)
        by_values.setdefault(own, []).append(job)

    def key(setting: Setting) -> tuple[bool, float]:
        spread = setting.objective(objective)
        return (spread is None, objective.sign * (spread.mean if spread else 0.0))

    settings = [
        Setting(dict(values), [results[job] for job in jobs], [found[job].costs for job in jobs])
        for values, jobs in by_values.items()
    ]
    missing = [job for job in about.jobs if job not in results]
    protocols = sorted({rows[0].protocol for rows in results.values()})
    origin = origin_of([result.provenance for result in found.values()])
    return Collected(folder, objective, ", ".join(protocols), sorted(settings, key=key), missing, origin)


class JobResult(NamedTuple):
    """What a job has left."""

    rows: Rows
    provenance: Provenance | None
    costs: Sequence[ModelCost]


def result_of(folder: Path, job: str) -> JobResult | None:
    """What a job of the sweep in `folder` has left; None where it has no figures, or none that can be read."""
    file = min(folder.glob(f"*/*/{job}/{QUALITY}"), default=None)
    if file is None:
        return None
    try:
        return JobResult(read_rows(file), read_provenance(file.parent), costs_in(file.parent))
    except (ValueError, OSError) as error:
        leave_out(file.parent, error)
        return None


def origin_of(provenances: Iterable[Provenance | None]) -> dict[str, Any]:
    """Machines, versions and protocols of runs, each once."""
    found = [own for own in provenances if own is not None]
    once = {name: sorted({getattr(own, name) for own in found}) for name in ("device", "torch", "fewstep")}
    protocols = {own.protocol_id: own.protocol for own in found}
    return once | {"protocols": [*protocols.values()], "evaluated": max((own.created for own in found), default="")}


def protocol_of(provenance: Provenance | None) -> str | None:
    """A run's protocol but for the seed of the noise, as text; None where provenance.json does not say it."""
    if provenance is None or not provenance.protocol:
        return None
    own = {key: value for key, value in provenance.protocol.items() if key not in ("id", SEED)}
    return json.dumps(own, sort_keys=True)


def require_one_protocol(folder: Path, protocols: Mapping[str, str | None], results: Mapping[str, Rows]) -> None:
    """Refuse figures that share no table. Over seeds the noise may differ, with all else the same.

    Args:
        protocols: of each job, see `protocol_in`.

    Raises:
        ValueError: the jobs were judged in several ways, or at different w.
    """
    ways: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    ids: dict[str, str] = {}
    for job, rows in results.items():
        protocol = ids.setdefault(protocols[job] or rows[0].protocol, rows[0].protocol)
        ways.setdefault((protocol, tuple(sorted({row.w for row in rows}))), []).append(job)
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
            spreads = {figure: setting.spread(cell, figure, w) for figure in (*FIGURES, "same_noise_rmse")}
            if not (seeds := max((spread.count for spread in spreads.values() if spread), default=0)):
                continue
            row: dict[str, Any] = {"rank": rank, **{key: setting.values.get(key, "") for key in sweep.keys}}
            row |= {"model": cell.model, "sampler": cell.sampler, "steps": cell.steps, "nfe": cell.nfe}
            row |= {"w": "mean" if w is None else w, "seeds": seeds}
            for figure, spread in spreads.items():
                row |= {figure: spread and spread.mean, f"{figure}_std": spread and spread.std}
            for figure, spread in ({"fid_ratio": setting.ratio(cell, w)} | spreads).items():
                low, high = (spread and spread.interval) or (None, None)
                row |= {"fid_ratio": spread and spread.mean} if figure == "fid_ratio" else {}
                row |= {f"{figure}_low": low, f"{figure}_high": high}
            floor, rate = (setting.spread(cell, figure, w) for figure in ("energy_floor", "images_per_second"))
            row |= {"energy_floor": floor and floor.mean, "images_per_second": rate and rate.mean}
            row |= {f"training_{field.name}": setting.cost(cell, field.name) for field in fields(Cost)}
            table.append(row | {"protocol": sweep.protocol})
    return table
