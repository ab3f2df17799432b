"""Random numbers of a training step, drawn for the whole batch, of which a process keeps its rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.distributed.collectives import local_rows, rank, world_size
from fewstep.system.seeds import reseed, seed_for


@dataclass(frozen=True)
class Draws:
    """Draws for the examples of one batch: the same for every number of processes.

    Args:
        count: of this process's examples. example: one example's shape. device: of the examples.
        stream, step: name the random numbers.
    """

    count: int
    example: torch.Size
    device: torch.device
    stream: str
    step: int

    @classmethod
    def begin(cls, x: Float[Tensor, "batch *shape"], stream: str, step: int) -> "Draws":
        """Seed torch for this step of this stream: resuming needs no random state."""
        reseed(seed_for(stream, step), x.device)
        return cls(len(x), x.shape[1:], x.device, stream, step)

    @property
    def global_count(self) -> int:
        """Examples of the batch over all processes."""
        return self.count * world_size()

    def uniform(self) -> Float[Tensor, "batch"]:
        """U[0, 1), one per example."""
        return local_rows(torch.rand(self.global_count, device=self.device))

    def normal(self) -> Float[Tensor, "batch *shape"]:
        """N(0, 1), one per value."""
        return local_rows(torch.randn(self.global_count, *self.example, device=self.device))

    def integers(self, low: int, high: int) -> Int[Tensor, "batch"]:
        """Uniform in low, ..., high - 1, one per example."""
        return local_rows(torch.randint(low, high, (self.global_count,), device=self.device))

    def choice(self, count: int) -> int:
        """One of 0, ..., count - 1, the same for the whole batch; known on the host without waiting for the device."""
        return seed_for(self.stream, self.step, "choice") % count

    def separate_ranks(self) -> None:
        """From here on each process has random numbers of its own.

        For dropout, after what is drawn for the whole batch: it is what depends on the number of processes, and all
        that does.
        """
        if world_size() > 1:
            reseed(seed_for(self.stream, self.step, "process", rank()), self.device)


def standard_normal(draws: Draws) -> Float[Tensor, "batch"]:
    """N(0, 1), one per example, float64, within 5 deviations."""
    return torch.special.ndtri(draws.uniform().double().clamp(1e-6, 1 - 1e-6))
