"""Degraded images: blurred, downsampled, noisy, JPEG, then enlarged again; what super-resolution starts from."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from fewstep.data.facts import DegradedFacts
from fewstep.system.seeds import seed_for

Pictures = Float[Tensor, "batch channels height width"]
HIGHEST_QUALITY = 95
SHARPEST = 1e-3  # pixels: the blur of a smaller deviation is none in float64


class Degradation(NamedTuple):
    """How one image is degraded.

    Attributes:
        blur: standard deviation of the Gaussian, in pixels of the original. noise: added to the small image.
        jpeg: quality, None for none.
    """

    blur: float
    noise: Float[Tensor, "channels low_height low_width"]
    jpeg: int | None


def draw_degradation(facts: DegradedFacts, shape: Sequence[int], stream: str, number: int) -> Degradation:
    """The degradation of the image of that number, a function of (stream, number) alone.

    Blur and noise are uniform from 0 to their largest deviation, the quality from `facts.jpeg` to HIGHEST_QUALITY.

    Args:
        shape: (channels, height, width) of the original.
    """
    generator = torch.Generator().manual_seed(seed_for(stream, "degradation", number))
    blur, noise, quality = torch.rand(3, generator=generator).tolist()
    small = (shape[0], shape[1] // facts.scale, shape[2] // facts.scale)
    jpeg = facts.jpeg and facts.jpeg + int(quality * (HIGHEST_QUALITY + 1 - facts.jpeg))
    return Degradation(blur * facts.blur, noise * facts.noise * torch.randn(small, generator=generator), jpeg)


def degrade(x: Pictures, scale: int, degradations: Sequence[Degradation]) -> Pictures:
    """The small images of x in [-1, 1]: blurred, averaged over squares of `scale` pixels, noisy, 8 bits, JPEG.

    Raises:
        ValueError: sides that are no multiples of `scale`.
    """
    if x.shape[2] % scale or x.shape[3] % scale:
        raise ValueError(
            f"images must have sides that are multiples of dataset.scale={scale}, got {tuple(x.shape[2:])}; choose "
            "another scale"
        )
    blurred = gaussian_blur(x, torch.tensor([each.blur for each in degradations], dtype=torch.float64))
    small = avg_pool2d(blurred, scale) + torch.stack([each.noise for each in degradations])
    pixels = small.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    stored = [
        image if own.jpeg is None else as_jpeg(image, own.jpeg) for image, own in zip(pixels, degradations, strict=True)
    ]
    return torch.stack(stored).to(x.dtype).div(127.5).sub(1)


def enlarge(small: Pictures, scale: int) -> Pictures:
    """`scale` times larger by bicubic interpolation, held inside [-1, 1]."""
    return interpolate(small, scale_factor=scale, mode="bicubic").clamp(-1, 1)


def gaussian_blur(x: Pictures, deviation: Float[Tensor, "batch"]) -> Pictures:
    """Each image blurred by a Gaussian of a deviation of its own, in pixels, and mirrored at its edges.

    The mirror repeats the last row, so that the blur is a symmetric matrix along each axis whose rows sum to one: it
    preserves the mean of every image.
    """
    rows, columns = (blur_matrices(size, deviation).to(x)[:, None] for size in x.shape[2:])
    return rows @ x @ columns.mT


def blur_matrices(size: int, deviation: Float[Tensor, "batch"]) -> Float[Tensor, "batch size size"]:
    """The matrix of the blur of a row of pixels: entry (i, j) sums the Gaussian over all mirror images of j."""
    place = torch.arange(size, dtype=torch.float64)
    periods = 2 * size * torch.arange(-1, 2, dtype=torch.float64)[:, None, None]
    apart = torch.stack([place[:, None] - place + periods, place[:, None] + place + 1 + periods])
    weights = torch.exp(-0.5 * (apart / deviation.clamp(min=SHARPEST)[:, None, None, None, None]).square()).sum((1, 2))
    return weights / weights.sum(2, keepdim=True)


def as_jpeg(pixels: UInt8[Tensor, "3 height width"], quality: int) -> UInt8[Tensor, "3 height width"]:
    """An RGB image as it comes back from a JPEG of that quality."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
