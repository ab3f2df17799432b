"""uint8 images with a held-out part, and what data sets made of files have in common."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from fewstep.data.batches import Batch, ImagesInMemory, Rows, balance, checked, from_uint8
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Condition


class Examples(NamedTuple):
    """uint8 images (N, C, H, W) and int64 labels (N,)."""

    images: Rows
    labels: Int[Tensor, "count"]


class SplitImages(ImagesInMemory):
    """Batches of the training part; of the held-out part at most `num_reference` images, evenly spaced, as reference.

    Raises:
        ValueError: one of the parts is empty, or num_reference is below 1.
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
        for name, part in (("training", train), ("held-out", held_out)):
            if not len(part.labels):
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
        """The classes that the held-out part has, in turn: of a whole data set that is all of them."""
        held_out = self.held_out.labels.unique()
        return held_out[torch.arange(count) % len(held_out)]

    def check(self) -> list[str]:
        return [
            f"{self.facts.name}: {len(self.labels):,} images to train on, {len(self.held_out.labels):,} held out",
            balance(self.facts, "training", self.labels),
            balance(self.facts, "held out", self.held_out.labels),
            *checked(self.facts, "a training batch", self.preview()),
            *checked(self.facts, "reference", self.reference()),
        ]


def is_missing(name: str, root: Path, how: str) -> ValueError:
    """The error of a data set that is not there: how to get it, where to put it, how to do without."""
    return ValueError(
        f"dataset={name} is not at {root}: {how}, or say where it is with dataset.root=PATH; without it, "
        f"`python train.py dataset={name} trainer=debug` tries everything on generated files"
    )
