"""Real colour crops of the two photographs that scikit-learn ships; the photograph is the class."""

from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8
from sklearn.datasets import load_sample_images
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.data.split import Examples, SplitImages

SIZES = (32, 64)
STRIPE = 80  # pixels; a multiple of 16, so that no block of the JPEG files lies in two stripes
HELD_OUT = ((160, 240), (480, 560))  # columns: the third stripe of every four
TRAINED = ((0, 160), (240, 480), (560, 640))


class Crops:
    """The crops of `size` pixels with upper left corners (photograph, y, x), cropped when they are indexed."""

    def __init__(self, photographs: UInt8[Tensor, "photographs 3 height width"], size: int, corners: Tensor) -> None:
        # A view: (photographs, y, x, 3, size, size) without a copy.
        self._windows = photographs.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5)
        self.corners = corners

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: Int[Tensor, "batch"]) -> UInt8[Tensor, "batch 3 size size"]:
        photograph, y, x = self.corners[index].unbind(1)
        return self._windows[photograph, y, x]


def load_patches(size: int) -> tuple[Examples, Examples]:
    """Training and held-out crops of china.jpg (class 0) and flower.jpg (class 1), each 427 x 640 pixels.

    Each photograph is divided into eight vertical stripes of 80 columns. The third and the seventh are held out, and no
    crop crosses a border between held-out and training stripes, so the splits share no pixel. Training crops lie at
    every position, held-out crops 8 pixels apart for size 32 and 4 for size 64.

    Raises:
        ValueError: `size` is neither 32 nor 64.
    """
    if size not in SIZES:
        raise ValueError(f"dataset.size of patches must be one of {SIZES}, got {size}")
    photographs = torch.stack([torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images])
    train = corners(photographs.shape, size, TRAINED, 1)
    held_out = corners(photographs.shape, size, HELD_OUT, 256 // size)
    return (
        Examples(Crops(photographs, size, train), train[:, 0].clone()),
        Examples(Crops(photographs, size, held_out), held_out[:, 0].clone()),
    )


def corners(shape: Sequence[int], size: int, columns: Sequence[tuple[int, int]], stride: int) -> Int[Tensor, "crops 3"]:
    """(photograph, y, x) of the crops within each range of columns, `stride` apart."""
    photographs, _, height, _ = shape
    x = torch.cat([torch.arange(start, stop - size + 1, stride) for start, stop in columns])
    return torch.cartesian_prod(torch.arange(photographs), torch.arange(0, height - size + 1, stride), x)


class PatchesData(SplitImages):
    """The crops as training data.

    Args:
        size: of a crop, 32 or 64 pixels.
    """

    def __init__(self, *, size: int, batch_size: int, stream: str) -> None:
        train, held_out = load_patches(size)
        facts = DataFacts(name="patches", shape=(3, size, size), num_classes=2, low=-1.0, high=1.0)
        super().__init__(facts=facts, train=train, held_out=held_out, batch_size=batch_size, stream=stream)
