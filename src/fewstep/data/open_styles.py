"""Labels of which a share has no style: what is learned from them is the class of any style."""

import torch
from jaxtyping import Bool
from torch import Tensor

from fewstep.system.seeds import seed_for


def check_share(any_style: float) -> float:
    """The share, refused outside (0, 1).

    Raises:
        ValueError: no label would be of any style, or all of them.
    """
    if not 0 < any_style < 1:
        raise ValueError(
            f"dataset.any_style must be above 0 and below 1, got {any_style}; a teacher needs labels with a style and "
            "without, the usual share is 0.2"
        )
    return any_style


def without_style(count: int, any_style: float, stream: str, step: int) -> Bool[Tensor, "count"]:
    """Which examples of a step's batch lose their style."""
    generator = torch.Generator().manual_seed(seed_for(stream, "style", step))
    return torch.rand(count, generator=generator) < any_style
