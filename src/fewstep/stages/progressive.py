"""Stage two, one rung: two DDIM half-steps of the teacher into one step of the student."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from fewstep.data.batches import Batch
from fewstep.diffusion.prediction import Denoise, diffuse
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.target import progressive_target
from fewstep.networks import Denoiser
from fewstep.stages.base import GuidanceRange, Regression, Stage, Training


class ProgressiveStage(Stage):
    """A student of `num_steps` steps from a teacher of twice as many (Meng et al. 2023, section 3.2).

    Times are i / num_steps, i uniform in 1..num_steps; t = 1 is among them, where sampling begins. The last step lands
    on t = 0, where the target is the teacher's second x up to sigma(0) = 4.5e-5.

    Args:
        student: starts as a copy of the teacher. teacher: one evaluation per call, takes w.
        The rest: see `Stage` and `GuidanceRange`.
    """

    name = "progressive"

    def __init__(
        self,
        *,
        student: Denoiser,
        teacher: Denoise,
        schedule: Schedule,
        training: Training,
        stream: str,
        num_steps: int,
        w_min: float,
        w_max: float,
    ) -> None:
        super().__init__(student=student, schedule=schedule, training=training, stream=stream)
        self.teacher = teacher
        self.num_steps = num_steps
        self.guidance = GuidanceRange(w_min, w_max)

    def regression(self, batch: Batch) -> Regression:
        x, label = batch
        t = torch.randint(1, self.num_steps + 1, (len(x),), device=x.device).double() / self.num_steps
        eps, w = torch.randn_like(x), self.guidance.draw(len(x), x.device)
        log_snr = self.schedule.log_snr(t)
        z = diffuse(x=x, eps=eps, log_snr=log_snr).z
        target = progressive_target(
            teacher=self.teacher,
            z=z,
            log_snr=log_snr,
            log_snr_mid=self.schedule.log_snr(t - 0.5 / self.num_steps),
            log_snr_end=self.schedule.log_snr(t - 1 / self.num_steps),
            label=label,
            w=w,
        )
        return Regression(self.student(z, log_snr, label, w), target, t, w)


def check_ladder(ladder: Sequence[int]) -> list[int]:
    """The ladder as a list: the steps its first teacher is run with, then those of each rung, half as many each.

    Raises:
        ValueError: fewer than two numbers, one below 1, or one that is not half of the number before it.
    """
    rungs = list(ladder)
    whole = all(type(n) is int and n >= 1 for n in rungs)
    if len(rungs) < 2 or not whole or any(a != 2 * b for a, b in pairwise(rungs)):
        raise ValueError(
            f"stage.ladder must halve from the teacher's steps to the last rung's, like [32,16,8,4,2,1], got {rungs}"
        )
    return rungs
