"""uint8 images with a training and a held-out split, and the error of a missing data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.batches import ImageArray, ImagesInMemory, check_examples, class_balance, from_uint8
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Condition

SHOWN = 5  # empty classes that a message names
IMBALANCE = 2  # times as many images in the largest class as in the smallest is said if it is more


class Examples(NamedTuple):
    """uint8 images (N, C, H, W) and int64 labels (N,)."""

    images: ImageArray
    labels: Int[Tensor, "count"]


class SplitImages(ImagesInMemory):
    """Batches of the training split; the reference is at most `num_reference` evenly spaced held-out images.

    `class_names` are for messages; where there are none, classes are named by their numbers.

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
        class_names: Sequence[str] = (),
    ) -> None:
        for name, split in (("training", train), ("held-out", held_out)):
            if not len(split.labels):
                raise ValueError(f"{facts.name} needs images in its {name} part and has none; add some")
        if num_reference is not None and num_reference < 1:
            raise ValueError(f"dataset.num_reference must be at least 1, got {num_reference}")
        images, labels = train
        super().__init__(images=images, labels=labels, batch_size=batch_size, stream=stream, flip=flip)
        self.facts, self.held_out = facts, held_out
        self.class_names = class_names or [str(label) for label in range(facts.num_classes)]
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
        reference = self.reference()
        return [
            f"{self.facts.name}: {len(self.labels):,} images to train on, {len(self.held_out.labels):,} held out",
            class_balance(self.facts, "training", self.labels),
            class_balance(self.facts, "held out", self.held_out.labels),
            *check_examples(self.facts, "a training batch", self.preview()),
            *check_examples(self.facts, "reference", reference),
            *imbalance("training", self.labels, self.class_names),
            *imbalance("reference", reference.label, self.class_names),
        ]


def imbalance(name: str, labels: Int[Tensor, "count"], class_names: Sequence[str]) -> list[str]:
    """A line that names empty classes, or one with the largest and the smallest class if they differ much; or none."""
    counts = labels.bincount(minlength=len(class_names))
    if empty := [name for name, count in zip(class_names, counts.tolist(), strict=True) if not count]:
        more = f" and {len(empty) - SHOWN:,} more" if len(empty) > SHOWN else ""
        return [f"{name}: no image of the class(es) {', '.join(empty[:SHOWN])}{more}"]
    ratio = float(counts.max() / counts.min())
    most, least = class_names[int(counts.argmax())], class_names[int(counts.argmin())]
    return [f"{name}: imbalanced, {most} has {ratio:.3g} times as many images as {least}"] if ratio > IMBALANCE else []


def missing_data_error(name: str, root: Path, advice: str) -> ValueError:
    """The error of a missing data set: how to get it, where to put it, how to try without it."""
    return ValueError(
        f"dataset={name} is not at {root}: {advice}, or say where it is with dataset.root=PATH; without it, "
        f"`python train.py dataset={name} trainer=debug` tries everything on generated files"
    )
