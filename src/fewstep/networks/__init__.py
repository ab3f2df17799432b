"""The networks, by name: a model file may name one of these and nothing else."""

from torch import nn

from fewstep.networks.backbones.experts import MixtureOfExperts
from fewstep.networks.backbones.mlp import ResidualMLP
from fewstep.networks.backbones.text_mlp import TextMLP
from fewstep.networks.denoiser import Denoiser, Frozen, with_guidance_input, with_inputs
from fewstep.networks.routed import Routed

NETWORKS = ("ResidualMLP", "UNet", "UNet2D", "TextUNet", "TextMLP", "DiT", "Routed", "MixtureOfExperts")


def network_class(name: str) -> type[nn.Module]:
    """The network class of that name, one of NETWORKS.

    Raises:
        ValueError: a name that is not on the list.
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}; is the file made by fewstep?")
    quick = {each.__name__: each for each in (ResidualMLP, TextMLP, Routed, MixtureOfExperts)}
    if name in quick:
        return quick[name]
    from fewstep.networks.backbones import dit, text_unet, unet, unet2d  # diffusers takes seconds to import

    return {"UNet": unet.UNet, "UNet2D": unet2d.UNet2D, "TextUNet": text_unet.TextUNet, "DiT": dit.DiT}[name]


def __getattr__(name: str) -> type[nn.Module]:
    if name in NETWORKS:
        return network_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "NETWORKS",
    "Denoiser",
    "Frozen",
    "MixtureOfExperts",
    "ResidualMLP",
    "Routed",
    "TextMLP",
    "network_class",
    "with_guidance_input",
    "with_inputs",
]
