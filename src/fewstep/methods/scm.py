"""Continuous-time consistency: the limit of consistency distillation at steps of no length, by one derivative."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.data.batch import Batch
from fewstep.diffusion.flow_map import log_snr_of, start_derivative
from fewstep.diffusion.prediction import Prediction, diffuse
from fewstep.diffusion.schedule import angle, expand
from fewstep.methods.base import Method, Networks, Phase
from fewstep.methods.consistency import renoising
from fewstep.methods.derivative import Derivative, along_the_flow
from fewstep.methods.draws import Draws, standard_normal
from fewstep.methods.losses import Loss
from fewstep.methods.readings import require_identity_at_data
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.methods.training import STUDENT
from fewstep.networks.inputs import sinusoid, zeroed
from fewstep.system.validation import AtLeastOne, Positive

WEIGHTING = "weighting"  # the role of the learned weights over t
FEATURES = 64


@dataclass(frozen=True, kw_only=True)
class ContinuousConsistency(GuidedStudentSettings, Method):
    """sCM by distillation (Lu & Song 2025, algorithm 1) in the angle phi, with sigma_d = 1.

    f(z, phi) = cos(phi) z - sin(phi) F shall not change along the teacher's flow. With the tangent
    g = cos(phi) df/dphi, the second term of which counts min(1, images / tangent_warmup_images), normalised to
    g / (|g| + 0.1):

        loss = e^a(t) |F - sg(F + g)|^2 / D - a(t)

    where a(t) is learned by a small network of its own (role `weighting`). log sigma / alpha ~ N(log_mean, log_std^2).

    Args:
        levels: where the sampler evaluates, falling in (0, 1].
        log_mean, log_std: of the noise levels trained at. tangent_warmup_images: see above.
        derivative: of F along the flow, jvp or finite_difference.
        The rest: see `Method` and `GuidedStudentSettings`; `training.roles` needs weighting.

    Raises:
        ValueError: bad sampling levels, or a deviation or warm-up that is not positive.
    """

    paper: ClassVar[str] = "Lu & Song 2025 (2410.11081)"
    certainty: ClassVar[str] = "sure: read in public code; sigma_d = 1 and w as an input are ours"

    name: str = "scm"
    levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    log_mean: float = -1.0
    log_std: Positive = 1.4
    tangent_warmup_images: AtLeastOne = 100_000
    derivative: Derivative = "jvp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.phases()
        self.training.of_role(WEIGHTING)

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, WEIGHTING)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(renoising(self.levels, "input")),)

    def networks(self, nets: Networks, stream: str) -> Networks:
        require_identity_at_data(self, nets)
        nets = super().networks(nets, stream)
        return replace(nets, trained={WEIGHTING: Weighting()})

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        x, label = batch
        teacher, w = nets.teacher_and_weights(draws)
        log_snr = -2 * (self.log_mean + self.log_std * standard_normal(draws))
        t = nets.schedule.time(log_snr).clamp(1e-4, 1)
        log_snr = nets.schedule.log_snr(t)
        noised = diffuse(x=x, eps=draws.normal(), log_snr=log_snr)
        velocity = teacher(noised.z, log_snr, label, w).v

        def student(z: Tensor, phi: Tensor) -> Tensor:
            return nets.student(z, log_snr_of(phi), label, w).v

        before, change = along_the_flow(student, noised.z, angle(log_snr), velocity, self.derivative)
        share = min(1.0, step * self.training.batch_size / self.tangent_warmup_images)
        end = nets.schedule.log_snr(torch.zeros_like(t))
        tangent = consistency_tangent(
            Prediction(z=noised.z, v=before, log_snr=log_snr), end, velocity=velocity, change=change, share=share
        )
        prediction = nets.student(noised.z, log_snr, label, w).v
        error = (prediction - before - normalised(tangent)).square().flatten(1).mean(1)
        weight = nets.trained[WEIGHTING](t.to(error))
        return {
            STUDENT: Loss(weight.detach().exp() * error, t, w),
            WEIGHTING: Loss(weight.exp() * error.detach() - weight, t, w),
        }


def consistency_tangent(
    prediction: Prediction, log_snr_end: Tensor, *, velocity: Tensor, change: Tensor, share: float
) -> Tensor:
    """cos(phi) df/dphi, which weighs the noise as the paper's prior weight 1 / tan(phi) does."""
    tangent = start_derivative(prediction, log_snr_end, velocity=velocity, change=change, share=share)
    return expand(torch.cos(angle(prediction.log_snr)), tangent) * tangent


def normalised(tangent: Tensor, floor: float = 0.1) -> Tensor:
    """tangent / (|tangent| + floor), with the norm of each example."""
    norm = tangent.flatten(1).norm(dim=1)
    return tangent / expand(norm + floor, tangent)


class Weighting(nn.Module):
    """The logarithm of the loss's weight at time t, 0 at first: a linear function of sinusoids of t."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(FEATURES, 1))

    def forward(self, t: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        return self.linear(sinusoid(t / 10, FEATURES).to(self.linear.weight.dtype))[:, 0]
