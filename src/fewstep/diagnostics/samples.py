"""What samples look like as a whole, beside the data and the teacher's: contrast, saturation, diversity."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.diffusion.schedule import Images

AT_THE_LIMIT = 0.01  # of half the range: what is so near counts as there
ENOUGH = 8  # degrees of freedom that a diversity needs


@dataclass(frozen=True)
class Limits:
    """The range of the data's values: of pixels and points what it is, of latents what the probe's are."""

    low: float
    high: float

    @classmethod
    def of(cls, facts: DataFacts, x: Images) -> "Limits":
        return cls(float(x.min()), float(x.max())) if facts.latent is not None else cls(facts.low, facts.high)

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2 or 1.0


@dataclass(frozen=True)
class Look:
    """Samples in four numbers.

    Attributes:
        contrast: standard deviation of an example's values, the mean over examples; of points, of a coordinate.
        saturation: share of values at or beyond the data's limits.
        excess: mean distance of all values beyond the limits, in half ranges.
        diversity: standard deviation of a value within a class, or None where too few examples share one.
    """

    contrast: float
    saturation: float
    excess: float
    diversity: float | None


def look_at(x: Images, cell: Int[Tensor, "batch"], limits: Limits) -> Look:
    """The four numbers of samples (or data) of which those in one `cell` share their class."""
    x = x.detach().double().cpu()
    contrast = x.flatten(1).std(1, correction=0).mean() if x.ndim > 2 else x.std(0, correction=0).mean()
    beyond = (limits.low - x).clamp(min=0) + (x - limits.high).clamp(min=0)
    near = AT_THE_LIMIT * limits.half
    return Look(
        contrast=float(contrast),
        saturation=float(((x <= limits.low + near) | (x >= limits.high - near)).double().mean()),
        excess=float(beyond.mean() / limits.half),
        diversity=within_class(x, cell),
    )


def within_class(x: Float[Tensor, "batch *shape"], cell: Int[Tensor, "batch"]) -> float | None:
    """Pooled standard deviation within cells: sqrt(sum_i |x_i - mean of its cell|^2 / (n - number of cells))."""
    x = x.flatten(1)
    _, number, count = cell.unique(return_inverse=True, return_counts=True)
    freedom = len(x) - len(count)
    if freedom < ENOUGH:
        return None
    means = torch.zeros(len(count), x.shape[1], dtype=x.dtype).index_add(0, number, x) / count[:, None]
    return float(((x - means[number]).square().sum(0) / freedom).mean().sqrt())
