"""The settings of a run as plain values, once: nothing below this room sees Hydra's configuration."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import DictConfig, OmegaConf

from fewstep.diffusion.schedule import CosineSchedule
from fewstep.runs.overrides import is_installed
from fewstep.system.limits import require_seed
from fewstep.system.stored import dump_yaml
from fewstep.system.validation import Count, Filled, build, checked, expected
from fewstep.training.settings import TrainerSettings

PIPELINE, EVALUATE = "pipeline", "evaluate"
EXACT, NO_TEACHER = "exact", "none"
FORCE = "force"
SEEDS = "seeds"
FOLDER_NAME = r"[\w.,=+-]*\w[\w.,=+-]*"
TOY_STEPS = 8
GROUPS = ("dataset", "model", "stage", "trainer", "schedule", "logger")
OF_A_MODEL = ("prediction", "network", "native_schedule", "smaller", "toy")
TOP: dict[str, Any] = {
    "seed": Count,
    "teacher": Filled | None,  # pyright: ignore[reportOperatorIssue]
    "outputs": Filled,
    "plan": bool,
    "budget": int | None,
    "zero_terminal_snr": bool,
    "samples": Filled | None,  # pyright: ignore[reportOperatorIssue]
    "resume": Literal["auto", "force"],
}


@dataclass(frozen=True)
class Settings:
    """The composed settings, checked at the top; a stage's own are checked when it is built.

    Attributes:
        values: all of them, plain. trainer, schedule: built of theirs.
    """

    values: dict[str, Any]
    trainer: TrainerSettings
    schedule: CosineSchedule

    @classmethod
    def read(cls, config: DictConfig) -> "Settings":
        """Resolve what Hydra composed.

        Raises:
            ValueError: a top-level value of another type, or a setting of the trainer or schedule that cannot be.
        """
        values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        check_top(values)
        settings = cls.of(values)
        return cls.of(as_toy(values)) if settings.trainer.toy else settings

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Settings":
        """Settings of plain values, resolved already."""
        schedule = {key: value for key, value in values["schedule"].items() if key != "_target_"}
        trainer = build(TrainerSettings, values["trainer"], "trainer")
        return cls(values, trainer, build(CosineSchedule, schedule, "schedule"))

    def with_values(self, changes: Mapping[str, Any]) -> "Settings":
        """The same settings with other top-level values."""
        return replace(self, values=copy.deepcopy(self.values) | dict(changes))

    def of_stage(self, stage: str, teacher: str | Path | None = None) -> "Settings":
        """The settings of one stage of a pipeline, with the seed that `stage.seeds` has for it.

        Raises:
            ValueError: the pipeline has no such stage.
        """
        if stage not in self.composed_stages:
            raise ValueError(
                f"stage.stages must be of the stages that are composed, {', '.join(self.composed_stages)}, got "
                f"{stage!r}; method={stage} composes one"
            )
        seed = self.seeds.get(stage, self.seed)
        teacher = None if teacher is None else str(teacher)
        return self.with_values({"stage": copy.deepcopy(self.stage[stage]), "teacher": teacher, "seed": seed})

    @property
    def stage(self) -> dict[str, Any]:
        return self.values["stage"]

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.stage["name"]

    @property
    def stages(self) -> tuple[str, ...]:
        """A pipeline's stages, in their order."""
        return checked(self.stage.get("stages"), tuple[str, ...], "stage.stages")

    @property
    def composed_stages(self) -> list[str]:
        """The stages that a pipeline has settings for."""
        return [name for name, value in self.stage.items() if isinstance(value, dict) and name != SEEDS]

    @property
    def seeds(self) -> dict[str, int]:
        """The seeds of a pipeline's stages; a stage that is not among them has `seed`.

        Raises:
            ValueError: one is no number, or of no stage.
        """
        seeds = checked(self.stage.get(SEEDS, {}), dict[str, Count], f"stage.{SEEDS}")
        if unknown := sorted({*seeds} - {*self.composed_stages}):
            raise ValueError(
                f"stage.{SEEDS}.{unknown[0]} is of no stage of this pipeline, which are "
                f"{', '.join(self.composed_stages)}"
            )
        for stage, seed in seeds.items():
            require_seed(seed, f"stage.{SEEDS}.{stage}")
        return seeds

    @property
    def dataset_name(self) -> str:
        return self.values["dataset"]["name"]

    @property
    def labels(self) -> str | None:
        """dataset.labels: own, none or a file; None for data that cannot have others."""
        return self.values["dataset"].get("labels")

    @property
    def teacher(self) -> str | None:
        return self.values["teacher"]

    @property
    def seed(self) -> int:
        return self.values["seed"]

    @property
    def outputs(self) -> Path:
        return Path(self.values["outputs"])

    @property
    def samples(self) -> Path | None:
        """Where evaluations keep samples for each other."""
        return None if self.values["samples"] is None else Path(self.values["samples"])

    @property
    def run_name(self) -> str | None:
        return None if self.values["name"] is None else str(self.values["name"])

    @property
    def text(self) -> str:
        """As config.yaml keeps them."""
        return dump_yaml(self.values)


def check_top(values: Mapping[str, Any]) -> None:
    """Refuse top-level settings of another type.

    Raises:
        ValueError: names the setting and its value.
    """
    known = (*GROUPS, *TOP, "name", "method")
    if unknown := [key for key in values if key not in known]:
        raise ValueError(f"{unknown[0]} is no setting; the settings are {', '.join(known)}")
    for group in GROUPS:
        if not isinstance(values.get(group), dict):
            raise ValueError(f"{group} must be one of its options or a group of settings, got {values.get(group)!r}")
    for key, hint in {**TOP, "name": Any}.items():
        if key not in values:
            raise ValueError(f"{key} must be given, {expected(hint)}, and is missing; leave ~{key} away")
        checked(values[key], hint, key)
    require_seed(values["seed"])
    for key in ("network", "prediction"):
        if key not in values["model"]:
            raise ValueError(f"model.{key} must be given, and is missing")
    if unknown := [key for key in values["model"] if key not in OF_A_MODEL]:
        raise ValueError(f"model.{unknown[0]} is no setting; model has {', '.join(OF_A_MODEL)}")
    checked(values["stage"].get("name"), str, "stage.name")
    checked(values["dataset"].get("name"), str, "dataset.name")
    for key, value in values["logger"].items():
        checked(value, str | None if key == "project" else bool, f"logger.{key}")
    if values["logger"].get("mlflow") and not is_installed("mlflow"):
        raise ValueError("logger=mlflow needs a package that is not installed; pip install 'fewstep[mlflow]' has it")
    for key, value in {"name": values["name"], "dataset.name": values["dataset"]["name"]}.items():
        if value is not None and not re.fullmatch(FOLDER_NAME, str(value)):
            or_null = " or null" if key == "name" else ""
            raise ValueError(f"{key} must be a folder's name of letters, digits and .,=+-_{or_null}, got {value!r}")


def as_toy(values: dict[str, Any]) -> dict[str, Any]:
    """What trainer.toy makes of the settings: the model's toy variant, and few steps and w in ladders and grids.

    Of the steps in a list those up to 8 are kept, and all where that leaves nothing to do; of the w the first and the
    last. A network without such a variant stays as it is.
    """
    values = copy.deepcopy(values)
    toy, trainer, model = values["model"].get("toy") or {}, values["trainer"], values["model"]
    stages = [values["stage"], *(each for each in values["stage"].values() if isinstance(each, dict))]
    if toy.get("network"):  # the changes were to the real one
        for stage in stages:
            if "student" in stage:
                stage["student"] = None
        model["network"] = OmegaConf.to_container(OmegaConf.merge(model["network"], toy["network"]))
    most = [n for n in (trainer["max_images"], toy.get("max_images")) if n is not None]
    trainer["max_images"] = min(most, default=None)
    trainer["snapshot_images"] = min([trainer["snapshot_images"], *most])
    for stage in stages:
        for key, least in (("ladder", 2), ("time_schedule", 2), ("teacher_steps", 1), ("guided_steps", 1)):
            steps = stage.get(key)
            few = [n for n in steps if not isinstance(n, int) or n <= TOY_STEPS] if isinstance(steps, list) else []
            if len(few) >= least:
                stage[key] = few
        for key in ("w", "w2"):
            if isinstance(weights := stage.get(key), list) and len(weights) > 2:
                stage[key] = [weights[0], weights[-1]]
    return values
