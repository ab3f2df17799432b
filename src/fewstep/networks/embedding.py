"""How numbers enter a network."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sinusoid(value: Float[Tensor, "batch"], dim: int) -> Float[Tensor, "batch dim"]:
    """Sines then cosines of 1000 * value at dim / 2 frequencies from 1 down to 1e-4, geometrically spaced.

    The embedding that diffusers' pipelines make of w for `time_cond_proj_dim` (and our networks of time), so that a
    guided student opens in them; a test holds it against `diffusers.models.embeddings.get_timestep_embedding`.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=value.device) / (half - 1)
    angles = 1000 * value.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
