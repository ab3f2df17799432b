"""Training batches as a pure function of (seed, step): the step is the place in the data, and all its state."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import lightning
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Condition
from fewstep.seeds import seed_for


class Batch(NamedTuple):
    x: Float[Tensor, "batch *shape"]
    label: Condition


class Batches:
    """`batch(step)` for step = start, ..., stop - 1."""

    def __init__(self, batch: Callable[[int], Batch], start: int, stop: int) -> None:
        self.batch, self.start, self.stop = batch, start, stop

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(self.start, self.stop))


class Data(lightning.LightningDataModule):
    """A data set: its facts, its training batches, and what its samples are judged against.

    Args:
        batch_size: images per optimiser step over all processes.
        stream: names the order of the data, with the run's seed: each stage and rung has its own.

    Raises:
        ValueError: a batch size below 1.
    """

    facts: DataFacts
    reference_split: ClassVar[str] = "held out"
    exact: GaussianMixture | None = None  # the closed form, where there is one

    def __init__(self, *, batch_size: int, stream: str) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"stage.batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.stream = stream

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The training batch of that step, the same on every call."""

    @abstractmethod
    def reference(self) -> Batch:
        """Held-out examples in the data's range, never trained on: what quality figures compare with."""

    def train_dataloader(self) -> Batches:
        # Called after a resumed run has its step back, so the first batch is the one that comes next.
        assert self.trainer is not None
        return Batches(self.batch, self.trainer.global_step, int(self.trainer.max_steps))


class ImagesInMemory(Data):
    """uint8 images held in memory, walked through in a new random order each epoch."""

    def __init__(
        self,
        *,
        images: Float[Tensor, "count *shape"] | Int[Tensor, "count *shape"],
        labels: Int[Tensor, "count"],
        batch_size: int,
        stream: str,
    ) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        self.images, self.labels = images, labels
        self._order: tuple[int, Tensor] | None = None

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_for(self.stream, "order", epoch))
            self._order = epoch, torch.randperm(len(self.images), generator=generator)
        return self._order[1]

    def batch(self, step: int) -> Batch:
        position, chosen = step * self.batch_size, []
        while (missing := (step + 1) * self.batch_size - position) > 0:
            epoch, offset = divmod(position, len(self.images))
            chosen.append(self._epoch_order(epoch)[offset : offset + missing])
            position += len(chosen[-1])
        index = torch.cat(chosen)
        return Batch(from_uint8(self.images[index]), self.labels[index])


def from_uint8(images: Tensor) -> Float[Tensor, "batch *shape"]:
    """0..255 to [-1, 1]."""
    return images.float() / 127.5 - 1
