"""MeanFlow: a network of the mean velocity between two times, learned by the identity that it obeys."""

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.flow_map import log_snr_of, mean_velocity
from fewstep.diffusion.guidance import nulls, nulls_but
from fewstep.diffusion.prediction import Condition, Prediction, diffuse
from fewstep.diffusion.schedule import Images, angle, expand
from fewstep.methods.base import Networks, Phase, Times, Weights
from fewstep.methods.derivative import along_the_flow
from fewstep.methods.draws import Draws, standard_normal
from fewstep.methods.flow_map import AnyStepStudent, predict_to
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.losses import Loss
from fewstep.methods.training import STUDENT
from fewstep.system.validation import NotNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class MeanFlow(AnyStepStudent):
    """Improved MeanFlow as distillation (Geng et al. 2025), in the angle.

    The mean velocity u of the flow from phi down to psi obeys v = u + (phi - psi) du/dphi along the flow. With the
    derivative as a constant, V = u + d sg(du/dphi) regresses to the teacher's v: a target without the network. The
    mean square of the error is divided by (the squared norm + 0.01)^power.

    Args:
        equal_share: of a batch, whose two times are one: u is then v itself.
        logit_mean, logit_std: t and s are logistic functions of N(logit_mean, logit_std^2), in their order.
        power: see above.
        The rest: see `AnyStepStudent`.

    Raises:
        ValueError: a share outside [0, 1], or a deviation or power that cannot be.
    """

    paper: ClassVar[str] = "Geng et al. 2025 (2505.13447; improved: 2512.02012)"
    certainty: ClassVar[str] = "sure: read in the authors' code; the circular path and the input s for h are ours"

    name: str = "meanflow"
    equal_share: Share = 0.5
    logit_mean: float = -0.4
    logit_std: Positive = 1.0
    power: NotNegative = 1.0

    def without_teacher(self) -> "MeanFlowTraining":
        return MeanFlowTraining(**{each.name: getattr(self, each.name) for each in fields(self)})

    def velocities(self, noised: Prediction, label: Condition, w: Weights, nets: Networks) -> tuple[Images, Images]:
        """What V regresses to, and the velocity along which u is differentiated: both are the teacher's v."""
        velocity = nets.frozen_teacher(noised.z, noised.log_snr, label, w).v
        return velocity, velocity

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        x, label = batch
        w = nets.w_range.draw(draws)
        t, s = self.draw_times(draws)
        log_snr, end = nets.schedule.log_snr(t), nets.schedule.log_snr(s)
        noised = diffuse(x=x, eps=draws.normal(), log_snr=log_snr)
        label, w = self.draw_condition(label, w, nets, draws)
        target, velocity = self.velocities(noised, label, w, nets)

        def student(z: Images, phi: Times) -> Images:
            there = log_snr_of(phi)
            return mean_velocity(predict_to(nets.student, z, log_snr=there, log_snr_end=end, label=label, w=w), end)

        _, change = along_the_flow(student, noised.z, angle(log_snr), velocity, self.derivative)
        step_length = expand(angle(log_snr) - angle(end), x)
        error = (student(noised.z, angle(log_snr)) + step_length * change - target).square().flatten(1)
        return {STUDENT: Loss(error.mean(1) / (error.detach().sum(1) + 0.01) ** self.power, t, w)}

    def draw_times(self, draws: Draws) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """The two times t >= s of each example."""
        first, second = (torch.sigmoid(self.logit_mean + self.logit_std * standard_normal(draws)) for _ in range(2))
        t, s = torch.maximum(first, second), torch.minimum(first, second)
        return t, torch.where(draws.uniform() < self.equal_share, t, s)

    def draw_condition(self, label: Condition, w: Weights, nets: Networks, draws: Draws) -> tuple[Condition, Weights]:
        """The condition and weight that each example is trained with; its own."""
        return label, w


@dataclass(frozen=True, kw_only=True)
class MeanFlowTraining(MeanFlow):
    """MeanFlow from data, stage=meanflow with teacher=none: guidance is learned inside of the target.

    V regresses to v + w / (1 + w) (v_w(z, c) - v_0(z)), v of the example and its noise, v_w and v_0 the network's own
    at s = t, of which v_w is the guided velocity at the fixed point; u is differentiated along v_w. The tenth of the
    examples that lose their label have w = 0.

    Raises:
        ValueError: a setting that is of a student of a teacher, or no range of w.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("student", "adapter") if getattr(self, name) is not None]
        if given or self.clip_target:
            name = given[0] if given else "clip_target"
            raise ValueError(f"stage.{name} is about a teacher, and teacher=none says there is none")
        self.guidance(None)

    def parent(self) -> None:
        return None

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange:
        if self.w_min is None or self.w_max is None:
            raise ValueError(
                "stage.w_min and stage.w_max must be given where teacher=none, got "
                f"{self.w_min} and {self.w_max}; 0 and 4 are usual"
            )
        return GuidanceRange(self.w_min, self.w_max)

    def draw_condition(self, label: Condition, w: Weights, nets: Networks, draws: Draws) -> tuple[Condition, Weights]:
        kept = draws.uniform() >= 0.1
        return nulls_but(kept, label, nets.student.null), torch.where(kept, w, 0.0)

    @torch.no_grad()
    def velocities(self, noised: Prediction, label: Condition, w: Weights, nets: Networks) -> tuple[Images, Images]:
        here = noised.log_snr
        own = predict_to(nets.student, noised.z, log_snr=here, log_snr_end=here, label=label, w=w).v
        null = nulls(label, nets.student.null)
        plain = predict_to(nets.student, noised.z, log_snr=here, log_snr_end=here, label=null, w=torch.zeros_like(w)).v
        return noised.v + expand(w / (1 + w), own) * (own - plain), own
