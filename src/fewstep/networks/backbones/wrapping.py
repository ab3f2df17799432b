"""What the wrappers of diffusers' models share: checked settings and scalar inputs."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, TypeVar

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.networks.inputs import Scalar, ScalarInputs, Scalars, outputs_of, scalar_inputs

Network = TypeVar("Network", bound=nn.Module)
DEFAULT_LEVELS = range(4)  # of diffusers' U-Nets without block_out_channels


def build(
    model: Callable[..., Network], config: Mapping[str, Any], ours: Mapping[str, Any], components: int
) -> Network:
    """diffusers' `model` of the settings in `config` and of `ours`, which follow from the wrapper's own arguments.

    Without `out_channels` in `config` it has as many as `in_channels`; `outputs_of(components)` times as many.

    Raises:
        ValueError: a name in `config` that `model` does not take or that is one of ours, or `out_channels` that are
            neither `in_channels` nor, with a learned variance, twice as many.
    """
    if unknown := sorted(set(config) - set(signature(model).parameters)):
        raise ValueError(f"config must hold arguments of {model.__name__}, and {unknown[0]!r} is none; remove it")
    if given := sorted(set(config) & set(ours)):
        raise ValueError(
            f"config must not hold {given[0]!r}, which follows from the shape, the classes and the other arguments; "
            "remove it"
        )
    channels = ours["in_channels"]
    settings = {"out_channels": channels, **config, **ours}
    if settings["out_channels"] not in (channels, 2 * channels):
        raise ValueError(
            f"config.out_channels must be {channels}, or {2 * channels} for a model that learns its variance too, "
            f"got {settings['out_channels']}"
        )
    return model(**{**settings, "out_channels": settings["out_channels"] * outputs_of(components)})


def output_of(output: Tensor, z: Tensor, components: int) -> Tensor:
    """A model's output for z: without the channels of a learned variance, and with an axis of a policy's outputs.

    The outputs of a channel of z come one after another.
    """
    outputs = output.unflatten(1, (-1, outputs_of(components)))[:, : z.shape[1]]
    return outputs.transpose(1, 2) if components else outputs[:, :, 0]


def check_levels(shape: Sequence[int], config: Mapping[str, Any]) -> None:
    """Check that the levels of a diffusers U-Net of these settings halve images of that shape evenly.

    Raises:
        ValueError: they do not.
    """
    levels = len(config.get("block_out_channels", DEFAULT_LEVELS))
    check_divisible(shape, 2 ** (levels - 1), f"a U-Net of {levels} levels")


def check_divisible(shape: Sequence[int], by: int, what: str) -> None:
    """Check that images are (C, H, W) with H and W divisible by `by`.

    Raises:
        ValueError: they are not.
    """
    if len(shape) != 3 or any(size < 1 or size % by for size in shape[1:]):
        raise ValueError(
            f"{what} needs images (C, H, W) with H and W divisible by {by}, got {tuple(shape)}; choose another model= "
            "or change the sizes in model.network"
        )


class GivenFeatures(nn.Module):
    """An identity in the place of a model's `time_proj`: features of time are passed as its timesteps.

    They come as (features, batch), because diffusers' U-Net multiplies its timesteps with batch ones.
    """

    def forward(self, features: Float[Tensor, "features batch"]) -> Float[Tensor, "batch features"]:
        return features.T


class TimeFeatures(nn.Module):
    """Sinusoid of 1000 * time plus `ScalarInputs`: `time_cond_proj_dim` for those of diffusers' models that lack it.

    Args:
        time_proj: diffusers' own `Timesteps` of the model.
        inputs: the scalar inputs other than time, of as many features; None where there are none.
    """

    def __init__(self, time_proj: nn.Module, inputs: ScalarInputs | None) -> None:
        super().__init__()
        self.time_proj = time_proj
        self.projection = inputs

    def forward(self, time: Scalar, w: Scalar | None, extra: Scalars | None = None) -> Float[Tensor, "features batch"]:
        features = self.time_proj(1000 * time)
        if self.projection is not None:
            features = features + self.projection(self.projection.sinusoids(w, extra))
        return features.T


def add_scalar_inputs(unet: UNet2DConditionModel, guidance_input: bool, extra_inputs: Sequence[str], dim: int) -> None:
    """Put `ScalarInputs` in the place of the projection of `time_cond_proj_dim`.

    The state dict stays that of diffusers' class where w is the only scalar input.
    """
    num_features = unet.time_embedding.linear_1.in_features
    inputs = scalar_inputs(guidance_input, extra_inputs, dim=dim, num_features=num_features)
    unet.time_embedding.cond_proj = inputs  # pyright: ignore[reportAttributeAccessIssue]  # it is any module


def timestep_cond(
    unet: UNet2DConditionModel, w: Scalar | None, extra: Scalars | None
) -> Float[Tensor, "batch all"] | None:
    """A U-Net's argument of that name: the sinusoids of its scalar inputs, None where it has none."""
    inputs = unet.time_embedding.cond_proj
    return inputs.sinusoids(w, extra) if isinstance(inputs, ScalarInputs) else None
