"""The settings of one stage, made into objects. Beside run.py the only place where Hydra instantiates."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from fewstep.artifacts.lineage import Rung, compatibility, find_newest, resolve_parent
from fewstep.artifacts.model_file import ModelCard, Parent, Role
from fewstep.artifacts.run_folder import RunFolder
from fewstep.data.batches import Batch, Data
from fewstep.data.facts import DataFacts
from fewstep.diagnostics import NUM_EXAMPLES, Diagnostics
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.guidance import Guided, log_snr_interval
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.diffusion.target import clipped
from fewstep.distributed.collectives import main_process_first, on_main_process
from fewstep.evaluation.grid import EvaluationPlan
from fewstep.evaluation.metrics import RunningFigures
from fewstep.methods import EncoderStage, GuidanceRange, Stage, Training
from fewstep.networks import Denoiser
from fewstep.networks.adapter import with_adapter
from fewstep.networks.memory import checkpoint_gradients, denoisers_in, to_channels_last
from fewstep.networks.smaller import smaller_student
from fewstep.runs.evaluate import Evaluator
from fewstep.runs.overrides import conf_folder
from fewstep.system.seeds import seed_for
from fewstep.system.settings import require_data
from fewstep.teachers.imported import imported, is_foreign
from fewstep.training.callbacks.snapshots import Snapshots
from fewstep.training.loop import fit
from fewstep.training.settings import TrainerSettings

EXACT = "exact"
KNOWN = ".reference"  # below outputs: features of reference images, where they took long to compute
NOT_OF_THE_STAGE = (
    "name",
    "training",
    "ladder",
    "few_steps",
    "few_steps_factor",
    "guidance_interval",
    "clip_target",
    "prediction",
    "student",
    "adapter",
    "adapter_rank",
    "adapter_alpha",
)


@dataclass(frozen=True)
class Setup:
    """What the settings of one stage are made into."""

    config: DictConfig
    settings: TrainerSettings
    schedule: CosineSchedule
    judge: Evaluator

    @classmethod
    def of(cls, config: DictConfig) -> "Setup":
        # What a data set converts or generates is there when the other processes look.
        data = main_process_first(lambda: cast(Data, instantiate(dataset_of(config), batch_size=1, stream="facts")))
        settings = TrainerSettings(**config.trainer)
        judge = Evaluator.of(data, settings.features, Path(config.outputs, KNOWN))
        return cls(config, settings, instantiate(config.schedule), judge)

    @property
    def facts(self) -> DataFacts:
        return self.judge.facts

    def examples(self, count: int) -> Batch:
        """The first `count` held-out examples; of latents, whose held-out part is images, training ones."""
        data = cast(Data, instantiate(dataset_of(self.config), batch_size=count, stream="examples"))
        x, label = data.batch(0) if self.facts.latent or self.facts.text else data.reference()
        return Batch(x[:count], label[:count])

    def network(self, guidance_input: bool = False) -> Denoiser:
        """A fresh network for the data's shape and classes, or with the embedding of the empty prompt."""
        denoiser = self.built(guidance_input)
        if self.facts.text is not None:
            empty = self.judge.data.empty_prompt
            assert empty is not None
            denoiser.network.get_buffer("empty_prompt").copy_(empty)
        return denoiser

    def built(self, guidance_input: bool = False) -> Denoiser:
        """The network of the settings, on torch's default device."""
        torch.manual_seed(seed_for(self.config.seed, self.config.stage.name, "init"))
        arguments: dict[str, Any] = {"guidance_input": True} if guidance_input else {}
        model = self.config.model
        shape: dict[str, Any] = {"shape": list(self.facts.shape), "num_classes": self.facts.num_classes}
        if self.facts.text is not None:
            shape |= {"tokens": self.facts.text.tokens, "features": self.facts.text.features}
        network = instantiate(model.network, _convert_="all", **shape, **arguments)
        return Denoiser(network, model.prediction, instantiate(model.get("clock")))

    def exact_teacher(self) -> Guided:
        """The closed-form guided teacher.

        Raises:
            ValueError: the data have none.
        """
        if self.judge.exact is None:
            raise ValueError(
                f"teacher=exact needs data with a closed form, and {self.facts.name} has none; use dataset=mixture"
            )
        if self.config.stage.get("adapter") is not None:
            raise ValueError(
                "stage.adapter=lora adds to a teacher's weights, and teacher=exact has none; use stage.adapter=null"
            )
        return self.guided(self.judge.exact.denoise, self.facts.num_classes, self.schedule)

    def guided(self, denoise: Denoise, null: int | torch.Tensor, schedule: CosineSchedule | BetaSchedule) -> Guided:
        """A teacher guided in the stage's interval of the student's times."""
        return Guided(denoise, null, log_snr_interval(schedule, self.guidance_interval))

    def schedule_of(self, denoiser: Denoiser) -> CosineSchedule | BetaSchedule:
        """What a student of this network lives on: the network's own clock if it has one, else `schedule`.

        On its own clock a student of Stable Diffusion is asked no noise that its teacher has not seen, and sampling
        starts, as with every sampler of such models, from pure noise where alpha is still 0.068: a bias of the mean of
        about alpha times it (Lin et al. 2024, section 3). zero_terminal_snr=true puts the student on `schedule`, which
        ends without signal: its teacher's x at the last timestep then stands for all that is noisier. An eps student
        there divides by that last alpha; stage.prediction=v makes one that does not.
        """
        return self.schedule if denoiser.clock is None or self.config.zero_terminal_snr else denoiser.clock

    def resized(self, student: Denoiser) -> Denoiser:
        """The student, or one of another size where stage.student says so."""
        changes = self.config.stage.get("student")
        if changes is None:
            return student
        torch.manual_seed(seed_for(self.config.seed, self.config.stage.name, "init"))
        return smaller_student(student, plain(changes))

    def as_read(self, student: Denoiser) -> Denoiser:
        """The student, its output read as stage.prediction says, null as its teacher's.

        Of another reading it starts with its teacher's weights but not as its teacher: it has more to learn.
        """
        return Denoiser(student.network, self.config.stage.prediction or student.prediction, student.clock)

    @property
    def guidance_interval(self) -> tuple[float, float] | None:
        """The stage's own."""
        times = self.config.stage.get("guidance_interval")
        return None if times is None else tuple(times)

    def parent(self, role: Role, ladder: Rung | None = None) -> Path:
        """The parent model's file: the one named by teacher=PATH, else the newest that fits; see `fits`."""
        with torch.device("meta"):  # what is compared is its description
            ours = self.built()
        reason = compatibility(role, self.facts, ours, self.schedule_of, ladder)
        teacher, outputs = self.config.teacher, Path(self.config.outputs)
        if teacher in (None, EXACT):
            return on_main_process(lambda: find_newest(outputs, self.facts.name, role, reason))
        foreign = is_foreign(teacher)
        reason = compatibility(role, self.facts, ours, self.schedule_of, ladder, any_size=True)
        return on_main_process(
            lambda: resolve_parent(imported(teacher, outputs, self.facts) if foreign else Path(teacher), reason)
        )

    def training(self, factor: float = 1) -> Training:
        """The stage's training, its budget times `factor` and capped by trainer.max_images."""
        training = cast(Training, instantiate(self.config.stage.training))
        images = round(training.images * factor)
        images = min(images, self.settings.max_images or images)
        return replace(training, images=images, batch_size=min(training.batch_size, images))

    def stage(
        self, student: Denoiser, *, training: Training | None = None, rung: int | None = None, **own: Any
    ) -> Stage:
        """The stage of the settings, around a student; `own` is what this kind of stage needs besides.

        Raises:
            ValueError: targets are to be clipped to data whose range is not known.
        """
        if self.settings.gradient_checkpointing:
            checkpoint_gradients(student.network)
        if self.settings.channels_last:
            for denoiser in (student, *denoisers_in(own.get("teacher"))):
                to_channels_last(denoiser.network)
        if self.config.stage.get("clip_target"):
            if self.facts.latent is not None:
                raise ValueError(f"stage.clip_target needs data of a known range, and latents have none: {self.facts}")
            own["teacher"] = clipped(own["teacher"], self.facts.low, self.facts.high)
        values = {key: value for key, value in self.config.stage.items() if key not in NOT_OF_THE_STAGE}
        stream = "/".join(str(part) for part in (self.config.seed, self.config.stage.name, rung) if part is not None)
        build = instantiate(values, _partial_=True)
        if self.config.stage.get("adapter") is not None:
            torch.manual_seed(seed_for(stream, "adapter"))
            student = with_adapter(student, self.config.stage.adapter_rank, self.config.stage.adapter_alpha)
        return build(
            student=student,
            schedule=self.schedule_of(student),
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
        """Fit the stage on its data, with snapshots of `num_steps` steps of its sampler; an encoder has no samples."""
        gc.collect()  # the stage or rung before: it and its trainer hold each other, and its memory is needed now
        data = instantiate(dataset_of(self.config), batch_size=stage.training_plan.batch_size, stream=stage.stream)
        own: GuidanceRange | None = getattr(stage, "guidance", None)
        guidance = own or GuidanceRange(0.0, 1.0)
        snapshots = (
            None
            if isinstance(stage, EncoderStage)
            else Snapshots(
                folder=folder.path,
                data=self.judge.data,
                figures=RunningFigures(self.judge.net, self.judge.known),
                count=self.settings.snapshots,
                num_images=self.settings.snapshot_images,
                num_steps=num_steps,
                w=min(max(1.0, guidance.w_min), guidance.w_max),
                guided=own is None,
                sampler=getattr(stage, "sampling", "deterministic"),
                images_before=images_before,
                rung=rung,
            )
        )
        diagnostics = Diagnostics(
            folder=folder.path,
            data=instantiate(dataset_of(self.config), batch_size=NUM_EXAMPLES, stream="diagnostics"),
            count=self.settings.diagnostics,
            images_before=images_before,
            rung=rung,
            alarming=not self.settings.toy,
        )
        fit(
            stage,
            data,
            folder,
            self.settings,
            parent_sha256=parents[0].sha256 if parents else None,
            loggers=targets,
            watchers=[diagnostics] if snapshots is None else [snapshots, diagnostics],
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
            schedule=self.schedule_of(stage.model),
            clock=stage.model.clock,
            w_min=guidance.w_min if guidance else None,
            w_max=guidance.w_max if guidance else None,
            w_draw=guidance.w_draw if guidance else "uniform",
            w_values=guidance.w_values if guidance else None,
            guidance_interval=self.guidance_interval,
            sampling=getattr(stage, "sampling", "deterministic"),
            num_steps=num_steps,
            images=stage.training_plan.num_steps * stage.training_plan.batch_size,
            parents=parents,
        )


TOY_STEPS = 8


def as_toy(config: DictConfig) -> None:
    """What trainer.toy makes of the settings: the model's toy variant, and few steps and w in ladders and grids.

    Of the steps in a list those up to 8 are kept, and all where that leaves nothing to do; of the w the first and the
    last. A network without such a variant stays as it is.
    """
    toy = config.model.get("toy", {})
    if toy.get("network"):  # the changes were to the real one
        for stage in (config.stage, *(s for s in config.stage.values() if isinstance(s, DictConfig))):
            if "student" in stage:
                stage.student = None
    config.model.network = OmegaConf.merge(config.model.network, toy.get("network", {}))
    most = [n for n in (config.trainer.max_images, toy.get("max_images")) if n is not None]
    config.trainer.max_images = min(most, default=None)
    config.trainer.snapshot_images = min([config.trainer.snapshot_images, *most])
    for stage in (config.stage, *(s for s in config.stage.values() if isinstance(s, DictConfig))):
        for key, least in (("ladder", 2), ("teacher_steps", 1), ("guided_steps", 1)):
            few = [n for n in stage.get(key, []) if n <= TOY_STEPS]
            if key in stage and len(few) >= least:
                stage[key] = few
        if len(weights := list(stage.get("w", []))) > 2:
            stage.w = [weights[0], weights[-1]]


def dataset_of(config: DictConfig) -> dict[str, Any]:
    """The data set's settings, less its name.

    Raises:
        ValueError: one is of another type.
    """
    settings = {str(key): value for key, value in config.dataset.items() if key != "name"}
    require_data(settings)
    return settings


def data_of(name: str, settings: Sequence[str], batch_size: int) -> Data:
    """The data set of conf/dataset/NAME.yaml by its name alone, with `settings` of it changed, like "size=32".

    Raises:
        ValueError: there is no folder conf, neither beside the source nor here.
    """
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("config", [f"dataset={name}", *(f"dataset.{setting}" for setting in settings)])
    OmegaConf.resolve(config.dataset)
    return cast(Data, instantiate(dataset_of(config), batch_size=batch_size, stream="data"))


def plain(config: DictConfig) -> dict[str, Any]:
    """The settings as plain dictionaries and lists."""
    return cast(dict[str, Any], OmegaConf.to_container(config))


def plan_of(stage: DictConfig, settings: TrainerSettings) -> EvaluationPlan:
    """The evaluation's plan, its images capped by trainer.max_images."""
    values = {key: value for key, value in plain(stage).items() if key != "name"}
    plan = cast(EvaluationPlan, instantiate(values, _convert_="all"))
    return replace(plan, num_images=min(plan.num_images, settings.max_images or plan.num_images))
