"""Models of each network, a second's work to make, with random weights everywhere: nothing hides behind a zero."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.artifacts.model_file import Ancestor, ModelCard, save_model
from fewstep.data.facts import DataFacts, LatentFacts, TextFacts
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, network_class
from fewstep.networks.frozen.autoencoder import Autoencoder, write_tiny_autoencoder
from fewstep.networks.frozen.text_encoder import TextEncoder, write_tiny_text_encoder

UNET_BLOCKS = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
SIZES: dict[str, dict[str, Any]] = {
    "ResidualMLP": {"width": 16, "num_blocks": 1, "embedding_dim": 8},
    "UNet": {
        "channels": [8, 16],
        "num_blocks": 1,
        "attention": [False, True],
        "head_dim": 4,
        "norm_groups": 4,
        "guidance_dim": 8,
    },
    "UNet2D": {
        "config": UNET_BLOCKS
        | {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]},
        "guidance_dim": 8,
    },
    "DiT": {
        "config": {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2},
        "guidance_dim": 8,
    },
    "TextUNet": {
        "config": UNET_BLOCKS
        | {
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        },
        "guidance_dim": 8,
    },
    "TextMLP": {"width": 16, "num_blocks": 1, "embedding_dim": 8},
}
COSINE, BETAS = CosineSchedule(), BetaSchedule()
ZERO_SNR = BetaSchedule(rescale_zero_snr=True)
TRAINED = BetaSchedule("trained", num_timesteps=100, betas=tuple(0.001 + 0.0009 * i for i in range(100)))


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        scale = 0.3 if parameter.ndim < 2 else 0.7 / parameter[0].numel() ** 0.5
        parameter.data = scale * torch.randn(parameter.shape, generator=generator) + (
            ".norm" in name and parameter.ndim < 2
        )
    return network.eval()


def companions(folder: Path) -> tuple[LatentFacts, TextFacts]:
    """The facts of a tiny autoencoder and a tiny text encoder, written below `folder`."""
    write_tiny_autoencoder(folder / "vae", downsampling=2)
    write_tiny_text_encoder(folder, features=16, tokens=32)
    return Autoencoder.open(folder).facts((3, 16, 16)), TextEncoder.open(folder).facts()


def write_model(
    path: Path,
    name: str,
    *,
    latent: LatentFacts | None = None,
    text: TextFacts | None = None,
    w: tuple[float, float] | None = (0.0, 4.0),
    sampling: Sampling | None = None,
    extra_inputs: tuple[str, ...] = (),
    **card: Any,
) -> Path:
    """A model file of the network of that name: a student of 4 steps with a w input, or a teacher where w is None.

    Args:
        sampling: another one than theirs. card: other values of the card.
    """
    shape = (4, 8, 8) if latent else (3, 8, 8)
    bound = 1000.0 if latent else 1.0
    data = DataFacts("tiny", shape, 0 if text else 10, -bound, bound, latent=latent, text=text)
    own: dict[str, Any] = {"tokens": text.tokens, "features": text.features} if text else {}
    made = ModelCard(
        **{
            "method": "progressive" if w else "teacher",
            "data": data,
            "prediction": "v",
            "schedule": COSINE,
            "sampling": sampling or (Sampling.uniform(4, guidance="input") if w else Sampling()),
            "w_min": w[0] if w else None,
            "w_max": w[1] if w else None,
            "images": 1000,
            "parents": (Ancestor("guidance", "../guidance/model.safetensors", "ab" * 32),) if w else (),
        }
        | card
    )
    sizes = SIZES[name] | own | {"shape": list(shape), "num_classes": data.num_classes, "guidance_input": bool(w)}
    sizes["extra_inputs"] = list(extra_inputs)
    if name == "DiT":
        sizes["config"] = SIZES[name]["config"] | {"out_channels": 2 * shape[0]}
    network = lively(network_class(name)(**sizes))
    if text is not None:
        network.empty_prompt = TextEncoder.open(text.encoder).empty_prompt
    save_model(path, Denoiser(network, made.prediction, made.native_schedule), made)
    return path
