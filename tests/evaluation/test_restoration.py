"""Figures of restored images against closed forms."""

from math import log10

import pytest
import torch

from fewstep.data.degradation import gaussian_blur
from fewstep.data.patches import load_patches
from fewstep.evaluation.features import PatchesFeatures
from fewstep.evaluation.restoration import HIGHEST_PSNR, feature_distance, psnr, restoration_figures, ssim

pytestmark = pytest.mark.usefixtures("unchecked")


def crops(count: int = 12) -> torch.Tensor:
    held_out = load_patches(32)[1].images
    return held_out[torch.arange(count) * len(held_out) // count]


def blurred(images: torch.Tensor, deviation: float) -> torch.Tensor:
    return gaussian_blur(images.float(), torch.full((len(images),), deviation).double()).round().to(torch.uint8)


def test_psnr_is_the_closed_form_for_each_image() -> None:
    grey = torch.full((3, 3, 16, 16), 100, dtype=torch.uint8)
    off = grey + torch.tensor([1, 5, 0], dtype=torch.uint8)[:, None, None, None]
    expected = torch.tensor([20 * log10(255), 20 * log10(255 / 5), HIGHEST_PSNR], dtype=torch.float64)
    torch.testing.assert_close(psnr(off, grey), expected, check_dtype=False)
    half = grey.clone()
    half[:, :, :8] += 10  # a mean squared error of 50
    torch.testing.assert_close(psnr(half, grey), torch.full((3,), 10 * log10(255**2 / 50)), check_dtype=False)


def test_ssim_of_flat_images_is_its_term_of_the_mean() -> None:
    a, b, c1 = 100.0, 150.0, (0.01 * 255) ** 2
    flat = [torch.full((2, 3, 32, 32), value, dtype=torch.uint8) for value in (int(a), int(b))]
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    torch.testing.assert_close(ssim(*flat), torch.full((2,), expected), check_dtype=False, rtol=1e-6, atol=1e-6)
    assert torch.allclose(ssim(crops(), crops()), torch.ones(12).double())


def test_the_feature_distance_is_none_for_equal_images_and_grows_with_a_blur() -> None:
    net, images = PatchesFeatures(), crops()
    weak, strong = (feature_distance(blurred(images, deviation), images, net) for deviation in (0.6, 2.0))
    assert float(feature_distance(images, images, net).abs().max()) < 1e-6
    assert bool((strong > weak).all())
    assert bool((weak > 0).all())  # next to nothing where a crop is sky
    assert float(weak.mean()) > 0.01
    torch.testing.assert_close(feature_distance(images, blurred(images, 2.0), net), strong)


def test_figures_are_means_with_intervals_around_them() -> None:
    images = crops()
    found = restoration_figures(blurred(images, 1.0), images)
    assert found.keys() == {"psnr", "ssim", "feature_distance"}
    values = psnr(blurred(images, 1.0), images)
    mean, (low, high) = found["psnr"]
    assert mean == pytest.approx(float(values.mean()))
    half = 2.201 * float(values.std()) / 12**0.5  # Student's t of 11 degrees of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
