"""Low-rank changes of a network as plain tensors: checked against it, and added to its weights with strengths.

Their names are those of diffusers and PEFT, `layer.lora_A.weight` and `layer.lora_B.weight`, with alpha / rank in B.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from fewstep.networks.adapter import is_adapters
from fewstep.networks.denoiser import Denoiser

A, B = ".lora_A.weight", ".lora_B.weight"
Factors = Mapping[str, Tensor]
"""A and B of each layer, by name."""


def layers_of(factors: Factors) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> its A, (rank, inputs...), and B, (outputs, rank...).

    Raises:
        ValueError: none, a name that is of neither, a half without the other, or two of different ranks or not finite.
    """
    if unknown := next((name for name in factors if not name.endswith((A, B))), None):
        raise ValueError(f"an adapter holds layer{A} and layer{B} and nothing else, got {unknown!r}")
    names = dict.fromkeys(name.removesuffix(A).removesuffix(B) for name in factors)
    layers = {}
    for name in names:
        if name + A not in factors or name + B not in factors:
            raise ValueError(f"an adapter needs both A and B of a layer, and {name} has one of them")
        a, b = factors[name + A], factors[name + B]
        if min(a.ndim, b.ndim) < 2 or a.shape[0] != b.shape[1] or not (a.isfinite().all() and b.isfinite().all()):
            raise ValueError(f"A and B of {name} must be finite and of one rank, got {[*a.shape]} and {[*b.shape]}")
        layers[name] = a, b
    if not layers:
        raise ValueError("an adapter must hold the factors of at least one layer, got none")
    return layers


def change_of(a: Tensor, b: Tensor) -> Tensor:
    """B A in float64, of the shape of the weight that it is for."""
    change = b.double().flatten(1) @ a.double().flatten(1)
    return change.reshape(len(b), *a.shape[1:])


def misfit(network: nn.Module, factors: Factors) -> str | None:
    """Why the factors are for another network; None if they fit."""
    weights = dict(network.named_parameters())
    for name, (a, b) in layers_of(factors).items():
        own, wanted = weights.get(f"{name}.weight"), (len(b), *a.shape[1:])
        if own is None:
            return f"its layer {name} is none of this {type(network).__name__}"
        if own.shape != wanted:
            return (
                f"its layer {name} is {' x '.join(map(str, wanted))}, and the model's {' x '.join(map(str, own.shape))}"
            )
    return None


def with_changes(denoiser: Denoiser, changes: Iterable[tuple[Factors, float]]) -> Denoiser:
    """A copy whose weights are W + sum_i strength_i B_i A_i, summed in float64; strength 0 leaves W as it is.

    Args:
        changes: factors that fit the network (`misfit`), each with its strength.
    """
    own = deepcopy(denoiser)
    total: dict[str, Tensor] = {}
    for factors, strength in changes:
        for name, (a, b) in layers_of(factors).items():
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + strength * change_of(a, b)
    with torch.no_grad():
        for name, change in total.items():
            weight = own.network.get_parameter(f"{name}.weight")
            weight.copy_(weight.double() + change.to(weight.device))
    return own


def set_strength(denoiser: Denoiser, strength: float) -> None:
    """Have the adapter inside an adapted denoiser count `strength` times from the next call on."""
    from peft.tuners.lora import LoraLayer  # takes seconds to import

    for module in denoiser.network.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", strength)


def adapter_weights(denoiser: Denoiser) -> list[nn.Parameter]:
    """The parameters of the adapter inside an adapted denoiser, without the projections of its inputs."""
    return [parameter for name, parameter in denoiser.named_parameters() if is_adapters(name)]
