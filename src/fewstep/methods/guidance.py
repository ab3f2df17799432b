"""Guidance distillation: the two evaluations of guidance into one w-conditioned student."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fewstep.data.batch import Batch
from fewstep.diffusion.guidance import log_snr_interval
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.methods.base import Networks, Parent, Phase, Regression, Times, Weights
from fewstep.methods.critic import CRITIC
from fewstep.methods.draws import Draws
from fewstep.methods.feature_matching import ATTENTION, PROJECTION, FeatureMatching, with_feature_loss
from fewstep.methods.guidance_range import Draw, GuidanceRange
from fewstep.methods.losses import Loss
from fewstep.methods.student_settings import StudentSettings
from fewstep.system.validation import NotNegative


@dataclass(frozen=True, kw_only=True)
class Guidance(StudentSettings, Regression):
    """Regress to the guided teacher over t ~ U[0, 1] and w of the guidance range (Meng et al. 2023, section 3.1).

    Args:
        w_min, w_max, w_draw, w_values: see `GuidanceRange`.
        guidance_interval: (low, high), the times t between which the teacher is guided; None is all of them.
        feature_matching, attention_matching: weights of the errors of the student's features in the middle and
            of the attention nearest to it, see `FeatureMatching`; 0 is none.
        The rest: see `Method` and `StudentSettings`.

    Raises:
        ValueError: a negative weight, a bad range or interval, or matching without a learning rate of its own.
    """

    paper: ClassVar[str] = "Meng et al. 2023 (2210.03142), stage one"
    optional_roles: ClassVar[tuple[str, ...]] = (PROJECTION, ATTENTION, CRITIC)
    certainty: ClassVar[str] = "sure: the formula; loss weights and draws of w are ours to choose"

    name: str = "guidance"
    w_min: float = 0.0
    w_max: float = 4.0
    w_draw: Draw = "uniform"
    w_values: Sequence[float] | None = None
    guidance_interval: tuple[float, ...] | None = None
    feature_matching: NotNegative = 0.0
    attention_matching: NotNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.guidance(None)
        log_snr_interval(CosineSchedule(), self.guidance_interval)  # refuses what is no interval
        if self.feature_matching and self.judge is not None:
            raise ValueError(
                "stage.feature_matching and stage.judge each read the teacher's latest call, and there is but one; use "
                "stage.feature_matching=0 or stage.judge=null"
            )
        for role in self.roles:
            self.training.of_role(role)

    @property
    def interval(self) -> tuple[float, ...] | None:
        return self.guidance_interval

    @property
    def roles(self) -> tuple[str, ...]:
        return (*super().roles, *self.matched)

    @property
    def matched(self) -> dict[str, float]:
        """The weight of each role that matches something."""
        weights = {PROJECTION: self.feature_matching, ATTENTION: self.attention_matching}
        return {role: weight for role, weight in weights.items() if weight}

    def parent(self) -> Parent:
        return Parent(guidance=("two_evaluations",))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(Sampling(guidance="input")),)

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange:
        return GuidanceRange(self.w_min, self.w_max, self.w_draw, self.w_values)

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        student, teacher = nets.student, nets.frozen_teacher
        matching = {role: FeatureMatching.between(student, teacher, stream, role) for role in self.matched}
        return replace(nets, trained={**nets.trained, **matching})

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        return with_feature_loss(super().losses(batch, nets, draws, step=step, phase=phase), nets, self.matched)

    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        return nets.frozen_teacher(noised.z, noised.log_snr, label, w)
