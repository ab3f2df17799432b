"""Small examples of the networks that wrap diffusers' models, for the tests of each and of all."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.networks import DiT, TextUNet, UNet2D

TOKENS, FEATURES = 3, 12


class Question(NamedTuple):
    """Inputs of a network, for four images."""

    z: Tensor
    time: Tensor
    label: Tensor
    w: Tensor


BIGGAN = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "attn_norm_num_groups": 4,
    "resnet_time_scale_shift": "scale_shift",
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
UNET2D = {"shape": [3, 8, 8], "num_classes": 5, "config": BIGGAN, "guidance_dim": 8}
DDPM = UNET2D | {
    "config": {
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "norm_eps": 1e-6,
    }
}
DIT = {
    "shape": [3, 8, 8],
    "num_classes": 5,
    "config": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8},
    "guidance_dim": 8,
}
TEXT = {
    "shape": [3, 8, 8],
    "num_classes": 0,
    "tokens": TOKENS,
    "features": FEATURES,
    "config": {
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    "guidance_dim": 8,
}
WRAPPED: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "unet2d-biggan": (UNet2D, UNET2D),
    "unet2d-ddpm": (UNet2D, DDPM),
    "dit": (DiT, DIT),
    "text": (TextUNet, TEXT),
}


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere: layers that start at zero would hide what comes before them."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*network.parameters(), *(b for k, b in network.named_buffers() if k == "empty_prompt")):
        tensor.data.normal_(0, 0.3, generator=generator)
    return network.eval()


def question(sizes: dict[str, Any]) -> Question:
    """Four images, times, labels with the null label among them or prompts, and w."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(4, *sizes["shape"], generator=generator)
    classes = sizes["num_classes"]
    prompts = torch.randn(4, TOKENS, FEATURES, generator=generator)
    label = torch.tensor([0, 1, classes - 1, classes]) if classes else prompts
    return Question(z, torch.linspace(0, 1, 4), label, torch.linspace(0, 4, 4))


def with_config(sizes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same arguments with other settings of diffusers' model."""
    return sizes | {"config": sizes["config"] | changes}
