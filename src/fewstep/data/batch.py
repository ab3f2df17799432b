"""A batch: examples and their conditions. Without Lightning, for methods know torch alone."""

from typing import NamedTuple

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
