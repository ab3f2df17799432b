"""A batch: examples and their conditions. Without Lightning, for methods know torch alone."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Condition


class Batch(NamedTuple):
    """Examples, or noise where a method needs no data, and the condition of each."""

    x: Float[Tensor, "batch *shape"]
    label: Condition


class Pairs(NamedTuple):
    """Samples of a teacher, and the condition, noise and guidance weight that each was made from."""

    x: Float[Tensor, "batch *shape"]
    label: Condition
    noise: Float[Tensor, "batch *shape"]
    w: Float[Tensor, "batch"]


def from_uint8(images: Tensor) -> Float[Tensor, "batch *shape"]:
    """uint8 in 0..255 to float32 in [-1, 1]."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)  # in place: one array, not three


def as_batch(given: Any) -> Batch | Pairs:
    """What a loader of anybody's gives, as a batch: examples and their conditions, or examples alone, all of class 0.

    Args:
        given: a tensor, or a tuple or list of one or two; bytes are read as images in [-1, 1].

    Raises:
        ValueError: it is nothing of the kind.
    """
    if isinstance(given, Batch | Pairs):
        return given
    parts = [given] if isinstance(given, Tensor) else [*given] if isinstance(given, tuple | list) else []
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) and part.ndim for part in parts):
        what = (
            type(given).__name__ if not parts else f"{len(parts)} parts, {', '.join(type(p).__name__ for p in parts)}"
        )
        raise ValueError(f"a batch must be a tensor of examples, or (examples, labels), got {what}")
    x = from_uint8(parts[0]) if parts[0].dtype == torch.uint8 else parts[0]
    if not x.is_floating_point() or (parts[1:] and len(parts[1]) != len(x)):
        raise ValueError(
            f"a batch must have floating point examples, or bytes, and as many labels, got {x.dtype} "
            f"{' and '.join(str(tuple(part.shape)) for part in parts)}"
        )
    label = parts[1] if parts[1:] else torch.zeros(len(x), dtype=torch.long, device=x.device)
    return Batch(x.float(), label if label.is_floating_point() else label.long())


def split(batch: Batch | Pairs, parts: int) -> list[Batch | Pairs]:
    """The rows in so many batches, one after the other."""
    return [type(batch)(*rows) for rows in zip(*(each.chunk(parts) for each in batch), strict=True)]
