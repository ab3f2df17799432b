"""Crops of two photographs: real pixels, and none of them on both sides."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from fewstep.data.patches import SIZES, PatchesData, load_patches

pytestmark = pytest.mark.usefixtures("unchecked")


def pixels_under(corners: torch.Tensor, size: int) -> np.ndarray:
    """Which pixels (photograph, y, x) the crops touch."""
    touched = np.zeros((2, 427, 640), bool)
    for photograph, y, x in corners.tolist():
        touched[photograph, y : y + size, x : x + size] = True
    return touched


@pytest.mark.parametrize("size", SIZES)
def test_no_pixel_is_in_both_parts_and_hardly_any_in_neither(size: int) -> None:
    train, held_out = (part.images.corners for part in load_patches(size))
    first, second = pixels_under(train[::7], size), pixels_under(held_out, size)
    assert not (first & second).any()
    assert (first | second).mean() > 0.97
    assert 0.2 < second.mean() < 0.3


def test_parts_of_both_sizes_hold_out_the_same_columns() -> None:
    """A model trained on crops of one size was not trained on the held-out crops of the other."""
    small, large = (load_patches(size) for size in SIZES)
    assert not (pixels_under(small[0].images.corners[::7], 32) & pixels_under(large[1].images.corners, 64)).any()
    assert not (pixels_under(large[0].images.corners[::7], 64) & pixels_under(small[1].images.corners, 32)).any()


@pytest.mark.parametrize("size", SIZES)
def test_crops_are_the_photographs_own_pixels(size: int) -> None:
    photographs = load_sample_images().images
    for part in load_patches(size):
        index = torch.tensor([0, 17, len(part.labels) // 2, len(part.labels) - 1])
        crops = part.images[index].numpy()
        for crop, (photograph, y, x), label in zip(
            crops, part.images.corners[index].tolist(), part.labels[index].tolist(), strict=True
        ):
            assert np.array_equal(crop.transpose(1, 2, 0), photographs[photograph][y : y + size, x : x + size])
            assert label == photograph


def test_batches_are_a_function_of_the_step_and_classes_are_even() -> None:
    data, again = (PatchesData(size=32, batch_size=64, stream="0") for _ in range(2))
    for step in (3, 0):
        assert torch.equal(data.batch(step).x, again.batch(step).x)
    assert data.facts.shape == (3, 32, 32)
    assert data.labels.bincount().tolist() == [153252, 153252]
    assert data.held_out.labels.bincount().tolist() == [700, 700]
    assert (float(data.reference().x.min()), float(data.reference().x.max())) == (-1, 1)
    assert data.check()[0] == "patches: 306,504 images to train on, 1,400 held out"


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one of \(32, 64\), got 48"):
        PatchesData(size=48, batch_size=1, stream="0")
