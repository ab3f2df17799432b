"""Random numbers of a training step, drawn for the whole batch, of which a process keeps its rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.distributed.collectives import local_rows, world_size


@dataclass(frozen=True)
class Draws:
    """Draws for the examples of one batch: the same for every number of processes, after the same seed.

    Args:
        example: one example's shape. count: of this process's examples. device: of the examples.
    """

    count: int
    example: torch.Size
    device: torch.device

    @classmethod
    def like(cls, x: Float[Tensor, "batch *shape"]) -> "Draws":
        return cls(len(x), x.shape[1:], x.device)

    @property
    def whole(self) -> int:
        """Examples of the batch over all processes."""
        return self.count * world_size()

    def uniform(self) -> Float[Tensor, "batch"]:
        """U[0, 1), one per example."""
        return local_rows(torch.rand(self.whole, device=self.device))

    def normal(self) -> Float[Tensor, "batch *shape"]:
        """N(0, 1), one per value."""
        return local_rows(torch.randn(self.whole, *self.example, device=self.device))

    def integers(self, low: int, high: int) -> Int[Tensor, "batch"]:
        """Uniform in low, ..., high - 1, one per example."""
        return local_rows(torch.randint(low, high, (self.whole,), device=self.device))
