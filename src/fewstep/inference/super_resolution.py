"""Super-resolution of images of any size, by a model of crops: overlapping tiles, blended in every evaluation."""

from dataclasses import dataclass
from itertools import product
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from fewstep.data.degradation import enlarge
from fewstep.diffusion.prediction import Condition, Denoise, Prediction
from fewstep.diffusion.sampler import SAMPLERS, sample
from fewstep.diffusion.schedule import Batch, Images
from fewstep.inference.model import Model
from fewstep.system.seeds import fresh_noise, starting_noise

TILES_AT_ONCE = 64


@dataclass(frozen=True)
class Tiled:
    """A Denoise of larger images made of one of squares: the mean of its v over overlapping tiles.

    Neighbouring tiles share half of their pixels or more, and a pixel counts the more the farther it is from the edge
    of its tile, linearly (as MultiDiffusion blends, Bar-Tal et al. 2023, 2302.08113). One tile is the plain Denoise.

    Args:
        size: of a tile, in pixels.
    """

    denoise: Denoise
    size: int

    def __call__(self, z: Images, log_snr: Batch, label: Condition, w: Float[Tensor, "batch"] | None) -> Prediction:
        distance = torch.arange(1, self.size + 1, device=z.device, dtype=z.dtype)
        distance = torch.minimum(distance, distance.flip(0))
        window = distance[:, None] * distance
        total, weight = torch.zeros_like(z), z.new_zeros(z.shape[2:])
        places = list(product(*(tile_starts(side, self.size) for side in z.shape[2:])))
        for start in range(0, len(places), TILES_AT_ONCE):
            some = places[start : start + TILES_AT_ONCE]
            parts = [(..., slice(y, y + self.size), slice(x, x + self.size)) for y, x in some]
            tiles, conditions = (torch.cat([whole[part] for part in parts]) for whole in (z, label))
            weights = None if w is None else w.repeat(len(parts))
            predicted = self.denoise(tiles, log_snr.repeat(len(parts)), conditions, weights).v
            for part, v in zip(parts, predicted.split(len(z)), strict=True):
                total[part] += window * v
                weight[part[1:]] += window
        return Prediction(z=z, v=total / weight, log_snr=log_snr)


def tile_starts(side: int, size: int) -> list[int]:
    """Where the fewest tiles begin that cover `side` pixels evenly, each sharing half of its `size` with the next."""
    count = ceil((side - size) / (size // 2))
    return [round(number * (side - size) / max(1, count)) for number in range(count + 1)]


def upscale(
    model: Model, images: Float[Tensor, "count channels height width"], *, steps: int | None = None, seed: int = 0
) -> Float[Tensor, "count channels high_height high_width"]:
    """The images as large as the model's scale makes them, float32 in [-1, 1], on the CPU.

    An image smaller than a tile is continued by its edge while it is worked on.

    Args:
        images: small ones in [-1, 1], of any size. steps: default: those the model was made for, or 64.
        seed: of the noise that a model of many steps begins at; image i's depends on (seed, i) alone.

    Raises:
        ValueError: the model restores no images, or images of other channels; see also `Model.check_request`.
    """
    data, sampling = model.card.data, model.card.sampling
    if data.degraded is None:
        raise ValueError(
            f"upscale needs a model that restores degraded images, and this one makes {data.name}; make one with "
            "`python train.py dataset=patches_sr stage=teacher`"
        )
    if images.shape[1] != data.shape[0]:
        raise ValueError(f"this model restores images of {data.shape[0]} channels, got {images.shape[1]}")
    steps = model.default_steps if steps is None else steps
    model.check_request(steps, 0.0)
    low, tile = enlarge(images, data.degraded.scale), data.shape[1]
    height, width = low.shape[2:]
    low = pad(low, (0, max(0, tile - width), 0, max(0, tile - height)), mode="replicate")
    device = next(model.denoiser.parameters()).device
    x = sample(
        Tiled(model.denoise, tile),
        starting_noise(seed, 0, len(low), low.shape[1:]).to(device),
        schedule=model.card.schedule,
        times=sampling.grid(steps),
        label=low.to(device),
        w=torch.zeros(len(low), device=device),
        sampler=SAMPLERS[sampling.sampler],
        fresh=fresh_noise(seed, 0, len(low), low.shape[1:]),
    )
    return x[..., :height, :width].clamp(-1, 1).cpu()
