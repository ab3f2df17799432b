"""Improved consistency training: neighbouring levels of a grid that doubles while it trains."""

from dataclasses import dataclass
from math import floor, log2
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.methods.draws import Draws
from fewstep.methods.ect import SigmaPair, TunedConsistency
from fewstep.system.validation import AtLeastTwo, NotNegative, Positive

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # of the grid (Karras et al. 2022)


@dataclass(frozen=True, kw_only=True)
class ImprovedConsistency(TunedConsistency):
    """iCT (Song & Dhariwal 2024): levels of Karras' grid, the pair (i + 1, i) with the chance of a log-normal's mass.

    The grid has N(k) = min(first_levels 2^floor(k / K'), most_levels) + 1 levels at step k of K, with
    K' = K / (log2 floor(most_levels / first_levels) + 1). p(i) ~ erf((ln sigma_{i+1} - m) / (sqrt 2 s)) - the same at
    i.

    Args:
        first_levels, most_levels: see above. log_mean, log_std: m and s.
        The rest: see `TunedConsistency`; the published c is 0.00054 sqrt(D).

    Raises:
        ValueError: a curriculum that cannot be.
    """

    paper: ClassVar[str] = "Song & Dhariwal 2024 (2310.14189)"
    certainty: ClassVar[str] = (
        "sure: two independent implementations, which follow the data; hop=teacher with w is ours"
    )

    name: str = "ict"
    huber: NotNegative = 0.00054
    first_levels: AtLeastTwo = 10
    most_levels: AtLeastTwo = 1280
    log_mean: float = -1.1
    log_std: Positive = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_levels > self.most_levels:
            raise ValueError(
                f"stage.first_levels must be at most stage.most_levels, got {self.first_levels} and {self.most_levels}"
            )

    def num_levels(self, done: float) -> int:
        """N when this share of the training is done."""
        doublings = floor(log2(self.most_levels // self.first_levels)) + 1
        return min(self.first_levels * 2 ** floor(done * doublings), self.most_levels) + 1

    def pair(self, draws: Draws, done: float) -> SigmaPair:
        sigmas = karras(self.num_levels(done))
        below = torch.special.erf((sigmas.log() - self.log_mean) / (2**0.5 * self.log_std))
        chances = (below[1:] - below[:-1]).cumsum(0)
        index = torch.searchsorted(chances / chances[-1], draws.uniform().double().cpu()).clamp(max=len(sigmas) - 2)
        return sigmas[index + 1].to(draws.device), sigmas[index].to(draws.device)


def karras(count: int) -> Float[Tensor, "count"]:
    """Rising levels of sigma / alpha from 0.002 to 80 (Karras et al. 2022, eq. 5), float64."""
    share = torch.linspace(0, 1, count, dtype=torch.float64)
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    return (low + share * (high - low)) ** RHO
