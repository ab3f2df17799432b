"""How a network uses a device: less memory, another layout, compiled calls. What it computes stays the same."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Clipped
from fewstep.networks.denoiser import Denoiser, Frozen


def checkpoint_gradients(network: nn.Module) -> None:
    """Keep no activations inside the blocks of diffusers' models: they are computed again for the gradient.

    Raises:
        ValueError: the network has no such blocks.
    """
    models: list[Any] = [module for module in network.modules() if hasattr(module, "enable_gradient_checkpointing")]
    if not models:
        raise ValueError(
            f"trainer.gradient_checkpointing needs a network of diffusers, and {type(network).__name__} is none; use "
            "trainer.gradient_checkpointing=false"
        )
    for model in models:
        model.enable_gradient_checkpointing()


def to_channels_last(network: nn.Module) -> None:
    """Lay the weights of convolutions out with the channels last, which the fast kernels of GPUs want.

    Activations follow their weights. Weights of any other kind are left as they are.
    """
    for weight in network.parameters():
        if weight.ndim == 4:  # one by one, since Module.to refuses the weights without values of a plan
            weight.data = weight.data.to(memory_format=torch.channels_last)


def compile_calls(*parts: object, graphs: bool = False) -> None:
    """Compile the calls of the networks in `parts`, not the modules: weights keep their names.

    Args:
        graphs: into CUDA graphs, where the network is on a GPU: for calls without gradients, of few sizes, the result
            of one of which is used up before the next, as samplers do.
    """
    for part in parts:
        for denoiser in denoisers_in(part):
            on_gpu = next(denoiser.parameters()).device.type == "cuda"
            denoiser.network.compile(mode="reduce-overhead" if graphs and on_gpu else None)


def denoisers_in(part: object) -> Iterator[Denoiser]:
    """The denoisers inside a student or a teacher, guided, clipped or neither."""
    match part:
        case Denoiser():
            yield part
        case Frozen():
            yield part.denoiser
        case Guided() | Clipped():
            yield from denoisers_in(part.denoise)
