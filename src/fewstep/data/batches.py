"""Training batches as a pure function of (seed, step), so that the step is the only state of a data set."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import lightning
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fewstep.data.batch import Batch, Pairs, from_uint8, split
from fewstep.data.facts import DataFacts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import Condition
from fewstep.distributed.collectives import local_rows, world_size
from fewstep.system.files import tensor_digest
from fewstep.system.seeds import seed_for


class Data(lightning.LightningDataModule):
    """A data set: its facts, its training batches, and the reference that samples are compared with.

    Args:
        batch_size: images per optimiser step over all processes.
        stream: key of the random numbers, which holds the run's seed, the stage and the phase.

    Raises:
        ValueError: a batch size below 1.
    """

    facts: DataFacts
    reference_split: str = "held out"
    exact: GaussianMixture | None = None  # the distribution in closed form, if there is one
    clip: str | None = None  # folder of the CLIPModel for the CLIP score, where there are prompts

    def __init__(self, *, batch_size: int, stream: str) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"stage.training.batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.stream = stream

    @property
    def num_examples(self) -> int | None:
        """Number of training examples; None where it is not known, or there is no end of them."""
        return None

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The training batch of that step, the same on every call."""

    def rows(self, step: int) -> Batch | Pairs:
        """This rank's rows of that step's batch, which are what a training step is given."""
        x, label = self.batch(step)
        return Batch(local_rows(x), local_rows(label))

    @abstractmethod
    def reference(self) -> Batch:
        """Held-out examples in the range of `facts.pixels`, never trained on: the reference of all figures."""

    def conditions(self, count: int) -> Condition:
        """The conditions of `count` samples: the classes in turn, with each style, or the held-out prompts in turn."""
        return torch.arange(count) % self.facts.num_conditions

    def measured_styles(self, images: Tensor, label: Int[Tensor, "count"]) -> Int[Tensor, "count"] | None:
        """The style that each evaluation image has, whatever style its label asks for; None for data without styles."""
        return None

    def prompts(self, count: int) -> list[str] | None:
        """The texts of `conditions`, None where there are none."""
        return None

    @property
    def empty_prompt(self) -> Float[Tensor, "tokens features"] | None:
        """The embedding of the empty prompt, where conditions are embeddings of prompts."""
        return None

    @property
    def evaluation_facts(self) -> DataFacts:
        """The facts of what figures are computed of: of the decoded images for latents."""
        return self.facts.pixels

    def decode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *image"]:
        """Latents decoded to images in [-1, 1]; pixels and points unchanged."""
        return x

    def check(self) -> Iterable[str]:
        """Verify the data set for `fewstep data check`; give a line for each check: here shapes, ranges and labels.

        Raises:
            ValueError: something contradicts `facts`.
        """
        return [
            *check_examples(self.facts, "training, first batch", self.batch(0)),
            *check_examples(self.facts.pixels, self.reference_split, self.reference()),
        ]

    def preview(self) -> Batch:
        """Examples to look at, in the range of `facts.pixels`."""
        return self.batch(0)

    def train_dataloader(self) -> Iterator[Batch | Pairs]:
        # Called after a resumed run has restored its step, so the first batch is the next one.
        assert self.trainer is not None
        parts = self.trainer.accumulate_grad_batches
        batches = map(self.rows, range(self.trainer.global_step, int(self.trainer.max_steps)))
        return batches if parts == 1 else (part for batch in batches for part in split(batch, parts))


def check_examples(facts: DataFacts, name: str, examples: Batch) -> list[str]:
    """Compare examples with the facts of their data set; return lines with shape, range and class balance.

    Args:
        name: of the examples, for messages.

    Raises:
        ValueError: a shape, value or label that the facts rule out.
    """
    x, label = examples
    low, high = float(x.min()), float(x.max())
    if x.shape[1:] != facts.shape or not (facts.low <= low and high <= facts.high):  # NaN is in no range
        raise ValueError(
            f"{facts.name} is {facts.shape} with values in [{facts.low:g}, {facts.high:g}], and {name} is "
            f"{tuple(x.shape[1:])} in [{low:g}, {high:g}]"
        )
    lines = [f"{name}: {len(x):,} of shape {facts.shape}, values in [{low:.3g}, {high:.3g}]"]
    return [*lines, class_balance(facts, name, label)] if facts.num_classes else lines


def class_balance(facts: DataFacts, name: str, labels: Int[Tensor, "count"]) -> str:
    """A line with the number of classes present and the counts of the rarest and the commonest.

    Raises:
        ValueError: a label outside 0..num_classes - 1, or not one whole number an example.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels of {facts.name} are one whole number an example, and {name} has {tuple(labels.shape)} of "
            f"{labels.dtype}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= facts.num_classes:
        raise ValueError(
            f"labels of {facts.name} run from 0 to {facts.num_classes - 1}, and {name} has {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    counts = labels.bincount(minlength=facts.num_classes)
    return (
        f"{name}: {int((counts > 0).sum())} of {facts.num_classes} classes, "
        f"{int(counts.min()):,} to {int(counts.max()):,} of each"
    )


class ImageArray(Protocol):
    """uint8 images of one shape: a tensor, or an object indexed like one that keeps its images elsewhere."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int[Tensor, "batch"], /) -> UInt8[Tensor, "batch *shape"]: ...


class ImagesInMemory(Data):
    """uint8 images in memory or memory-mapped, in a new random order each epoch.

    Args:
        flip: mirror each image left to right with probability 1/2, drawn by (stream, step).
    """

    def __init__(
        self, *, images: ImageArray, labels: Int[Tensor, "count"], batch_size: int, stream: str, flip: bool = False
    ) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        self.images, self.labels, self.flip = images, labels, flip
        self._order: tuple[int, Tensor] | None = None

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_for(self.stream, "order", epoch))
            self._order = epoch, torch.randperm(len(self.images), generator=generator)
        return self._order[1]

    def pixels(
        self, step: int, select: Callable[[Tensor], Tensor] = lambda batch: batch
    ) -> tuple[UInt8[Tensor, "batch *shape"], Int[Tensor, "batch"]]:
        """Images and labels of that step's batch, as stored; only the rows that `select` takes of it are read."""
        position, indices = step * self.batch_size, []
        while (missing := (step + 1) * self.batch_size - position) > 0:
            epoch, offset = divmod(position, len(self.images))
            indices.append(self._epoch_order(epoch)[offset : offset + missing])
            position += len(indices[-1])
        index = select(torch.cat(indices))
        images = self.images[index]
        if self.flip:
            generator = torch.Generator().manual_seed(seed_for(self.stream, "flip", step))
            mirrored = select(torch.rand(self.batch_size, generator=generator)) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images, self.labels[index]

    def selected(self, step: int, select: Callable[[Tensor], Tensor] = lambda batch: batch) -> Batch:
        """The rows of that step's batch that `select` takes of it; the others are not read."""
        images, labels = self.pixels(step, select)
        return Batch(from_uint8(images), labels)

    def batch(self, step: int) -> Batch:
        return self.selected(step)

    def rows(self, step: int) -> Batch:
        return self.batch(step) if world_size() == 1 else self.selected(step, local_rows)


def source_digest(source: ImagesInMemory) -> str:
    """Digest of the labels and of 64 evenly spaced images, which identifies the data set."""
    index = torch.arange(min(64, len(source.labels))) * len(source.labels) // min(64, len(source.labels))
    return tensor_digest({"images": source.images[index], "labels": source.labels})
