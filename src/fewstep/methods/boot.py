"""BOOT: a student of the trajectory of each noise, bootstrapped by teacher steps from its own states."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fewstep.data.batch import Batch
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.sampler import ddim_step, invert_ddim
from fewstep.diffusion.schedule import expand
from fewstep.methods.base import Networks, Phase
from fewstep.methods.draws import Draws
from fewstep.methods.from_noise import FromNoise
from fewstep.methods.losses import Loss
from fewstep.methods.training import STUDENT
from fewstep.system.validation import AtLeastTwo, NotNegative


@dataclass(frozen=True, kw_only=True)
class Boot(FromNoise):
    """Data-free bootstrapping (Gu et al. 2023): the student at s is one teacher step on from itself at t = s + 1/N.

    From noise eps the student gives z_t; the teacher's DDIM step takes it to z_s. The student's prediction for its step
    from eps to s regresses to the one that lands there, with the weight 1 / (1 - rho)^2, rho = (sigma_s / alpha_s) /
    (sigma_t / alpha_t); at the noise itself it regresses to the teacher, with the weight `boundary`. On the grid of N
    levels its fixed point is the teacher's N-step DDIM.

    Args:
        num_levels: N. boundary: see above.
        The rest: see `FromNoise`.

    Raises:
        ValueError: fewer than two levels, or a negative weight.
    """

    paper: ClassVar[str] = "Gu et al. 2023 (2306.05544)"
    certainty: ClassVar[str] = "the objective is sure; N, the weight of the boundary, the optimiser and w are ours"

    name: str = "boot"
    num_levels: AtLeastTwo = 25
    boundary: NotNegative = 0.1

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        label = batch.label
        teacher, w = nets.teacher_and_weights(draws)
        eps = draws.normal()
        t = draws.integers(1, self.num_levels + 1).double() / self.num_levels
        s, one = (t - 1 / self.num_levels).clamp(min=0), torch.ones_like(t)
        log_snr_t, log_snr_s, start = (nets.schedule.log_snr(each) for each in (t, s, one))
        with torch.no_grad():
            z = ddim_step(self.predict_from_noise(nets, eps, t, label, w), log_snr_t)
            landed = ddim_step(teacher(z, log_snr_t, label, w), log_snr_s)
            target = invert_ddim(z=eps, z_next=landed, log_snr=start, log_snr_next=log_snr_s)
            first = teacher(eps, start, label, w)
        error = mean_square(self.predict_from_noise(nets, eps, s, label, w), target)
        error = error / expand(-torch.expm1((log_snr_t - log_snr_s) / 2), error).square()
        at_noise = mean_square(self.predict_from_noise(nets, eps, one, label, w), first)
        return {STUDENT: Loss(error + self.boundary * at_noise, s, w)}


def mean_square(prediction: Prediction, target: Prediction) -> torch.Tensor:
    """The mean square of the difference in v of each example; at pure noise v is -x."""
    return (prediction.v - target.v).square().flatten(1).mean(1)
