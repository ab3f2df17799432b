"""PID: a student of the trajectory of each noise, whose residual in the teacher's ODE is the loss."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fewstep.data.batch import Batch
from fewstep.diffusion.sampler import ddim_step, invert_ddim
from fewstep.methods.base import Networks, Phase
from fewstep.methods.draws import Draws
from fewstep.methods.from_noise import FromNoise
from fewstep.methods.losses import Loss
from fewstep.methods.training import STUDENT
from fewstep.system.validation import AtLeastTwo


@dataclass(frozen=True, kw_only=True)
class PID(FromNoise):
    """Physics-informed distillation (Tee et al. 2024), data-free.

    The student's z at two neighbouring levels t > s implies an x, the one whose DDIM step leads from the first to the
    second (in variance-exploding terms z_t - t dz/dt by a difference quotient). It shall be the teacher's x at z_t. The
    gradient passes through both of the student's evaluations; the teacher's input is a constant. At the exact
    trajectory a residual of first order in 1/N is left.

    Args:
        num_levels: N, of the grid.
        The rest: see `FromNoise`.

    Raises:
        ValueError: fewer than two levels.
    """

    paper: ClassVar[str] = "Tee et al. 2024 (2411.08378)"
    certainty: ClassVar[str] = "sure: read in the authors' code; levels uniform in t, the plain square and w are ours"

    name: str = "pid"
    num_levels: AtLeastTwo = 250

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        label = batch.label
        teacher, w = nets.teacher_and_weights(draws)
        eps = draws.normal()
        t = draws.integers(1, self.num_levels + 1).double() / self.num_levels
        s = (t - 1 / self.num_levels).clamp(min=0)
        log_snr_t, log_snr_s = nets.schedule.log_snr(t), nets.schedule.log_snr(s)
        z_t = ddim_step(self.predict_from_noise(nets, eps, t, label, w), log_snr_t)
        z_s = ddim_step(self.predict_from_noise(nets, eps, s, label, w), log_snr_s)
        implied = invert_ddim(z=z_t, z_next=z_s, log_snr=log_snr_t, log_snr_next=log_snr_s).x
        with torch.no_grad():
            target = teacher(z_t.detach(), log_snr_t, label, w).x
        return {STUDENT: Loss((implied - target).square().flatten(1).mean(1), t, w)}
