"""Statistics of samples, comparable with the teacher's and the data's: contrast, saturation, excess, diversity."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.diffusion.schedule import Images

MARGIN = 0.01  # of half the range: values so near a limit count as saturated
MIN_DEGREES_OF_FREEDOM = 8  # of an estimate of the diversity


def limits_of(facts: DataFacts, x: Images | None) -> tuple[float, float]:
    """The range of the data's values: the known one of pixels and points, that of the examples `x` of latents."""
    return (facts.low, facts.high) if facts.latent is None or x is None else (float(x.min()), float(x.max()))


@dataclass(frozen=True)
class SampleStatistics:
    """Four numbers of a set of samples.

    Attributes:
        contrast: standard deviation of an example's values, averaged over examples; of points, of a coordinate.
        saturation: share of values at or beyond the data's limits.
        excess: mean distance beyond the limits over all values, in half ranges.
        diversity: standard deviation of a value within a class; None where too few examples share one.
    """

    contrast: float
    saturation: float
    excess: float
    diversity: float | None

    @classmethod
    def of(cls, x: Images, cell: Int[Tensor, "batch"], limits: tuple[float, float]) -> "SampleStatistics":
        """The statistics of samples or data; those of one `cell` share their class."""
        x = x.detach().double().cpu()
        contrast = x.flatten(1).std(1, correction=0).mean() if x.ndim > 2 else x.std(0, correction=0).mean()
        low, high = limits
        half = (high - low) / 2 or 1.0
        beyond, margin = (low - x).clamp(min=0) + (x - high).clamp(min=0), MARGIN * half
        return cls(
            contrast=float(contrast),
            saturation=float(((x <= low + margin) | (x >= high - margin)).double().mean()),
            excess=float(beyond.mean() / half),
            diversity=within_class_deviation(x, cell),
        )


def within_class_deviation(x: Float[Tensor, "batch *shape"], cell: Int[Tensor, "batch"]) -> float | None:
    """Pooled standard deviation within cells: sqrt(sum_i |x_i - mean of its cell|^2 / (n - number of cells))."""
    x = x.flatten(1)
    _, number, count = cell.unique(return_inverse=True, return_counts=True)
    freedom = len(x) - len(count)
    if freedom < MIN_DEGREES_OF_FREEDOM:
        return None
    means = torch.zeros(len(count), x.shape[1], dtype=x.dtype).index_add(0, number, x) / count[:, None]
    return float(((x - means[number]).square().sum(0) / freedom).mean().sqrt())
