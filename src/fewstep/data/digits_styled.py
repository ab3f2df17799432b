"""The handwritten digits with two conditions: the class, and a style that is measured, thin, medium or bold."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.batches import ImagesInMemory, from_uint8
from fewstep.data.digits import load_digits_split
from fewstep.data.facts import DataFacts
from fewstep.data.open_styles import check_share, without_style
from fewstep.diffusion.styles import Styles

STYLES = Styles(num_classes=10, num_styles=3)
EDGES = (0.2890, 0.3213)  # of `ink`: the terciles of the training split


def ink(images: UInt8[Tensor, "count 1 8 8"]) -> Float[Tensor, "count"]:
    """The mean of an image's pixels, 0 paper and 1 ink: how thick its strokes are, whatever the class."""
    return images.double().mean((1, 2, 3)) / 255


def style_of(images: UInt8[Tensor, "count 1 8 8"]) -> Int[Tensor, "count"]:
    """0 thin, 1 medium, 2 bold, by `ink`."""
    return torch.bucketize(ink(images), torch.tensor(EDGES, dtype=torch.float64, device=images.device))


class DigitsStyledData(ImagesInMemory):
    """The digits, each with a label of its class and its style; the held-out split is the reference.

    Args:
        any_style: share of the training labels that lose their style, drawn by (stream, step).

    Raises:
        ValueError: a share outside (0, 1).
    """

    facts = DataFacts(
        name="digits_styled", shape=(1, 8, 8), num_classes=STYLES.num_labels, low=-1.0, high=1.0, styles=STYLES
    )

    def __init__(self, *, any_style: float, batch_size: int, stream: str) -> None:
        split = load_digits_split()
        labels = split.train_labels + STYLES.num_classes * style_of(split.train_images)
        super().__init__(images=split.train_images, labels=labels, batch_size=batch_size, stream=stream)
        self.any_style = check_share(any_style)
        held_out = split.test_labels + STYLES.num_classes * style_of(split.test_images)
        self._reference = Batch(from_uint8(split.test_images), held_out)

    def selected(self, step: int, select: Callable[[Tensor], Tensor] = lambda batch: batch) -> Batch:
        x, label = super().selected(step, select)
        is_open = select(without_style(self.batch_size, self.any_style, self.stream, step))
        return Batch(x, STYLES.of_any_style(label).where(is_open, label))

    def reference(self) -> Batch:
        return self._reference

    def measured_styles(self, images: Tensor, label: Int[Tensor, "count"]) -> Int[Tensor, "count"]:
        return style_of(images)
