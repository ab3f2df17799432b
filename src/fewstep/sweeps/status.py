"""What has come of a sweep's jobs, by the files that they leave."""

from dataclasses import dataclass
from pathlib import Path

from fewstep.artifacts.quality_file import read_rows
from fewstep.artifacts.run_folder import CONFIG, PRODUCTS, QUALITY, has_settings, products_of
from fewstep.runs.config import Settings
from fewstep.sweeps.jobs import Job
from fewstep.sweeps.objective import Objective
from fewstep.sweeps.shared import folder_of
from fewstep.system.stored import leave_out

WAITING, FINISHED, DONE, FAILED, SKIPPED = "waiting", "finished before", "done", "failed", "skipped"


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
        try:
            if state.missing() is not None:
                return state
            # A shared training's name is a digest of its settings; a job of others says itself in what they differ.
            if job.stages or has_settings(state.folder, settings.values):
                state.state, state.figure = FINISHED, state.read_figure(objective)
        except ValueError as error:  # damaged: launched again, it says what to do
            leave_out(state.folder, error)
        return state

    def missing(self) -> str | None:
        """The first file of a finished run that is not there."""
        files = (CONFIG, PRODUCTS, *products_of(self.folder))
        return next((name for name in files if not (self.folder / name).is_file()), None)

    def read_figure(self, objective: Objective) -> float | None:
        """The figure of its quality.json, if it has one."""
        file = self.folder / QUALITY
        return objective.of(read_rows(file)) if file.is_file() else None
