"""The settings of one stage, made into objects. Beside run.py the only place where Hydra instantiates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from fewstep.checkpoint import ModelCard, Parent, Role
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.evaluation import Judge
from fewstep.fit import TrainerSettings, fit
from fewstep.folder import RunFolder
from fewstep.networks import Denoiser
from fewstep.parents import fits, named, newest
from fewstep.quality.grid import Plan
from fewstep.quality.metrics import RunningFigures
from fewstep.seeds import seed_for
from fewstep.snapshots import Snapshots
from fewstep.stages import GuidanceRange, Stage, Training

EXACT = "exact"
NOT_OF_THE_STAGE = ("name", "training", "ladder", "few_steps", "few_steps_factor")


@dataclass(frozen=True)
class Setup:
    """What the settings of one stage are made into."""

    config: DictConfig
    settings: TrainerSettings
    schedule: CosineSchedule
    judge: Judge

    @classmethod
    def of(cls, config: DictConfig) -> "Setup":
        data = cast(Data, instantiate(dataset_of(config), batch_size=1, stream="facts"))
        return cls(config, TrainerSettings(**config.trainer), instantiate(config.schedule), Judge.of(data))

    @property
    def facts(self) -> DataFacts:
        return self.judge.facts

    def network(self, guidance_input: bool = False) -> Denoiser:
        """A fresh network for the data's shape and classes."""
        torch.manual_seed(seed_for(self.config.seed, self.config.stage.name, "init"))
        arguments: dict[str, Any] = {"guidance_input": True} if guidance_input else {}
        model = self.config.model
        shape = {"shape": list(self.facts.shape), "num_classes": self.facts.num_classes}
        return Denoiser(instantiate(model.network, _convert_="all", **shape, **arguments), model.prediction)

    def exact_teacher(self) -> Guided:
        """The closed-form guided teacher.

        Raises:
            ValueError: the data have none.
        """
        if self.judge.exact is None:
            raise ValueError(
                f"teacher=exact needs data with a closed form, and {self.facts.name} has none; use dataset=mixture"
            )
        return Guided(self.judge.exact.denoise, self.facts.num_classes)

    def parent(self, role: Role, steps: int | None = None) -> Path:
        """The parent model's file: the one named by teacher=PATH, else the newest that fits; see `fits`."""
        reason = fits(role, self.facts, self.network(), self.schedule, steps)
        if self.config.teacher in (None, EXACT):
            return newest(Path(self.config.outputs), self.facts.name, role, reason)
        return named(Path(self.config.teacher), reason)

    def training(self, factor: float = 1) -> Training:
        """The stage's training, its budget times `factor` and capped by trainer.max_images."""
        training = cast(Training, instantiate(self.config.stage.training))
        images = round(training.images * factor)
        images = min(images, self.settings.max_images or images)
        return replace(training, images=images, batch_size=min(training.batch_size, images))

    def stage(
        self, student: Denoiser, *, training: Training | None = None, rung: int | None = None, **own: Any
    ) -> Stage:
        """The stage of the settings, around a student; `own` is what this kind of stage needs besides."""
        values = {key: value for key, value in self.config.stage.items() if key not in NOT_OF_THE_STAGE}
        stream = "/".join(str(part) for part in (self.config.seed, self.config.stage.name, rung) if part is not None)
        build = instantiate(values, _partial_=True)
        return build(
            student=student,
            schedule=self.schedule,
            training=training or self.training(),
            stream=stream,
            **own,
        )

    def train(
        self,
        stage: Stage,
        folder: RunFolder,
        targets: Sequence[Logger],
        parents: tuple[Parent, ...],
        *,
        num_steps: int,
        rung: int | None = None,
        images_before: int = 0,
    ) -> None:
        """Fit the stage on its data, with snapshots of `num_steps` DDIM steps."""
        data = instantiate(dataset_of(self.config), batch_size=stage.training_plan.batch_size, stream=stage.stream)
        guidance = getattr(stage, "guidance", GuidanceRange(0.0, 1.0))
        snapshots = Snapshots(
            folder=folder.path,
            facts=self.facts,
            figures=RunningFigures(self.judge.net, self.judge.reference),
            count=self.settings.snapshots,
            num_images=self.settings.snapshot_images,
            num_steps=num_steps,
            w=min(max(1.0, guidance.w_min), guidance.w_max),
            guided=stage.name == "teacher",
            images_before=images_before,
            rung=rung,
        )
        fit(
            stage,
            data,
            folder,
            self.settings,
            parent_sha256=parents[0].sha256 if parents else None,
            loggers=targets,
            snapshots=snapshots,
            rung=rung,
            images_before=images_before,
        )

    def card(
        self, role: Role, stage: Stage, parents: tuple[Parent, ...] = (), num_steps: int | None = None
    ) -> ModelCard:
        """What the stage's model file says of itself."""
        guidance = getattr(stage, "guidance", None)
        return ModelCard(
            role=role,
            data=self.facts,
            prediction=stage.model.prediction,
            schedule=self.schedule,
            clock=stage.model.clock,
            w_min=guidance.w_min if guidance else None,
            w_max=guidance.w_max if guidance else None,
            num_steps=num_steps,
            images=stage.training_plan.num_steps * stage.training_plan.batch_size,
            parents=parents,
        )


def dataset_of(config: DictConfig) -> dict[str, Any]:
    """The data set's settings, less its name."""
    return {key: value for key, value in config.dataset.items() if key != "name"}


def plain(config: DictConfig) -> dict[str, Any]:
    """The settings as plain dictionaries and lists."""
    return cast(dict[str, Any], OmegaConf.to_container(config))


def plan_of(stage: DictConfig, settings: TrainerSettings) -> Plan:
    """The evaluation's plan, its images capped by trainer.max_images."""
    values = {key: value for key, value in plain(stage).items() if key != "name"}
    plan = cast(Plan, instantiate(values, _convert_="all"))
    return replace(plan, num_images=min(plan.num_images, settings.max_images or plan.num_images))
