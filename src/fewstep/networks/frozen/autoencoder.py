"""diffusers' AutoencoderKL: between images in [-1, 1] and the latents that a latent diffusion model lives in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.data.facts import LatentFacts
from fewstep.networks.frozen.loading import load_frozen, open_same

WHAT = "an AutoencoderKL"
PIXELS_AT_ONCE = 16 * 256 * 256  # decoded or encoded in one call: a few GiB at Stable Diffusion's width

ImageBatch = Float[Tensor, "batch channels height width"]
Latents = Float[Tensor, "batch latent_channels latent_height latent_width"]


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A frozen AutoencoderKL (Rombach et al. 2022, section 3.1) and the affine map of its latents.

    latents = (sample - shift_factor) * scaling_factor, so that their variance is about 1 over the data; sample is drawn
    from N(mean, variance) of what it encodes.

    Attributes:
        network: in eval mode, float32. folder: where it lies.
        digest: sha256 of its weights; equal digests decode alike.
    """

    network: AutoencoderKL
    folder: Path
    digest: str

    @classmethod
    def open(cls, folder: str | Path) -> "Autoencoder":
        """The autoencoder in `folder`, or in the vae/ of the pipeline there.

        Raises:
            ValueError: a file is missing or damaged, the weights are a pickle, do not fit, or normalise per channel.
        """
        folder = Path(folder)
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
        network, digest = load_frozen(AutoencoderKL, folder, WHAT)
        if network.config.get("latents_mean") is not None:
            raise ValueError(
                f"{WHAT} in {folder} normalises each channel (latents_mean), which fewstep does not; use another"
            )
        return cls(network, folder, digest)

    @classmethod
    def of(cls, facts: LatentFacts, folder: str | Path | None = None) -> "Autoencoder":
        """The autoencoder that made these latents, from `folder`, or else from the folder that the facts name.

        Raises:
            ValueError: it is not there, or has other weights; see `open`.
        """
        return open_same(cls.open, facts.autoencoder, facts.sha256, folder, "--autoencoder", WHAT)

    @property
    def scaling_factor(self) -> float:
        return float(self.network.config["scaling_factor"])

    @property
    def shift_factor(self) -> float:
        return float(self.network.config.get("shift_factor") or 0.0)

    @property
    def downsampling(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.network.config["block_out_channels"]) - 1)

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of the latents of images (channels, height, width).

        Raises:
            ValueError: images it cannot encode.
        """
        channels = int(self.network.config["in_channels"])
        if len(image_shape) != 3 or image_shape[0] != channels or any(s % self.downsampling for s in image_shape[1:]):
            raise ValueError(
                f"it encodes images of {channels} channels with sides divisible by {self.downsampling}, got "
                f"{tuple(image_shape)}; choose another data set, image size or --autoencoder"
            )
        _, height, width = image_shape
        return int(self.network.config["latent_channels"]), height // self.downsampling, width // self.downsampling

    def facts(self, image_shape: tuple[int, ...]) -> LatentFacts:
        """The facts of latents of images of that shape.

        Raises:
            ValueError: see `latent_shape`.
        """
        self.latent_shape(image_shape)
        return LatentFacts(
            tuple(image_shape), self.scaling_factor, self.shift_factor, self.digest, str(self.folder.resolve())
        )

    @torch.no_grad()
    def encode(self, images: ImageBatch) -> tuple[Latents, Latents]:
        """Mean and variance of the diagonal Gaussian of images in [-1, 1], before shift and scaling, on their device.

        Raises:
            ValueError: see `latent_shape`.
        """
        self.latent_shape(tuple(images.shape[1:]))
        nn.Module.to(self.network, images.device)
        parts = [
            self.network.encode(part, return_dict=False)[0] for part in images.float().split(at_once(images.shape))
        ]
        return torch.cat([part.mean for part in parts]), torch.cat([part.var for part in parts])

    def latents(self, sample: Latents) -> Latents:
        """(sample - shift_factor) * scaling_factor."""
        return (sample - self.shift_factor) * self.scaling_factor

    def encode_mean(self, images: ImageBatch) -> Latents:
        """Latents of images in [-1, 1], those of the mean, without a draw."""
        return self.latents(self.encode(images)[0])

    @torch.no_grad()
    def decode(self, latents: Latents) -> ImageBatch:
        """Images of latents, on their device; about in [-1, 1], unclamped."""
        nn.Module.to(self.network, latents.device)
        sample = latents.float() / self.scaling_factor + self.shift_factor
        side = self.downsampling
        pixels = (len(sample), 1, sample.shape[2] * side, sample.shape[3] * side)
        parts = [
            self.network.decode(cast(torch.FloatTensor, part), return_dict=False)[0]
            for part in sample.split(at_once(pixels))
        ]
        return torch.cat(parts)


def at_once(shape: tuple[int, ...]) -> int:
    """Images of (count, channels, height, width) that fit into one call."""
    return max(1, PIXELS_AT_ONCE // (shape[-1] * shape[-2]))


def small_network(image_channels: int, latent_channels: int, widths: Sequence[int], *, groups: int) -> AutoencoderKL:
    """A fresh AutoencoderKL of few weights and no attention.

    Args:
        widths: channels of each level, the images' own size first; each further one halves it. groups: of the norms.
    """
    network = AutoencoderKL.from_config(
        {
            "in_channels": image_channels,
            "out_channels": image_channels,
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
            "block_out_channels": [*widths],
            "layers_per_block": 1,
            "latent_channels": latent_channels,
            "norm_num_groups": groups,
            "mid_block_add_attention": False,
        }
    )
    assert isinstance(network, AutoencoderKL)
    return network


def write_tiny_autoencoder(folder: Path, *, downsampling: int = 4, latent_channels: int = 4, seed: int = 0) -> None:
    """Write a random AutoencoderKL of some ten thousand weights in diffusers' layout: for tests and dry runs.

    Args:
        downsampling: 1, 2, 4 or 8.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = small_network(3, latent_channels, [8] * downsampling.bit_length(), groups=4)
    network.save_pretrained(folder)
