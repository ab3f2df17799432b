"""Attributes of images that are measured, not learnt: what a slider may go along."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Pictures = Float[Tensor, "count channels height width"]
Measured = Float[Tensor, "count"]

LEAST = 1e-6  # ink or outline, where there is none


def slant(x: Pictures) -> Measured:
    """Shear of the ink of bright strokes: its covariance of column and row over the variance of the row.

    0 is upright; positive leans to the right going down.
    """
    ink = (x.mean(1) + 1) / 2
    rows, columns = (torch.arange(size, dtype=x.dtype, device=x.device) for size in ink.shape[1:])
    total = ink.sum((1, 2), keepdim=True).clamp(min=LEAST)
    row = rows[:, None] - (ink * rows[:, None]).sum((1, 2), keepdim=True) / total
    column = columns - (ink * columns).sum((1, 2), keepdim=True) / total
    return (ink * row * column).sum((1, 2)) / (ink * row.square()).sum((1, 2)).clamp(min=LEAST)


def thickness(x: Pictures) -> Measured:
    """Width of bright strokes in pixels: twice the area of the ink over its outline, the total variation."""
    ink = torch.nn.functional.pad((x.mean(1) + 1) / 2, (1, 1, 1, 1))
    outline = ink.diff(dim=1).abs().sum((1, 2)) + ink.diff(dim=2).abs().sum((1, 2))
    return 2 * ink.sum((1, 2)) / outline.clamp(min=LEAST)


def brightness(x: Pictures) -> Measured:
    """Mean of all values."""
    return x.mean((1, 2, 3))


def warmth(x: Pictures) -> Measured:
    """Mean red minus mean blue.

    Raises:
        ValueError: the images are not RGB.
    """
    if x.shape[1] != 3:
        raise ValueError(f"the attribute warmth is of RGB images, and these have {x.shape[1]} channel(s)")
    return x[:, 0].mean((1, 2)) - x[:, 2].mean((1, 2))


ATTRIBUTES: dict[str, Callable[[Tensor], Tensor]] = {f.__name__: f for f in (slant, thickness, brightness, warmth)}


def outer_thirds(
    measured: Measured, label: Int[Tensor, "count"]
) -> tuple[Bool[Tensor, "count"], Bool[Tensor, "count"]]:
    """The upper and the lower third of each class, so that the two have the same classes.

    Raises:
        ValueError: a class with fewer than three images.
    """
    upper, lower = torch.zeros(2, len(measured), dtype=torch.bool)
    for each in label.unique():
        own = torch.where(label == each)[0]
        if len(own) < 3:
            raise ValueError(f"thirds need three images of each class, and class {int(each)} has {len(own)}")
        order, third = own[measured[own].argsort(stable=True)], len(own) // 3
        lower[order[:third]], upper[order[-third:]] = True, True
    return upper, lower
