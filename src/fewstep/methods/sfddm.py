"""SFDDM as its authors ship it: a student, smaller as a rule, of the teacher's output and features at few levels."""

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.data.batch import Batch
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Networks, Parent, Phase, Regression, Times, Weights
from fewstep.methods.critic import CRITIC
from fewstep.methods.draws import Draws
from fewstep.methods.feature_matching import PROJECTION, with_feature_loss
from fewstep.methods.losses import Loss
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.networks import Denoiser
from fewstep.networks.features import LastFeatures, network_of
from fewstep.system.validation import AtLeastOne, NotNegative


@dataclass(frozen=True, kw_only=True)
class SFDDM(GuidedStudentSettings, Regression):
    """Single-fold distillation (Hong et al. 2024), as in the released code: |out_S - out_T| + |h_S - h_T|, both L1.

    The student's N levels have the noise of levels of the teacher, with the same data and noise, so that the outputs
    can be compared without a step of the teacher; h is the last feature map before the output layer, through a learned
    matrix where the student is narrower. What is distilled is capacity: the optimum is the teacher, sampled in N steps
    of DDIM. `single_fold` is what needs fewer steps.

    Args:
        num_steps: N. features: weight of the features' term, 0 for none; more needs a trained teacher.
        The rest: see `Method` and `GuidedStudentSettings`; `training.roles` needs projection where there are features.

    Raises:
        ValueError: fewer than one step, or a negative weight.
    """

    paper: ClassVar[str] = "Hong et al. 2024 (2405.14961)"
    optional_roles: ClassVar[tuple[str, ...]] = (PROJECTION, CRITIC)
    certainty: ClassVar[str] = (
        "sure: read in the authors' code; w, levels that reach t = 1, outputs compared in v and the projection are ours"
    )

    name: str = "sfddm"
    num_steps: AtLeastOne = 4
    features: NotNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features and self.judge is not None:
            raise ValueError(
                "stage.features and stage.judge each read the teacher's latest call, and there is but one; use "
                "stage.features=0 or stage.judge=null"
            )
        for role in self.roles:
            self.training.of_role(role)

    @property
    def metric_name(self) -> str:
        return "l1"

    @property
    def roles(self) -> tuple[str, ...]:
        return (*super().roles, PROJECTION) if self.features else super().roles

    def parent(self) -> Parent:
        return Parent(guidance=("input",))

    def with_steps(self, num_steps: int) -> "SFDDM":
        return replace(self, num_steps=num_steps)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(Sampling.uniform(self.num_steps, guidance="input"), num_steps=self.num_steps),)

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        if not self.features:
            return nets
        teacher = network_of(nets.teacher, "stage.features")
        return replace(nets, trained={**nets.trained, PROJECTION: LastFeatureError(nets.student, teacher)})

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return phase.sampling.grid()

    def draw_times(self, draws: Draws, phase: Phase) -> Times:
        return draws.integers(1, self.num_steps + 1).double() / self.num_steps

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        weights = {PROJECTION: self.features} if self.features else {}
        return with_feature_loss(super().losses(batch, nets, draws, step=step, phase=phase), nets, weights)

    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        return nets.frozen_teacher(noised.z, noised.log_snr, label, w)


class LastFeatureError(nn.Module):
    """mean |P h_student - h_teacher| of the latest calls; P is at first the identity where channels are as many."""

    def __init__(self, student: Denoiser, teacher: Denoiser) -> None:
        super().__init__()
        self.student, self.teacher = LastFeatures(student), LastFeatures(teacher)
        self.projection = nn.Linear(self.student.channels, self.teacher.channels, bias=False)
        nn.init.eye_(self.projection.weight)

    def forward(self) -> Float[Tensor, "batch"]:
        """One number an example."""
        own, goal = self.student.take(), self.teacher.take().detach()
        return (self.projection(own) - goal).abs().flatten(1).mean(1)
