"""The composition root: settings -> data, network, stage, trainer -> fit -> evaluate. Only here Hydra instantiates."""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from fewstep.checkpoint import ModelCard, Parent, Role, load_model, save_model
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.evaluation import Judge, evaluate
from fewstep.fit import TrainerSettings, fit
from fewstep.folder import MODEL, QUALITY, REPORT, RunFolder, open_run, rung_file
from fewstep.networks import Denoiser, Frozen, with_guidance_input
from fewstep.parents import as_parents, fits, models_in, named, newest
from fewstep.quality.grid import Plan
from fewstep.quality.metrics import RunningFigures
from fewstep.seeds import seed_for
from fewstep.snapshots import Snapshots
from fewstep.stages import GuidanceRange, GuidanceStage, ProgressiveStage, Stage, Training, check_ladder
from fewstep.tracking.loggers import started

EXACT = "exact"
SNAPSHOT_STEPS = 16  # of teachers and guided students, in pictures taken during training
NOT_OF_THE_STAGE = ("name", "training", "ladder", "few_steps", "few_steps_factor")


def run(config: DictConfig) -> None:
    """Do what the settings say; `stage.name` picks which of the five.

    Raises:
        ValueError, OSError: one line that says what to change.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    OmegaConf.resolve(config)
    match config.stage.name:
        case "pipeline":
            run_pipeline(config)
        case "teacher":
            run_teacher(config)
        case "guidance":
            run_guidance(config)
        case "progressive":
            run_progressive(config)
        case _:
            run_evaluate(config)


def run_pipeline(config: DictConfig) -> None:
    """teacher -> guidance -> progressive -> evaluate, each in its own folder, named by the pipeline's time."""
    check_pipeline(config)
    with opened(config, [QUALITY, REPORT]) as folder:
        time, teacher = folder.path.name, config.teacher
        if teacher is None:
            teacher = run_teacher(stage_of(config, "teacher"), time)
        guided = run_guidance(stage_of(config, "guidance", teacher), time)
        rungs = run_progressive(stage_of(config, "progressive", guided), time)
        judge(stage_of(config, "evaluate", guided), folder, [guided, *rungs])


def stage_of(config: DictConfig, stage: str, teacher: str | Path | None = None) -> DictConfig:
    """The settings of one stage of a pipeline."""
    own = copy.deepcopy(config)
    own.stage = copy.deepcopy(config.stage[stage])
    own.teacher = None if teacher is None else str(teacher)
    return own


def check_pipeline(config: DictConfig) -> None:
    """Meet now the errors of settings that a pipeline's later stages would meet after minutes."""
    settings = TrainerSettings(**config.trainer)
    for name in ("teacher", "guidance", "progressive"):
        check_stage(config.stage[name])
    plan_of(config.stage.evaluate, settings)


def check_stage(stage: DictConfig) -> None:
    """Meet now the errors of a stage's settings, before its parent is looked for."""
    instantiate(stage.training)
    if stage.name == GuidanceStage.name:
        GuidanceRange(stage.w_min, stage.w_max)
    if stage.name == ProgressiveStage.name:
        check_ladder(stage.ladder)


def run_teacher(config: DictConfig, time: str | None = None) -> Path:
    """Train a teacher; give its model file."""
    check_stage(config.stage)
    with opened(config, [MODEL], time) as folder:
        model = folder.path / MODEL
        if not folder.finished:
            setup = Setup.of(config)
            stage = setup.stage(setup.network(), null_label=setup.facts.num_classes)
            with loggers(config, folder) as targets:
                setup.train(stage, folder, targets, num_steps=SNAPSHOT_STEPS)
            save_model(model, stage.model, setup.card("teacher", stage))
        return model


def run_guidance(config: DictConfig, time: str | None = None) -> Path:
    """Distil a teacher's guidance into one student; give its model file."""
    check_stage(config.stage)
    with opened(config, [MODEL], time) as folder:
        model = folder.path / MODEL
        if not folder.finished:
            setup = Setup.of(config)
            if config.teacher == EXACT:
                student, teacher, parents = setup.network(guidance_input=True), setup.exact_teacher(), ()
            else:
                path = setup.parent("teacher")
                denoiser, card = load_model(path)
                student, parents = with_guidance_input(denoiser), as_parents(path, card, folder.path)
                teacher = Guided(Frozen(denoiser), setup.facts.num_classes)
            stage = setup.stage(student, teacher=teacher)
            with loggers(config, folder) as targets:
                setup.train(stage, folder, targets, num_steps=SNAPSHOT_STEPS)
            save_model(model, stage.model, setup.card("guided", stage, parents))
        return model


def run_progressive(config: DictConfig, time: str | None = None) -> list[Path]:
    """Walk down the ladder; give the rungs' model files, most steps first. Finished rungs are kept as they are."""
    check_stage(config.stage)
    ladder = check_ladder(config.stage.ladder)
    with opened(config, [rung_file(n) for n in ladder[1:]], time) as folder:
        rungs = [folder.path / rung_file(n) for n in ladder[1:]]
        if folder.finished:
            return rungs
        setup, images_before = Setup.of(config), 0
        parent = setup.parent("guided", steps=ladder[0])
        with loggers(config, folder) as targets:
            for num_steps, rung in zip(ladder[1:], rungs, strict=True):
                training = setup.training(config.stage.few_steps_factor if num_steps <= config.stage.few_steps else 1)
                if not rung.is_file():
                    denoiser, card = load_model(parent)
                    stage = setup.stage(
                        copy.deepcopy(denoiser),
                        training=training,
                        rung=num_steps,
                        teacher=Frozen(denoiser),
                        num_steps=num_steps,
                        w_min=card.w_min,
                        w_max=card.w_max,
                    )
                    setup.train(
                        stage,
                        folder,
                        targets,
                        num_steps=num_steps,
                        rung=num_steps,
                        images_before=images_before,
                    )
                    parents = as_parents(parent, card, folder.path)
                    save_model(rung, stage.model, setup.card("progressive", stage, parents, num_steps))
                images_before += training.num_steps * training.batch_size
                parent = rung
        return rungs


def run_evaluate(config: DictConfig) -> None:
    """Judge the newest ladder, or what teacher=PATH names: a model file, or a run folder with all its models."""
    with opened(config, [QUALITY, REPORT]) as folder:
        if config.teacher in (None, EXACT):
            outputs, data = Path(config.outputs), config.dataset.name
            models = models_in(newest(outputs, data, "progressive", lambda model: None).parent)
        else:
            path = Path(config.teacher)
            models = models_in(path) if path.is_dir() else [path]
            if not models:
                raise ValueError(f"teacher={path} must be a model file or a folder that holds one, and holds none")
        judge(config, folder, models)


def judge(config: DictConfig, folder: RunFolder, models: Sequence[Path]) -> None:
    """Write quality.json, provenance.json, pictures and report.html of these models and their ancestors."""
    setup = Setup.of(config)
    plan = plan_of(config.stage, setup.settings)
    with loggers(config, folder) as targets:
        evaluate(models, plan, setup.judge, folder.path, targets, accelerator=setup.settings.accelerator)


def plan_of(stage: DictConfig, settings: TrainerSettings) -> Plan:
    """The evaluation's plan, its images capped by trainer.max_images."""
    values = {key: value for key, value in cast(dict[str, Any], OmegaConf.to_container(stage)).items() if key != "name"}
    plan = cast(Plan, instantiate(values, _convert_="all"))
    return replace(plan, num_images=min(plan.num_images, settings.max_images or plan.num_images))


@contextmanager
def opened(config: DictConfig, products: Sequence[str], time: str | None = None) -> Iterator[RunFolder]:
    """The run folder of these settings, held; see `open_run`."""
    text = OmegaConf.to_yaml(config, resolve=True)
    with open_run(Path(config.outputs), config.dataset.name, config.stage.name, text, products, time) as folder:
        print(
            f"{config.stage.name}: {folder.path}" + (" (finished before)" if folder.finished else ""),
            flush=True,
        )
        yield folder


def loggers(config: DictConfig, folder: RunFolder) -> AbstractContextManager[list[Logger]]:
    """Where the numbers of a stage go; see `started`."""
    return started(
        folder.path,
        group=f"{config.dataset.name}-{folder.path.name}",
        job_type=config.stage.name,
        config=cast(dict[str, Any], OmegaConf.to_container(config)),
        wandb=config.logger.wandb,
    )


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
            w_min=guidance.w_min if guidance else None,
            w_max=guidance.w_max if guidance else None,
            num_steps=num_steps,
            images=stage.training_plan.num_steps * stage.training_plan.batch_size,
            parents=parents,
        )


def dataset_of(config: DictConfig) -> dict[str, Any]:
    """The data set's settings, less its name."""
    return {key: value for key, value in config.dataset.items() if key != "name"}
