"""What the wrappers of diffusers' models share: their settings checked, w beside time, the channels that count."""

import json
from collections.abc import Collection, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.networks.backbones.mlp import zeroed
from fewstep.networks.inputs import sinusoid

DEFAULT_LEVELS = range(4)  # of diffusers' U-Nets without block_out_channels


def checked_config(model: type[nn.Module], config: Mapping[str, Any], ours: Collection[str]) -> dict[str, Any]:
    """A copy of `config`, in plain JSON, once all its names are arguments of `model` and none is one of `ours`.

    Raises:
        ValueError: a name that `model` does not take, or that follows from the wrapper's own arguments.
    """
    taken = set(signature(model).parameters)
    if unknown := sorted(set(config) - taken):
        raise ValueError(f"config must hold arguments of {model.__name__}, and {unknown[0]!r} is none; remove it")
    if given := sorted(set(config) & set(ours)):
        raise ValueError(
            f"config must not hold {given[0]!r}, which follows from the shape, the classes and the other arguments; "
            "remove it"
        )
    return json.loads(json.dumps(dict(config)))


def check_divisible(shape: Sequence[int], by: int, what: str) -> None:
    """Images (C, H, W) with H and W divisible by `by`.

    Raises:
        ValueError: they are not.
    """
    if len(shape) != 3 or any(size < 1 or size % by for size in shape[1:]):
        raise ValueError(
            f"{what} needs images (C, H, W) with H and W divisible by {by}, got {tuple(shape)}; choose another model= "
            "or change model.network.config"
        )


class GivenFeatures(nn.Module):
    """In the place of a model's `time_proj`: what comes as timesteps *is* the features, (features, batch).

    Transposed, because diffusers' U-Net multiplies its timesteps with batch ones.
    """

    def forward(self, features: Float[Tensor, "features batch"]) -> Float[Tensor, "batch features"]:
        return features.T


class TimeFeatures(nn.Module):
    """Sinusoid of 1000 * time, plus a bias-free projection, zero at first, of the sinusoid of 1000 * w.

    That is diffusers' `time_cond_proj_dim` for those of its models that lack it.

    Args:
        time_proj: diffusers' own `Timesteps` of the model. num_features: how many it gives.
        guidance_dim: size of the sinusoid of w, None for no w input.
    """

    def __init__(self, time_proj: nn.Module, num_features: int, guidance_dim: int | None) -> None:
        super().__init__()
        self.time_proj = time_proj
        self.guidance_dim = guidance_dim
        self.projection = None if guidance_dim is None else zeroed(nn.Linear(guidance_dim, num_features, bias=False))

    def forward(
        self, time: Float[Tensor, "batch"], w: Float[Tensor, "batch"] | None
    ) -> Float[Tensor, "features batch"]:
        features = self.time_proj(1000 * time)
        if self.projection is not None and self.guidance_dim is not None:
            features = features + self.projection(w_features(w, self.guidance_dim, self.projection.weight.dtype))
        return features.T


def zeroed_w(unet: UNet2DConditionModel) -> None:
    """Let the w input of `time_cond_proj_dim` add nothing at first."""
    projection = unet.time_embedding.cond_proj
    assert projection is not None
    zeroed(projection)


def w_features(w: Float[Tensor, "batch"] | None, dim: int, dtype: torch.dtype) -> Float[Tensor, "batch dim"]:
    """Sinusoid of 1000 * w, which diffusers' pipelines give as `timestep_cond`, in the dtype of what it meets."""
    assert w is not None, "this network has a w input"
    return sinusoid(w, dim).to(dtype)


def first_channels(
    output: Float[Tensor, "batch outputs height width"], z: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """The channels of the prediction: models that learn their variance too give twice as many."""
    return output[:, : z.shape[1]]


def check_out_channels(channels: int, out_channels: int) -> None:
    """As many as z has, or twice as many.

    Raises:
        ValueError: any other number.
    """
    if out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"config.out_channels must be {channels}, or {2 * channels} for a model that learns its variance too, "
            f"got {out_channels}"
        )
