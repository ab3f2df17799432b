"""What a method of distillation is: its settings, its phases, the networks it trains and the losses that move them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.data.batch import Batch
from fewstep.diffusion.prediction import Condition, Denoise, Prediction, Weights, diffuse
from fewstep.diffusion.sampling import GuidanceKind, Sampling
from fewstep.diffusion.schedule import Images, Schedule
from fewstep.methods.critic import CRITIC
from fewstep.methods.draws import Draws
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.judge import JudgeSettings
from fewstep.methods.losses import Loss, regress
from fewstep.methods.training import STUDENT, Training
from fewstep.networks import Denoiser
from fewstep.networks.adapter import trained_parameters
from fewstep.networks.ema import Average, ramped
from fewstep.system.validation import Bounded

MODEL = "model"  # the average that becomes the model, where one is kept
Times = Float[Tensor, "batch"]


@dataclass(frozen=True)
class Parent:
    """What the card of a method's parent must say.

    Args:
        guidance: how the parent may be guided, the preferred kind first.
        continues: how a student is sampled with which the method's own chain goes on; None where there is no chain.
    """

    guidance: tuple[GuidanceKind, ...]
    continues: Sampling | None = None

    @property
    def accepted(self) -> tuple[GuidanceKind, ...]:
        """Those, and where a guided student may be one, a model without guidance: it stands for one at w = 0 alone."""
        return (*self.guidance, "none") if "input" in self.guidance else self.guidance

    @property
    def teacher(self) -> Sampling | None:
        """How a teacher that may be the parent is sampled; None where only a student may."""
        kinds = (Sampling(guidance=kind) for kind in self.guidance)
        return next((sampling for sampling in kinds if sampling.is_combined), None)


@dataclass(frozen=True)
class Phase:
    """One training from start to end, which leaves one model file.

    Args:
        sampling: how its student is sampled, as the model's card says it.
        num_steps: of the student, in the file's name; None where the method has one phase for any number of steps.
        components: Gaussians at each location of a student that is a policy; 0 for any other.
        teacher_steps: of the teacher, where its steps are what the student learns.
        budget: times `training.images`.
    """

    sampling: Sampling
    num_steps: int | None = None
    teacher_steps: int | None = None
    components: int = 0
    budget: float = 1.0

    @property
    def own_steps(self) -> int:
        """The student's, in a phase that is of one number of them."""
        assert self.num_steps is not None, "a phase of one number of steps"
        return self.num_steps

    @property
    def learned_steps(self) -> int:
        """The teacher's, in a phase that learns them."""
        assert self.teacher_steps is not None, "a phase that learns a teacher's steps"
        return self.teacher_steps


@dataclass(frozen=True)
class Networks:
    """The networks of a phase.

    Args:
        student: learns; it starts as the method's parent, or fresh where there is none.
        teacher: frozen; None where there is none.
        schedule: of the student's diffusion.
        guidance: weights that the student is trained at; None for a student without a w input.
        bounds: the data's range, where targets are held inside it (`StudentSettings.clip_target`).
        trained: other modules that learn, by role.
        averages: of the student's weights, by role.
    """

    student: Denoiser
    teacher: Denoise | None
    schedule: Schedule
    guidance: GuidanceRange | None
    bounds: tuple[float, float] | None = None
    trained: Mapping[str, nn.Module] = field(default_factory=dict)
    averages: Mapping[str, Average] = field(default_factory=dict)

    def teacher_and_weights(self, draws: Draws) -> tuple[Denoise, Weights]:
        """The teacher of a distilled student with a w input, and a w for each example."""
        return self.frozen_teacher, self.w_range.draw(draws)

    @property
    def frozen_teacher(self) -> Denoise:
        """The teacher, of a method that has one."""
        assert self.teacher is not None, "the method has a parent"
        return self.teacher

    @property
    def w_range(self) -> GuidanceRange:
        """The guidance weights, of a student with a w input."""
        assert self.guidance is not None, "the student has a w input"
        return self.guidance

    @property
    def model(self) -> Denoiser:
        """What the phase is for: the averaged student, or the student where no such average is kept."""
        return self.averages[MODEL].network if MODEL in self.averages else self.student


@dataclass(frozen=True, kw_only=True)
class Method(Bounded, ABC):
    """A method of training or distillation. Constructor arguments are the settings, and the stage's YAML.

    Adding one: a subclass in a module, a YAML in a folder `stage`, an oracle test; see docs/extending.md.

    Attributes:
        paper: where it is from. certainty: how sure we are of what we built, and what is ours.
        inputs: what a batch holds in `x`: data, or noise for a method that needs no data; or pairs, a `Pairs`.
        optional_roles: of networks that only some settings train.
        has_dropout: whether the student trains with dropout; off wherever there is a teacher (Salimans & Ho's code).

    Args:
        name: of the stage; the default is the name of the class's file in conf/stage.
        training: how the networks are optimised.
    """

    paper: ClassVar[str] = ""
    certainty: ClassVar[str] = ""
    has_dropout: ClassVar[bool] = False
    optional_roles: ClassVar[tuple[str, ...]] = ()

    name: str = "method"
    training: Training = field(default_factory=Training)

    @property
    def inputs(self) -> Literal["data", "noise", "pairs"]:
        return "data"

    @property
    def interval(self) -> tuple[float, ...] | None:
        """The times between which the teacher is guided; None is all of them."""
        return None

    @property
    def roles(self) -> tuple[str, ...]:
        """All that is trained, the student first."""
        return (STUDENT,)

    def parent(self) -> Parent | None:
        """What the method's parent must be; None for one that trains from nothing."""
        return None

    def without_teacher(self) -> "Method":
        """The same method where teacher=none.

        Raises:
            ValueError: it needs one.
        """
        if self.parent() is None:
            return self
        raise ValueError(f"stage={self.name} needs a teacher, and teacher=none says there is none; use teacher=null")

    @property
    def needs_labels(self) -> bool:
        """Whether the parent must be guided by several evaluations, which takes labels."""
        parent = self.parent()
        return parent is not None and "none" not in parent.accepted

    def without_labels(self) -> "Method":
        """The same method for data without labels, where no model is guided.

        Raises:
            ValueError: it needs them.
        """
        if not self.needs_labels:
            return self
        raise ValueError(
            f"stage={self.name} needs a guided teacher, guidance needs labels, and dataset.labels=none says there are "
            "none; leave the stage out (a teacher without guidance is distilled as it is: stage=progressive and most "
            "others), or make labels of clusters with `fewstep data label` (docs/self_labelled.md)"
        )

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """The trainings, one after the other; each student is the next phase's parent."""

    def with_steps(self, num_steps: int) -> "Method":
        """The same method, one of whose phases makes a student of so many steps.

        Raises:
            ValueError: it makes none.
        """
        made = sorted({number for phase in self.phases() for number in phase.sampling.steps})
        if made and num_steps not in made:
            raise ValueError(
                f"this {type(self).__name__} makes students of {', '.join(map(str, made))} steps, got steps={num_steps}"
            )
        return self

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange | None:
        """The weights that the student is trained at, given its parent's; None for one without a w input.

        Raises:
            ValueError: weights that the parent was not made for, or that nobody says.
        """
        return parent

    def networks(self, nets: Networks, stream: str) -> Networks:
        """Add to a phase's student and teacher what else the method trains or averages.

        Args:
            nets: the student and its teacher alone. stream: names the random numbers that new weights are drawn from.
        """
        decay = self.training.ema_decay
        return replace(nets, averages={MODEL: Average(nets.student, ramped(decay))}) if decay else nets

    def weights(self, student: Denoiser) -> list[nn.Parameter]:
        """The student's parameters that are trained: all, or of an adapted one its adapter and new inputs."""
        return trained_parameters(student)

    def moving(self, step: int) -> tuple[str, ...]:
        """The roles that an optimiser step trains."""
        return self.roles

    @abstractmethod
    def losses(self, batch: Any, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> Mapping[str, Loss]:
        """The loss of each role that moves in this step. `batch` is a `Batch`, or `Pairs` where `inputs` says so."""

    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction | None:
        """What the student should predict at `noised.z`, for diagnostics; None where the method has no such target."""
        return None

    def times(self, phase: Phase) -> Float[Tensor, "times"] | None:
        """The times at which the student is trained, where they are few; None where they are all of [0, 1]."""
        return None


@dataclass(frozen=True, kw_only=True)
class Regression(JudgeSettings, Method):
    """A method whose student regresses to a target at noised data; a judge may tell the two apart (`JudgeSettings`)."""

    optional_roles: ClassVar[tuple[str, ...]] = (CRITIC,)

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, *self.judge_roles)

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        return replace(nets, trained={**nets.trained, **self.judge_networks(nets.teacher, stream)})

    @property
    def metric_name(self) -> str:
        """The distance to the target."""
        return "l2"

    def draw_times(self, draws: Draws, phase: Phase) -> Times:
        """One time per example; uniform in [0, 1]."""
        return draws.uniform()

    def draw_condition(self, label: Condition, nets: Networks, draws: Draws) -> Condition:
        """The condition that each example is trained with; its own."""
        return label

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        x, label = batch
        t, eps = self.draw_times(draws, phase), draws.normal()
        w = nets.guidance.draw(draws) if nets.guidance else None
        label = self.draw_condition(label, nets, draws)
        if nets.student.training:
            draws.separate_ranks()
        noised = self.state(x, eps, t=t, label=label, w=w, nets=nets, draws=draws, step=step, phase=phase)
        with torch.no_grad():
            target = self.target(noised, t=t, label=label, w=w, nets=nets, phase=phase)
        prediction = nets.student(noised.z, noised.log_snr, label, w)
        losses = self.compare(prediction, target, t=t, w=w, label=label, nets=nets, draws=draws, step=step)
        if self.judge_term is None:  # to which alone the x of predictions are of use
            return losses
        return self.judged(
            losses,
            prediction.x,
            target=target.x,
            data=x,
            trained=nets.trained,
            schedule=nets.schedule,
            label=label,
            guidance_weight=self.training.guidance_weight,
            draws=draws,
        )

    def compare(
        self,
        prediction: Prediction,
        target: Prediction,
        *,
        t: Times,
        w: Weights | None,
        label: Condition,
        nets: Networks,
        draws: Draws,
        step: int,
    ) -> dict[str, Loss]:
        """The loss of each role, of what the student predicts and what it should."""
        return {STUDENT: regress(prediction, target, self.training, t=t, w=w, metric=self.metric_name)}

    def state(
        self,
        x: Images,
        eps: Images,
        *,
        t: Times,
        label: Condition,
        w: Weights | None,
        nets: Networks,
        draws: Draws,
        step: int,
        phase: Phase,
    ) -> Prediction:
        """What each example is trained at: the data noised with eps to time t."""
        return diffuse(x=x, eps=eps, log_snr=nets.schedule.log_snr(t))

    @abstractmethod
    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        """What the student should predict at `noised.z`; of `noised` only z counts where there is a teacher."""
