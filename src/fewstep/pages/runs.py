"""The runs below outputs/, read again whenever their files change: what the dashboard shows."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fewstep.artifacts.run_folder import CONFIG, MODEL, QUALITY, rung_file
from fewstep.diagnostics.file import FILE as DIAGNOSTICS
from fewstep.diagnostics.file import read_diagnostics
from fewstep.reports.summary import Row, read_rows
from fewstep.tracking.metrics_file import FILE as METRICS
from fewstep.tracking.metrics_file import read_metrics
from fewstep.tracking.names import IMAGES, IMAGES_PER_SECOND

FINISHED, RUNNING, STOPPED = "finished", "running", "stopped"
SWEEPS, SWEEP = "sweeps", "sweep.yaml"  # as fewstep.sweeps.sweep has them, which imports all of training
LADDERS = ("progressive", "encoder")
TRAINED = ("teacher", "guidance", *LADDERS)  # in the order of a pipeline
QUIET = 2.5  # times trainer.checkpoint_seconds without a file written: then nothing runs there any more
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One run folder, as it was when it was read.

    Attributes:
        label: what tells it from the others of its view: the stage, or in a sweep the job.
        wrote: seconds since the epoch, of its newest file.
        quality: rows of its quality.json, if any; problem: why they cannot be read.
    """

    path: Path
    dataset: str
    stage: str
    name: str
    sweep: Path | None
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    looks: Sequence[Mapping[str, Any]]
    quality: Sequence[Row]
    problem: str
    wrote: float

    @property
    def products(self) -> list[Path]:
        """What it leaves when it is finished."""
        stage = self.config.get("stage", {})
        if self.stage in LADDERS:
            return [self.path / rung_file(steps) for steps in stage.get("ladder", [0])[1:]]
        return [self.path / (MODEL if self.stage in TRAINED else QUALITY)]

    def state(self, now: float | None = None) -> str:
        """FINISHED; or RUNNING, if it has written something lately; or STOPPED."""
        if all(product.is_file() for product in self.products):
            return FINISHED
        pause = float(self.config.get("trainer", {}).get("checkpoint_seconds", 120))
        return RUNNING if (time.time() if now is None else now) - self.wrote < QUIET * pause + 30 else STOPPED

    @property
    def images(self) -> float:
        """Seen so far."""
        return self.metrics[-1][IMAGES] if self.metrics else 0.0

    @property
    def budget(self) -> float:
        """Images that it will have seen in the end; 0 for an evaluation."""
        stage, most = self.config.get("stage", {}), self.config.get("trainer", {}).get("max_images")
        images = stage.get("training", {}).get("images", 0)
        factors = [1.0]
        if self.stage in LADDERS:
            few, factor = stage.get("few_steps", 0), stage.get("few_steps_factor", 1)
            factors = [factor if steps <= few else 1.0 for steps in stage.get("ladder", [0])[1:]]
        return sum(min(images * factor, most or images * factor) for factor in factors)

    @property
    def seconds(self) -> float:
        """Of training, by the rates that it logged; pauses between interruption and resumption are not counted."""
        before, total = 0.0, 0.0
        for row in self.metrics:
            if rate := row.get(IMAGES_PER_SECOND):
                total += (row[IMAGES] - before) / rate
            before = row[IMAGES]
        return total

    def newest(self, column: str) -> float | None:
        """The newest number in a column of its metrics."""
        return next((row[column] for row in reversed(self.metrics) if column in row), None)

    @property
    def alarms(self) -> list[str]:
        """What its diagnostics warn of, the newest last."""
        return [alarm["says"] for look in self.looks for alarm in look["alarms"]]


@dataclass(frozen=True)
class View:
    """Runs that are shown together: the stages of one experiment, or all jobs of a sweep.

    Attributes:
        swept: in a sweep, for each job what differs from the others, by key.
        objective: figure, steps and w by which a sweep's jobs are compared.
    """

    label: str
    runs: Sequence[Run]
    swept: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_sweep(self) -> bool:
        return bool(self.objective)

    def name_of(self, run: Run) -> str:
        """What its lines are called."""
        return run.name if self.is_sweep else run.stage

    def of(self, stage: str) -> list[Run]:
        """The runs of a stage."""
        return [run for run in self.runs if run.stage == stage]

    def judged(self) -> tuple[list[tuple[Run, Row]], int]:
        """The quality rows of the newest protocol, and how many runs were judged under another one."""
        judged = sorted((run for run in self.runs if run.quality), key=lambda run: run.wrote)
        if not judged:
            return [], 0
        protocol = judged[-1].quality[0].protocol
        same = [run for run in judged if run.quality[0].protocol == protocol]
        rows = [(run, row) for run in self.runs if run in same for row in run.quality]
        return rows, len(judged) - len(same)


class Outputs:
    """The runs and sweeps below a folder.

    Args:
        folder: as `outputs=` of train.py. A sweep's own folder is as good.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, tuple[tuple[int, int], Any]] = {}

    def views(self) -> list[View]:
        """Every experiment and sweep, the one that was written to last first."""
        views = [*self._experiments(self.folder)] if not (self.folder / SWEEP).is_file() else []
        folders = [self.folder] if (self.folder / SWEEP).is_file() else (self.folder / SWEEPS).glob("*/")
        views += [self._sweep(folder) for folder in folders if (folder / SWEEP).is_file()]
        return sorted((view for view in views if view.runs), key=lambda view: -max(run.wrote for run in view.runs))

    def _experiments(self, outputs: Path) -> Iterator[View]:
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in self._runs(outputs, None):
            groups.setdefault((run.dataset, run.name), []).append(run)
        for (dataset, name), runs in groups.items():
            yield View(f"{dataset}, {name}", sorted(runs, key=order))

    def _sweep(self, folder: Path) -> View:
        about = self._cached(folder / SWEEP, settings_of) or {}
        runs = sorted(self._runs(folder, folder), key=order)
        objective = about.get("objective") or {"figure": "fid", "steps": 4, "w": None}
        return View(f"sweep {folder.name}", runs, about.get("jobs") or {}, objective)

    def _runs(self, outputs: Path, sweep: Path | None) -> Iterator[Run]:
        for config in sorted(outputs.glob(f"*/*/*/{CONFIG}")):
            path = config.parent
            if path.parts[len(outputs.parts)] != SWEEPS:
                yield self._run(path, sweep)

    def _run(self, path: Path, sweep: Path | None) -> Run:
        config = self._cached(path / CONFIG, settings_of) or {}
        quality, problem = self._cached(path / QUALITY, quality_of) or ([], "")
        return Run(
            path=path,
            dataset=path.parent.parent.name,
            stage=path.parent.name,
            name=path.name,
            sweep=sweep,
            config=config,
            metrics=self._cached(path / METRICS, read_metrics) or [],
            looks=self._cached(path / DIAGNOSTICS, read_diagnostics) or [],
            quality=quality,
            problem=problem,
            wrote=max((file.stat().st_mtime for file in path.iterdir() if file.is_file()), default=0.0),
        )

    def _cached(self, file: Path, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of a file, read again when it has changed; None if it is not there or damaged."""
        try:
            stat = file.stat()
            signature = (stat.st_mtime_ns, stat.st_size)
            if self._read.get(file, (None,))[0] != signature:
                self._read[file] = signature, read(file)
            return self._read[file][1]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            return None


def settings_of(file: Path) -> dict[str, Any]:
    """A YAML file's mapping; nothing, where it is no mapping."""
    found = yaml.safe_load(file.read_text())
    return found if isinstance(found, dict) else {}


def quality_of(file: Path) -> tuple[list[Row], str]:
    """The rows of a quality.json, or why it has none."""
    try:
        return read_rows(file), ""
    except ValueError as error:
        return [], str(error)


def order(run: Run) -> tuple[int, str]:
    """By stage, in the order of a pipeline."""
    return TRAINED.index(run.stage) if run.stage in TRAINED else len(TRAINED), run.name
