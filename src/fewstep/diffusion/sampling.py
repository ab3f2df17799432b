"""How a model is sampled: what a model file says, and all that a reader of a model needs to know."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.guidance import Guided, GuidedTwice
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.sampler import SAMPLERS
from fewstep.diffusion.schedule import check_time_values, uniform_time_values, uniform_times
from fewstep.diffusion.styles import Styles

GuidanceKind = Literal["two_evaluations", "three_evaluations", "input", "none"]
Direction = Literal["decode", "encode"]


@dataclass(frozen=True)
class Sampling:
    """The sampler, evaluation times, guidance and direction that a model was made for.

    Args:
        sampler: one of SAMPLERS.
        times: evaluation times in (0, 1], strictly decreasing; None: any number of uniform steps.
        guidance: two_evaluations (conditional and unconditional, combined by `guide`), three_evaluations (class and
            style, class, and neither, combined by `guide_twice`), input (the network takes w; one evaluation), or none
            (there is no w).
        direction: decode (noise to data), or encode (data to noise).

    Raises:
        ValueError: an unknown sampler, guidance or direction, bad times, or an encoder whose sampler adds noise.
    """

    sampler: str = "deterministic"
    times: tuple[float, ...] | None = None
    guidance: GuidanceKind = "two_evaluations"
    direction: Direction = "decode"

    def __post_init__(self) -> None:
        _check_choice("sampler", self.sampler, tuple(SAMPLERS))
        _check_choice("guidance", self.guidance, get_args(GuidanceKind))
        _check_choice("direction", self.direction, get_args(Direction))
        if self.direction == "encode" and self.sampler != "deterministic":
            raise ValueError(
                f"an encoder must have the deterministic sampler, got {self.sampler!r}; noise would be lost"
            )
        if self.times is not None:
            check_time_values(self.times)  # not of a tensor, whose values a plan does not have

    @classmethod
    def uniform(
        cls,
        num_steps: int,
        *,
        sampler: str = "deterministic",
        guidance: GuidanceKind = "two_evaluations",
        direction: Direction = "decode",
    ) -> "Sampling":
        """Sampling at t = 1, 1 - 1/N, ..., 1/N, and at no other number of steps."""
        times = uniform_time_values(num_steps)
        return cls(sampler=sampler, times=times, guidance=guidance, direction=direction)

    @property
    def steps(self) -> tuple[int, ...]:
        """The step counts that the model was made for, rising; empty: any.

        With the sampler `renoise` every prediction goes to t = 0, and with `flow_map` to where it is told, so that a
        subset of the n times is as good as all of them: every divisor of n is one, by every (n / k)-th time from the
        first.
        """
        if self.times is None:
            return ()
        count = len(self.times)
        if self.sampler not in ("renoise", "flow_map"):
            return (count,)
        return tuple(k for k in range(1, count + 1) if count % k == 0)

    def is_made_for(self, num_steps: int) -> bool:
        """Whether `grid(num_steps)` consists of times that the model has seen in training."""
        return self.times is None or num_steps in self.steps

    def grid(self, num_steps: int | None = None) -> Float[Tensor, "times"]:
        """The evaluation times of `num_steps` steps, float64: the model's own where it has them, else uniform.

        Raises:
            ValueError: no number of steps for a model without times of its own, or fewer than one step.
        """
        if num_steps is None and self.times is None:
            raise ValueError("a model without times of its own needs a number of steps, got none; give num_steps")
        if self.times is None or (num_steps is not None and num_steps not in self.steps):
            assert num_steps is not None
            return uniform_times(num_steps)
        own = torch.tensor(self.times, dtype=torch.float64)
        return own if num_steps is None else own[:: len(own) // num_steps]

    def guided(
        self,
        denoise: Denoise,
        null: int | Tensor,
        interval: tuple[float, float] | None = None,
        styles: Styles | None = None,
    ) -> Denoise:
        """The denoiser that a sampler calls: `Guided` or `GuidedTwice`, else `denoise` itself, which has w inside.

        `null`, `interval` and `styles` are theirs, and mean nothing to the other kinds.

        Raises:
            ValueError: three evaluations, and no styles.
        """
        if self.guidance == "three_evaluations":
            return GuidedTwice(denoise, require_styles(styles), interval)
        return Guided(denoise, null, interval) if self.guidance == "two_evaluations" else denoise

    @property
    def is_combined(self) -> bool:
        """Whether guidance combines several evaluations of the network, as of a teacher."""
        return self.evaluations > 1

    @property
    def evaluations(self) -> int:
        """Network evaluations per step and image."""
        kinds = {"two_evaluations": Guided.evaluations, "three_evaluations": GuidedTwice.evaluations}
        return kinds.get(self.guidance, 1)


def require_styles(styles: Styles | None) -> Styles:
    """The styles of data that must have them.

    Raises:
        ValueError: they have none.
    """
    if styles is None:
        raise ValueError(
            "guidance by three evaluations is of a class and of a style, and these data have no styles; use data that "
            "have both, like dataset=digits_styled, or two_evaluations"
        )
    return styles


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
