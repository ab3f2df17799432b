"""How scalars enter a network: time, the guidance weight w, and any further ones by name."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

W = "w"  # the name of the guidance weight among scalar inputs
W2 = "w2"  # that of a second condition's weight
Scalar = Float[Tensor, "batch"]
"""One value for each example."""
Scalars = Mapping[str, Scalar]
"""Values of the scalar inputs other than w, by name."""

Outputs = Float[Tensor, "batch *outputs"]
"""A network's output for z: of z's shape, or for a policy (batch, outputs, *shape); see `outputs_of`."""


def sinusoid(value: Scalar, dim: int) -> Float[Tensor, "batch dim"]:
    """Sines then cosines of 1000 * value at dim / 2 frequencies from 1 down to 1e-4, geometrically spaced.

    The embedding that diffusers' pipelines make of w for `time_cond_proj_dim` (and our networks of time), so that a
    guided student opens in them; a test holds it against `diffusers.models.embeddings.get_timestep_embedding`.
    """
    # Tracing and fake tensors, which must not be remembered, have the frequencies worked out in place.
    plain = type(value) is Tensor and not torch.compiler.is_compiling()
    angles = 1000 * value.float()[:, None] * (_remembered if plain else frequencies)(dim, value.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def frequencies(dim: int, device: torch.device) -> Float[Tensor, "half"]:
    """The dim / 2 frequencies of `sinusoid`."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=device) / (half - 1)
    return torch.exp(-math.log(10_000) * exponents)


@lru_cache(maxsize=64)
def _remembered(dim: int, device: torch.device) -> Float[Tensor, "half"]:
    with torch.inference_mode(False):  # so that a gradient may pass where the first call had none
        return frequencies(dim, device)


class ScalarInputs(nn.Module):
    """Sum of bias-free projections, zero at first, of the sinusoids of scalar inputs: to be added to those of time.

    diffusers' `time_cond_proj_dim` for several scalars. The projection of w is called `weight`, as it is there; those
    of the others are `extra.NAME`.

    Args:
        guidance_input: whether w is an input. extra_inputs: the names of the others, like s, r or d.
        dim: size of each sinusoid. num_features: of what they are added to.

    Raises:
        ValueError: a name that is no identifier, is w, or comes twice.
    """

    def __init__(self, guidance_input: bool, extra_inputs: Sequence[str], *, dim: int, num_features: int) -> None:
        super().__init__()
        if len(set(extra_inputs)) < len(extra_inputs) or not all(n.isidentifier() and n != W for n in extra_inputs):
            raise ValueError(f"extra_inputs must be different names other than {W}, like [s, r], got {[*extra_inputs]}")
        self.dim = dim
        self.weight = zeroed(nn.Linear(dim, num_features, bias=False)).weight if guidance_input else None
        self.extra = nn.ParameterDict({name: torch.zeros(num_features, dim) for name in extra_inputs})

    def sinusoids(self, w: Scalar | None, extra: Scalars | None) -> Float[Tensor, "batch all"]:
        """The sinusoids of all inputs side by side: the `timestep_cond` of diffusers' U-Nets."""
        values = [(extra or {})[name] for name in self.extra]
        if self.weight is not None:
            assert w is not None, "this network has a w input"
            values = [w, *values]
        return torch.cat([sinusoid(value, self.dim) for value in values], dim=1)

    def forward(self, sinusoids: Float[Tensor, "batch all"]) -> Float[Tensor, "batch features"]:
        """The sum of their projections, computed in the dtype of each."""
        weights = [*([] if self.weight is None else [self.weight]), *self.extra.values()]
        parts = zip(sinusoids.split(self.dim, dim=1), weights, strict=True)
        return reduce(torch.add, (functional.linear(part.to(weight.dtype), weight) for part, weight in parts))


def scalar_inputs(
    guidance_input: bool, extra_inputs: Sequence[str], *, dim: int, num_features: int
) -> ScalarInputs | None:
    """The scalar inputs of a network; None for one that has no other than time."""
    if not guidance_input and not extra_inputs:
        return None
    return ScalarInputs(guidance_input, extra_inputs, dim=dim, num_features=num_features)


def condition_embedding(num_classes: int, features: int, dim: int) -> nn.Module:
    """The embedding of a condition: of a class or "no class", or of a state of so many features, given as one token.

    Raises:
        ValueError: both classes and features, or a negative number of features.
    """
    if features < 0 or (features and num_classes):
        raise ValueError(
            f"a network's condition is a class or a state of at least one feature, got num_classes={num_classes} and "
            f"features={features}"
        )
    if not features:
        return nn.Embedding(num_classes + 1, dim)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))


def plain_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's arguments, its `locals()` before anything else, in plain JSON: what a model file records."""
    return json.loads(json.dumps({name: value for name, value in values.items() if name not in ("self", "__class__")}))


def check_extra(given: Scalars | None, names: Sequence[str]) -> None:
    """Check that the values given to a network are those of its extra inputs.

    Raises:
        ValueError: one is missing, or is of no input of the network.
    """
    if {*(given or {})} != {*names}:
        raise ValueError(
            f"a network's extra inputs must all be given, here {', '.join(names) or 'none'}, got "
            f"{', '.join(given or {}) or 'none'}; pass extra={{name: values}}"
        )


def outputs_of(components: int) -> int:
    """The numbers that a network gives for each of z: 1, or of a policy a mean, a weight and a deviation a component.

    Raises:
        ValueError: a negative number of components.
    """
    if components < 0:
        raise ValueError(f"components must be at least 0, the number of a plain network, got {components}")
    return 3 * components or 1


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with all its parameters zero, so that at first it adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
