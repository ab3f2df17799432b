"""The networks, by name: a model file may name one of these and nothing else."""

from typing import TYPE_CHECKING

from torch import nn

from fewstep.networks.backbones.mlp import ResidualMLP
from fewstep.networks.denoiser import Denoiser, Frozen, with_guidance_input, with_inputs

if TYPE_CHECKING:
    from fewstep.networks.backbones.dit import DiT
    from fewstep.networks.backbones.text_unet import TextUNet
    from fewstep.networks.backbones.unet import UNet
    from fewstep.networks.backbones.unet2d import UNet2D

NETWORKS = ("ResidualMLP", "UNet", "UNet2D", "TextUNet", "DiT")


def network_class(name: str) -> type[nn.Module]:
    """The network class of that name, one of NETWORKS.

    Raises:
        ValueError: a name that is not on the list.
    """
    match name:  # diffusers takes seconds to import
        case "ResidualMLP":
            return ResidualMLP
        case "UNet":
            from fewstep.networks.backbones.unet import UNet

            return UNet
        case "UNet2D":
            from fewstep.networks.backbones.unet2d import UNet2D

            return UNet2D
        case "TextUNet":
            from fewstep.networks.backbones.text_unet import TextUNet

            return TextUNet
        case "DiT":
            from fewstep.networks.backbones.dit import DiT

            return DiT
        case _:
            raise ValueError(
                f"network must be one of {', '.join(NETWORKS)}, got {name!r}; is the file made by fewstep?"
            )


def __getattr__(name: str) -> type[nn.Module]:
    if name in NETWORKS:
        return network_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "NETWORKS",
    "Denoiser",
    "DiT",
    "Frozen",
    "ResidualMLP",
    "TextUNet",
    "UNet",
    "UNet2D",
    "network_class",
    "with_guidance_input",
    "with_inputs",
]
