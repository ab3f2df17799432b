"""Diversity distillation: a base model takes the first steps of a few-step student's sampler, and the student the rest.

What an image shows is decided in the first steps, where students lose diversity. A student lives on the base's own
marginals, so that it goes on from any z of the base at one of its levels; nothing is trained (Gandikota & Bau 2025).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Condition, Denoise
from fewstep.diffusion.sampler import sample_until
from fewstep.diffusion.schedule import Images, Schedule


@dataclass(frozen=True)
class FirstSteps:
    """The part of a base model in a hybrid: `steps` DDIM steps from the noise down to the student's level `level`.

    Args:
        denoise: the base.
        steps: of equal length in time; each of them is finer than those of the student that they replace, if there are
            more than `level`.
        w: the base's own guidance weight. At 0 a guided base is its conditional branch alone, one evaluation a step.
        level: index of the student's time that the base goes down to; so many of the student's steps are left out.

    Raises:
        ValueError: `steps` or `level` below 1, or a negative w.
    """

    denoise: Denoise
    steps: int = 1
    w: float = 0.0
    level: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.level) < 1 or not self.w >= 0:
            given = f"{self.steps}, {self.level} and {self.w:g}"
            raise ValueError(f"a base takes at least 1 step to at least level 1, at w >= 0, got {given}")

    @property
    def branch(self) -> Denoise:
        """The denoiser that is called: `denoise`, or at w = 0 the conditional one in it, which says the same."""
        return self.denoise.denoise if isinstance(self.denoise, Guided) and self.w == 0 else self.denoise

    @property
    def evaluations(self) -> int:
        """Network evaluations of these steps per image."""
        return self.steps * (self.branch.evaluations if isinstance(self.branch, Guided) else 1)

    def remaining(self, times: Float[Tensor, "times"]) -> Float[Tensor, "remaining"]:
        """The student's `times` from `level` on, at which it is evaluated.

        Raises:
            ValueError: there are none.
        """
        if self.level >= len(times):
            raise ValueError(
                f"after a base that goes down to level {self.level} a student needs more steps than {self.level}, got "
                f"{len(times)}; a student made for one step takes no base"
            )
        return times[self.level :]

    @torch.no_grad()
    def take(
        self, noise: Images, *, schedule: Schedule, times: Float[Tensor, "times"], label: Condition
    ) -> tuple[Images, Float[Tensor, "remaining"]]:
        """z at the student's level `level`, and the times that remain: `sample` goes on from them.

        Args:
            noise: z at times[0].
            schedule, times: the student's; what the two models agree on is the log-SNR, not t.

        Raises:
            ValueError: see `remaining`.
        """
        remaining = self.remaining(times)
        first, until = float(times[0]), float(remaining[0])
        own = [first + (until - first) * step / self.steps for step in range(self.steps)]
        count = len(noise)
        z = sample_until(
            self.branch,
            noise,
            until=torch.full((count,), until, dtype=torch.float64, device=noise.device),
            lowest=until,
            schedule=schedule,
            times=own,
            label=label,
            w=torch.full((count,), float(self.w), device=noise.device),
        )
        return z, remaining
