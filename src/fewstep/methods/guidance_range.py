"""The guidance weights that a student is made for, and how one is drawn for each example."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Weights
from fewstep.methods.draws import Draws

Draw = Literal["uniform", "log_uniform", "list"]


@dataclass(frozen=True)
class GuidanceRange:
    """A range of guidance weights w and a distribution over it.

    Args:
        w_min, w_max: the range; w_min = w_max is one fixed w.
        w_draw: uniform in w (Meng et al. 2023), log_uniform in 1 + w, the scale of diffusers, or list.
        w_values: what list draws from, each alike; w_min and w_max are then its ends.
        second: of a second condition, whose weight is drawn independently; None where there is one weight.

    Raises:
        ValueError: w_min negative or above w_max, an unknown draw, or values that do not go with it.
    """

    w_min: float
    w_max: float
    w_draw: Draw = "uniform"
    w_values: Sequence[float] | None = None
    second: "GuidanceRange | None" = None

    def __post_init__(self) -> None:
        listed = self.w_values is not None
        if self.w_draw not in get_args(Draw) or (self.w_draw == "list") != listed or (listed and not self.w_values):
            raise ValueError(
                f"stage.w_draw must be one of {', '.join(get_args(Draw))}, and list alone has stage.w_values, got "
                f"{self.w_draw!r} with {'none' if self.w_values is None else list(self.w_values)}"
            )
        if self.w_values:
            object.__setattr__(self, "w_values", tuple(float(w) for w in self.w_values))
            object.__setattr__(self, "w_min", min(self.w_values))
            object.__setattr__(self, "w_max", max(self.w_values))
        if not 0 <= self.w_min <= self.w_max < inf:
            raise ValueError(
                f"the guidance range must satisfy 0 <= w_min <= w_max, got w_min={self.w_min:g}, "
                f"w_max={self.w_max:g}; w = 0 is no guidance (diffusers' guidance_scale is 1 + w)"
            )

    def draw(self, draws: Draws) -> Weights:
        """A weight of each example; (batch, 2) where there is a second one."""
        w = self.quantile(draws.uniform())
        return w if self.second is None else torch.stack([w, self.second.quantile(draws.uniform())], 1)

    def quantile(self, share: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """The w below which that share of the draws lies, a share in [0, 1); of U[0, 1) it makes draws of w."""
        if self.w_values:
            values = torch.tensor(self.w_values, device=share.device)
            return values[(share * len(values)).long().clamp(max=len(values) - 1)]
        if self.w_draw == "log_uniform":
            return (1 + self.w_min) * ((1 + self.w_max) / (1 + self.w_min)) ** share - 1
        return self.w_min + (self.w_max - self.w_min) * share

    def narrowed(self, w_min: float | None, w_max: float | None) -> "GuidanceRange":
        """This range, or the part of it that a method asks for.

        Raises:
            ValueError: the part leaves the range, which the parent was made for.
        """
        if w_min is None and w_max is None:
            return self
        low, high = self.w_min if w_min is None else w_min, self.w_max if w_max is None else w_max
        part = GuidanceRange(low, high, "uniform" if self.w_draw == "list" else self.w_draw, second=self.second)
        if not self.w_min <= low <= high <= self.w_max:
            raise ValueError(
                f"stage.w_min and stage.w_max must lie in the parent's range [{self.w_min:g}, {self.w_max:g}], got "
                f"{low:g} and {high:g}"
            )
        return part


def chosen_weights(parent: GuidanceRange | None, w_min: float | None, w_max: float | None) -> GuidanceRange:
    """The weights of a student: its parent's, or those of them that are asked for; of a teacher's, all that are.

    Raises:
        ValueError: a part outside the parent's range, or no range where the parent has none.
    """
    if parent is not None:
        return parent.narrowed(w_min, w_max)
    if w_min is None or w_max is None:
        raise ValueError(
            "stage.w_min and stage.w_max must be given where the parent is a teacher guided by two evaluations, which "
            f"has no range of its own, got {w_min} and {w_max}; 0 and 4 are usual"
        )
    return GuidanceRange(w_min, w_max)
