"""What has come of a sweep's jobs, by the files that they leave."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from omegaconf import DictConfig, OmegaConf

from fewstep.artifacts.run_folder import CONFIG, MODEL, QUALITY, REPORT, differences, rung_file, settings_in
from fewstep.runs.cycle import CYCLE
from fewstep.sweeps.parents import Step

WAITING, FINISHED, DONE, FAILED, HELD_BACK = "waiting", "finished before", "done", "failed", "held back"


@dataclass(frozen=True)
class Objective:
    """The one figure by which jobs are compared: that of the student of `steps` steps, over `w` or at one of them.

    Attributes:
        figure: a column of quality.json; less is better of fid, kid and errors, more of the others.
        w: null is the mean over the grid's weights.
    """

    figure: str = "fid"
    steps: int = 4
    w: float | None = None

    def __str__(self) -> str:
        where = "mean over w" if self.w is None else f"w = {self.w:g}"
        return f"{self.figure.upper()}, {self.steps} steps, {where}"

    @property
    def less_is_better(self) -> bool:
        return self.figure in ("fid", "kid", "same_noise_rmse", "exact_rmse")

    def of(self, folder: Path) -> float | None:
        """The figure of a run; None where its quality.json has no such row."""
        file = folder / QUALITY
        rows = json.loads(file.read_text()) if file.is_file() else []
        values = [
            row[self.figure]
            for row in rows
            if row["model"] == "progressive"
            and row["steps"] == self.steps
            and (self.w is None or row["w"] == self.w)
            and row.get(self.figure) is not None
        ]
        return mean(values) if values else None


@dataclass
class JobState:
    """One line of a sweep's table."""

    step: Step
    folder: Path
    products: list[str]
    state: str = WAITING
    words: str = ""
    figure: float | None = None

    def missing(self) -> str | None:
        """The first of its products that is not there."""
        return next((name for name in self.products if not (self.folder / name).is_file()), None)


def folder_of(config: DictConfig, step: Step) -> Path:
    """The run folder in which a step's product will lie."""
    return Path(config.outputs, config.dataset.name, step.until or config.stage.name, step.job.name)


def is_done(config: DictConfig, step: Step) -> bool:
    """Whether all that the step makes is there, of the settings that it has now.

    A run of other settings is not: its process says in what it differs.
    """
    folder = folder_of(config, step)
    if not all((folder / product).is_file() for product in products_of(config, step)):
        return False
    if step.until is not None:  # its name is a digest of its settings
        return True
    now = OmegaConf.to_container(config, resolve=True)
    assert isinstance(now, dict)
    return not differences(settings_in(folder), {str(key): value for key, value in now.items()})


def products_of(config: DictConfig, step: Step) -> list[str]:
    """The files of a finished run, and its settings."""
    stage = config.stage
    match step.until or stage.name:
        case "teacher" | "guidance":
            products = [MODEL]
        case "progressive" | "encoder":
            products = [*(rung_file(steps) for steps in stage.ladder[1:]), *([CYCLE] * (stage.name == "encoder"))]
        case _:
            products = [QUALITY, REPORT]
    return [CONFIG, *products]
