"""uint8 images with a training and a held-out split, and the error of a missing data set."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.batches import ImageArray, ImagesInMemory, check_examples, class_balance, from_uint8
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Condition


class Examples(NamedTuple):
    """uint8 images (N, C, H, W) and int64 labels (N,)."""

    images: ImageArray
    labels: Int[Tensor, "count"]


class SplitImages(ImagesInMemory):
    """Batches of the training split; the reference is at most `num_reference` evenly spaced held-out images.

    Raises:
        ValueError: a split is empty, or num_reference is below 1.
    """

    def __init__(
        self,
        *,
        facts: DataFacts,
        train: Examples,
        held_out: Examples,
        batch_size: int,
        stream: str,
        flip: bool = False,
        num_reference: int | None = None,
    ) -> None:
        for name, split in (("training", train), ("held-out", held_out)):
            if not len(split.labels):
                raise ValueError(f"{facts.name} needs images in its {name} part and has none; add some")
        if num_reference is not None and num_reference < 1:
            raise ValueError(f"dataset.num_reference must be at least 1, got {num_reference}")
        images, labels = train
        super().__init__(images=images, labels=labels, batch_size=batch_size, stream=stream, flip=flip)
        self.facts, self.held_out = facts, held_out
        self.num_reference = min(num_reference or len(held_out.labels), len(held_out.labels))

    def reference(self) -> Batch:
        count = len(self.held_out.labels)
        index = torch.arange(self.num_reference) * count // self.num_reference
        return Batch(from_uint8(self.held_out.images[index]), self.held_out.labels[index])

    def conditions(self, count: int) -> Condition:
        """The classes of the held-out split in turn; in a complete data set these are all classes."""
        classes = self.held_out.labels.unique()
        return classes[torch.arange(count) % len(classes)]

    def check(self) -> list[str]:
        return [
            f"{self.facts.name}: {len(self.labels):,} images to train on, {len(self.held_out.labels):,} held out",
            class_balance(self.facts, "training", self.labels),
            class_balance(self.facts, "held out", self.held_out.labels),
            *check_examples(self.facts, "a training batch", self.preview()),
            *check_examples(self.facts, "reference", self.reference()),
        ]


def missing_data_error(name: str, root: Path, advice: str) -> ValueError:
    """The error of a missing data set: how to get it, where to put it, how to try without it."""
    return ValueError(
        f"dataset={name} is not at {root}: {advice}, or say where it is with dataset.root=PATH; without it, "
        f"`python train.py dataset={name} trainer=debug` tries everything on generated files"
    )
