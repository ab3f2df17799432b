"""What has come of a sweep's jobs, by the files that they leave."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from fewstep.artifacts.quality_file import QualityRow, read_rows
from fewstep.artifacts.run_folder import CONFIG, PRODUCTS, QUALITY, differences, products_of, settings_in
from fewstep.runs.config import Settings
from fewstep.sweeps.jobs import Job
from fewstep.sweeps.shared import folder_of

WAITING, FINISHED, DONE, FAILED, SKIPPED = "waiting", "finished before", "done", "failed", "skipped"
FIGURES = (
    *("fid", "inception_score", "precision", "recall", "accuracy", "diversity", "vendi", "kid", "clip_score"),
    *("exact_rmse", "energy_distance"),
)
LESS_IS_BETTER = ("fid", "kid", "same_noise_rmse", "exact_rmse", "energy_distance")


@dataclass(frozen=True)
class Objective:
    """The one figure by which jobs are compared: that of the student of `steps` steps, over `w` or at one of them.

    Attributes:
        figure: a column of quality.json; less is better of distances and errors, more of the others.
        w: null is the mean over the grid's weights.

    Raises:
        ValueError: no such column.
    """

    figure: str = "fid"
    steps: int = 4
    w: float | None = None

    def __post_init__(self) -> None:
        if self.figure not in (*FIGURES, "same_noise_rmse"):
            raise ValueError(f"the figure of an objective must be one of {', '.join(FIGURES)}, got {self.figure}")

    def __str__(self) -> str:
        where = "mean over w" if self.w is None else f"w = {self.w:g}"
        return f"{self.figure.upper()}, {self.steps} steps, {where}"

    @property
    def less_is_better(self) -> bool:
        return self.figure in LESS_IS_BETTER

    @property
    def sign(self) -> int:
        """Times a figure: of two jobs, the smaller one is better."""
        return 1 if self.less_is_better else -1

    def of(self, rows: Iterable[QualityRow]) -> float | None:
        """The figure of a job; None where its rows have none of such a student."""
        students = [row for row in rows if row.is_few_step and row.name == row.model and row.steps == self.steps]
        return mean_figure([row for row in students if row.model == students[0].model], self.figure, self.w)


def mean_figure(rows: Iterable[QualityRow], figure: str, w: float | None) -> float | None:
    """A figure at one w, or its mean over all; None where no row has it."""
    values = [getattr(row, figure) for row in rows if w is None or row.w == w]
    known = [value for value in values if value is not None]
    return mean(known) if known else None


@dataclass
class JobState:
    """One row of a sweep's table."""

    job: Job
    folder: Path
    state: str = WAITING
    message: str = ""
    figure: float | None = None

    @classmethod
    def of(cls, job: Job, settings: Settings, objective: Objective) -> "JobState":
        """How a job stands before anything is launched."""
        state = cls(job, folder_of(job, settings))
        if state.missing() is not None:
            return state
        # A shared training's name is a digest of its settings; a job of other settings says itself in what they differ.
        if job.stages or not differences(settings_in(state.folder), settings.values):
            state.state, state.figure = FINISHED, state.read_figure(objective)
        return state

    def missing(self) -> str | None:
        """The first file of a finished run that is not there."""
        files = (CONFIG, PRODUCTS, *products_of(self.folder))
        return next((name for name in files if not (self.folder / name).is_file()), None)

    def read_figure(self, objective: Objective) -> float | None:
        """The figure of its quality.json, if it has one."""
        file = self.folder / QUALITY
        return objective.of(read_rows(file)) if file.is_file() else None
