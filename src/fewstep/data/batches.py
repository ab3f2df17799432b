"""Training batches as a pure function of (seed, step): the step is the place in the data, and all its state."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import lightning
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Condition
from fewstep.distributed.collectives import local_rows, world_size
from fewstep.system.seeds import seed_for


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
    reference_split: str = "held out"
    exact: GaussianMixture | None = None  # the closed form, where there is one
    clip: str | None = None  # folder of the CLIPModel that says how samples fit their prompts, where there are any

    def __init__(self, *, batch_size: int, stream: str) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"stage.batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.stream = stream

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The training batch of that step, the same on every call."""

    def rows(self, step: int) -> Batch:
        """This process's rows of that step's batch."""
        x, label = self.batch(step)
        return Batch(local_rows(x), local_rows(label))

    @abstractmethod
    def reference(self) -> Batch:
        """Held-out examples in the range of `facts.pixels`, never trained on: what quality figures compare with."""

    def conditions(self, count: int) -> Condition:
        """What samples are asked for in turn: the classes, or the held-out prompts."""
        return torch.arange(count) % self.facts.num_classes

    def prompts(self, count: int) -> list[str] | None:
        """The words of `conditions`, where there are any."""
        return None

    @property
    def empty_prompt(self) -> Float[Tensor, "tokens features"] | None:
        """The embedding of "", where conditions are embeddings of prompts."""
        return None

    @property
    def judged(self) -> DataFacts:
        """The facts of what is judged: of images for latents."""
        return self.facts.pixels

    def decode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *image"]:
        """Images in [-1, 1] of latents; pixels and points stay as they are."""
        return x

    def check(self) -> list[str]:
        """What was verified, a line each, for `fewstep data check`: here shapes, ranges and labels.

        Raises:
            ValueError: something is not as `facts` say.
        """
        return [
            *checked(self.facts, "training, first batch", self.batch(0)),
            *checked(self.facts.pixels, self.reference_split, self.reference()),
        ]

    def preview(self) -> Batch:
        """Examples to look at, in the range of `facts.pixels`."""
        return self.batch(0)

    def train_dataloader(self) -> Iterable[Batch]:
        # Called after a resumed run has its step back, so the first batch is the one that comes next.
        assert self.trainer is not None
        return Batches(self.rows, self.trainer.global_step, int(self.trainer.max_steps))


def checked(facts: DataFacts, what: str, examples: Batch) -> list[str]:
    """Compare examples with the facts of their data set; say what was compared and how many there are of each class.

    Raises:
        ValueError: a shape, value or label that the facts rule out.
    """
    x, label = examples
    low, high = float(x.min()), float(x.max())
    if x.shape[1:] != facts.shape or not (facts.low <= low and high <= facts.high):  # NaN is in no range
        raise ValueError(
            f"{facts.name} is {facts.shape} with values in [{facts.low:g}, {facts.high:g}], and {what} is "
            f"{tuple(x.shape[1:])} in [{low:g}, {high:g}]"
        )
    lines = [f"{what}: {len(x):,} of shape {facts.shape}, values in [{low:.3g}, {high:.3g}]"]
    return lines if facts.text is not None else [*lines, balance(facts, what, label)]


def balance(facts: DataFacts, what: str, labels: Int[Tensor, "count"]) -> str:
    """How many examples there are of the rarest and the commonest class.

    Raises:
        ValueError: a label outside 0..num_classes - 1.
    """
    if int(labels.min()) < 0 or int(labels.max()) >= facts.num_classes:
        raise ValueError(
            f"labels of {facts.name} run from 0 to {facts.num_classes - 1}, and {what} has {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    counts = labels.bincount(minlength=facts.num_classes)
    return (
        f"{what}: {int((counts > 0).sum())} of {facts.num_classes} classes, "
        f"{int(counts.min()):,} to {int(counts.max()):,} of each"
    )


class Rows(Protocol):
    """Many uint8 images of one shape: a tensor, or what looks like one and keeps its images elsewhere."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int[Tensor, "batch"], /) -> UInt8[Tensor, "batch *shape"]: ...


class ImagesInMemory(Data):
    """uint8 images held in memory or mapped into it, walked through in a new random order each epoch.

    Args:
        flip: mirror each image left to right, or not, by a chance that is a function of (stream, step).
    """

    def __init__(
        self, *, images: Rows, labels: Int[Tensor, "count"], batch_size: int, stream: str, flip: bool = False
    ) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        self.images, self.labels, self.flip = images, labels, flip
        self._order: tuple[int, Tensor] | None = None

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_for(self.stream, "order", epoch))
            self._order = epoch, torch.randperm(len(self.images), generator=generator)
        return self._order[1]

    def pixels(
        self, step: int, kept: Callable[[Tensor], Tensor] = lambda whole: whole
    ) -> tuple[UInt8[Tensor, "batch *shape"], Int[Tensor, "batch"]]:
        """Images and labels of that step's batch, as they are kept; of its rows only those `kept`."""
        position, chosen = step * self.batch_size, []
        while (missing := (step + 1) * self.batch_size - position) > 0:
            epoch, offset = divmod(position, len(self.images))
            chosen.append(self._epoch_order(epoch)[offset : offset + missing])
            position += len(chosen[-1])
        index = kept(torch.cat(chosen))
        images = self.images[index]
        if self.flip:
            generator = torch.Generator().manual_seed(seed_for(self.stream, "flip", step))
            mirrored = kept(torch.rand(self.batch_size, generator=generator)) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images, self.labels[index]

    def part(self, step: int, kept: Callable[[Tensor], Tensor] = lambda whole: whole) -> Batch:
        """Those rows of that step's batch that are `kept`; the others are not read."""
        images, labels = self.pixels(step, kept)
        return Batch(from_uint8(images), labels)

    def batch(self, step: int) -> Batch:
        return self.part(step)

    def rows(self, step: int) -> Batch:
        return self.batch(step) if world_size() == 1 else self.part(step, local_rows)


def from_uint8(images: Tensor) -> Float[Tensor, "batch *shape"]:
    """0..255 to [-1, 1]."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)  # one array, not three
