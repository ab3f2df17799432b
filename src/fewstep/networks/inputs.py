"""How numbers enter a network."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def sinusoid(value: Float[Tensor, "batch"], dim: int) -> Float[Tensor, "batch dim"]:
    """Sines then cosines of 1000 * value at dim / 2 frequencies from 1 down to 1e-4, geometrically spaced.

    The embedding that diffusers' pipelines make of w for `time_cond_proj_dim` (and our networks of time), so that a
    guided student opens in them; a test holds it against `diffusers.models.embeddings.get_timestep_embedding`.
    """
    # Tracing and fake tensors, which must not be remembered, have the frequencies worked out in place.
    plain = type(value) is Tensor and not torch.compiler.is_compiling()
    angles = 1000 * value.float()[:, None] * (_remembered if plain else frequencies)(dim, value.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def frequencies(dim: int, device: torch.device) -> Float[Tensor, "half"]:
    """dim / 2 of them, from 1 down to 1e-4, geometrically spaced."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=device) / (half - 1)
    return torch.exp(-math.log(10_000) * exponents)


@lru_cache(maxsize=64)
def _remembered(dim: int, device: torch.device) -> Float[Tensor, "half"]:
    with torch.inference_mode(False):  # so that a gradient may pass where the first call had none
        return frequencies(dim, device)
