"""How a method's networks are optimised, whatever the method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import cos, inf, pi
from typing import Any, ClassVar

from torch.optim import AdamW, Optimizer

from fewstep.diffusion.loss import GUIDANCE_WEIGHTS, WEIGHTS
from fewstep.system.validation import AtLeastOne, Bounded, Count, Positive, ShareBelowOne

Decay = Callable[[float], float]
"""Share of the training done, in [0, 1) -> what the learning rate is multiplied by."""

STUDENT = "student"


def linear(done: float) -> float:
    """From 1 down to 0."""
    return 1 - done


def cosine(done: float) -> float:
    """From 1 down to 0 along half a cosine (Loshchilov & Hutter 2017)."""
    return (1 + cos(pi * done)) / 2


def constant(done: float) -> float:
    """1 throughout."""
    return 1.0


@dataclass(frozen=True)
class RoleTraining:
    """What a trained network beside the student has for itself; the optimiser's class and the warm-up are shared.

    Args:
        learning_rate, gradient_clip: as in `Training`.
        betas, weight_decay: of the optimiser, None for those of the student.

    Raises:
        ValueError: a learning rate or a norm that is not positive.
    """

    learning_rate: float
    gradient_clip: float = 1.0
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate < inf and self.gradient_clip > 0):
            raise ValueError(
                "stage.training.roles need a positive learning_rate and gradient_clip, got "
                f"{self.learning_rate} and {self.gradient_clip}"
            )


@dataclass(frozen=True, kw_only=True)
class Training(Bounded):
    """How a student is optimised.

    Args:
        images: budget; batch_size: images per optimiser step over all processes.
        evaluations: the budget of all phases in network evaluations, a backward pass counted 2; None for images.
        learning_rate: rises over `warmup_images`, then follows `decay` over the budget.
        gradient_clip: largest norm of the gradient.
        ema_decay: per step, of the averaged weights that become the model; 0 keeps none. It starts lower:
            min(ema_decay, (1 + step) / (10 + step)).
        weight: of the squared error over the noise, one of `fewstep.diffusion.loss.WEIGHTS`; guidance_weight: uniform
            or relative, of w where the student has one.
        optimizer: parameter groups -> optimiser, as a `_partial_` of a class of torch.optim.
        decay: of the learning rate; `linear`, `cosine`, `constant` or another function of the share done.
        roles: settings of the other trained networks, by role.

    Raises:
        ValueError: a value outside its range.
    """

    settings_key: ClassVar[str] = "stage.training"

    images: AtLeastOne = 400_000
    batch_size: AtLeastOne = 256
    learning_rate: Positive = 5e-4
    warmup_images: Count = 10_000
    gradient_clip: Positive = 1.0
    ema_decay: ShareBelowOne = 0.999
    weight: str = "snr_plus_one"
    evaluations: AtLeastOne | None = None
    guidance_weight: str = "uniform"
    optimizer: Callable[..., Optimizer] = field(
        default_factory=lambda: partial(AdamW, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    )
    decay: Decay = linear
    roles: Mapping[str, RoleTraining] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size > self.images:
            raise ValueError(
                "stage.training needs 1 <= batch_size <= images, got "
                f"batch_size={self.batch_size} and images={self.images}"
            )
        if self.weight not in WEIGHTS:
            raise ValueError(f"stage.training.weight must be one of {', '.join(WEIGHTS)}, got {self.weight!r}")
        if self.guidance_weight not in GUIDANCE_WEIGHTS:
            raise ValueError(
                f"stage.training.guidance_weight must be one of {', '.join(GUIDANCE_WEIGHTS)}, got "
                f"{self.guidance_weight!r}"
            )

    @property
    def num_steps(self) -> int:
        """Optimiser steps: the budget in whole batches, the last one rounded up."""
        return -(-self.images // self.batch_size)

    def learning_rate_scale(self, step: int) -> float:
        """Linear warm-up times `decay`."""
        warm_up = min(1.0, (step + 1) * self.batch_size / max(1, self.warmup_images))
        return warm_up * self.decay(min(1.0, step / self.num_steps))

    def of_role(self, role: str) -> RoleTraining:
        """The settings of one trained network.

        Raises:
            ValueError: there are none.
        """
        if role == STUDENT:
            return RoleTraining(self.learning_rate, self.gradient_clip)
        if role not in self.roles:
            raise ValueError(
                f"stage.training.roles.{role}.learning_rate must be given: this method trains {role} beside the "
                "student, with a learning rate of its own"
            )
        return self.roles[role]

    def group(self, role: str) -> dict[str, Any]:
        """The arguments of the role's parameter group."""
        own = self.of_role(role)
        given = {"lr": own.learning_rate, "betas": own.betas, "weight_decay": own.weight_decay}
        return {key: value for key, value in given.items() if value is not None}
