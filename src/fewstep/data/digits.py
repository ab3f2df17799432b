"""The real handwritten digits that scikit-learn ships: 1,797 grey images of 8 x 8 pixels, 10 classes."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from sklearn.datasets import load_digits
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.batches import ImagesInMemory, from_uint8
from fewstep.data.facts import DataFacts

HOLD_OUT_EVERY = 5


class DigitsSplit(NamedTuple):
    """Images are uint8 (N, 1, 8, 8), 0 paper and 255 ink; labels int64 (N,)."""

    train_images: UInt8[Tensor, "train 1 8 8"]
    train_labels: Int[Tensor, "train"]
    test_images: UInt8[Tensor, "test 1 8 8"]
    test_labels: Int[Tensor, "test"]


def load_digits_split() -> DigitsSplit:
    """The digits in scikit-learn's order, in a fixed split: 1,433 to train on, 364 to test with.

    The 1st, 6th, 11th, ... image of each class is held out, so both splits have the same shares of classes and writers.
    The file's 17 grey levels k become round(k 255 / 16).
    """
    grey, target = load_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(grey * 255 / 16).astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        test[torch.where(labels == label)[0][::HOLD_OUT_EVERY]] = True
    return DigitsSplit(images[~test], labels[~test], images[test], labels[test])


class DigitsData(ImagesInMemory):
    """The digits: batches of the training split; the held-out split is the reference."""

    facts = DataFacts(name="digits", shape=(1, 8, 8), num_classes=10, low=-1.0, high=1.0)

    def __init__(self, *, batch_size: int, stream: str) -> None:
        split = load_digits_split()
        super().__init__(images=split.train_images, labels=split.train_labels, batch_size=batch_size, stream=stream)
        self._reference = Batch(from_uint8(split.test_images), split.test_labels)

    def reference(self) -> Batch:
        return self._reference
