"""Train a small autoencoder on the images of a data set, so that latent models need none of Stable Diffusion's.

It is diffusers' AutoencoderKL (Rombach et al. 2022, section 3.1) without the perceptual and the adversarial loss:
squared error + KL_WEIGHT KL(N(mean, variance) | N(0, 1)), means over D pixels and over d latents. That is a VAE (Kingma
and Welling 2014, equation 10) whose decoder has the variance KL_WEIGHT D / (2 d).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.data.batches import ImagesInMemory, from_uint8
from fewstep.diffusion.schedule import Images
from fewstep.networks.frozen.autoencoder import Autoencoder, small_network
from fewstep.system.files import atomic_write, check_free
from fewstep.system.seeds import seed_for

KL_WEIGHT, LEARNING_RATE, WARM_UP = 1e-4, 2e-3, 100  # all ours; the last in steps
GROUPS, WIDEST = 8, 4  # of the norms; of the widths, over the finest level's
MEASURED, PART = 4096, 64  # images whose latents' standard deviation becomes 1; at a time


@dataclass(frozen=True)
class AutoencoderSettings:
    """Sizes and training of an autoencoder.

    Args:
        channels: of a latent. downsampling: pixels per latent along each side, 2, 4, 8 or 16.
        width: channels of the finest level, a multiple of 8, twice as many on the next, up to four times.
        images: that the training sees.

    Raises:
        ValueError: a value outside its range.
    """

    channels: int = 4
    downsampling: int = 4
    width: int = 16
    images: int = 300_000
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.downsampling not in (2, 4, 8, 16):
            raise ValueError(f"an autoencoder's downsampling must be 2, 4, 8 or 16, got {self.downsampling}")
        if self.width < GROUPS or self.width % GROUPS:
            raise ValueError(f"an autoencoder needs a width that is a multiple of {GROUPS}, got {self.width}")
        if self.channels < 1 or not 1 <= self.batch_size <= self.images:
            raise ValueError(
                "an autoencoder needs at least 1 channel and 1 <= batch_size <= images, got "
                f"{self.channels}, {self.batch_size} and {self.images}"
            )

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.width * min(WIDEST, 2**level) for level in range(self.downsampling.bit_length())]


class AutoencoderTraining:
    """Trains an autoencoder on images, a step at a time.

    Attributes:
        num_steps: of the training.

    Raises:
        ValueError: images whose sides the downsampling does not divide.
    """

    def __init__(self, source: ImagesInMemory, settings: AutoencoderSettings, device: torch.device | str) -> None:
        channels, *sides = source.facts.shape
        if any(side % settings.downsampling for side in sides):
            raise ValueError(
                f"--downsampling must divide the sides of the images, {' x '.join(map(str, sides))} pixels, got "
                f"{settings.downsampling}; use another, or images of another size (size=)"
            )
        self.source, self.device = source, device
        torch.manual_seed(seed_for(settings.seed, "autoencoder"))
        self.network = small_network(channels, settings.channels, settings.widths, groups=GROUPS)
        nn.Module.to(self.network, device)
        nn.Module.to(self.network, memory_format=torch.channels_last)
        self.num_steps = settings.images // settings.batch_size

    def steps(self) -> Iterator[Float[Tensor, ""]]:
        """Take all steps; give the squared error of each, a mean over pixels in [-1, 1], on the device."""
        optimizer = torch.optim.AdamW(self.network.parameters(), LEARNING_RATE, betas=(0.9, 0.99), fused=True)
        decay = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * (1 - step / self.num_steps)
        )
        for step in range(self.num_steps):
            x = self.source.batch(step).x.to(self.device, memory_format=torch.channels_last)
            loss, decoded = self.loss(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            yield (decoded.detach() - x).square().mean()

    def loss(self, x: Images) -> tuple[Float[Tensor, ""], Images]:
        """The loss of images, and what is decoded of a draw of their latents."""
        encoded = self.network.encode(cast(torch.FloatTensor, x), return_dict=False)[0]
        decoded = self.network.decode(cast(torch.FloatTensor, encoded.sample()), return_dict=False)[0]
        return (decoded - x).square().mean() + KL_WEIGHT * encoded.kl().mean() / encoded.mean[0].numel(), decoded

    @torch.no_grad()
    def save(self, out: Path) -> Autoencoder:
        """Write it to `out` in diffusers' layout, scaled so that latents have the standard deviation 1; open it.

        Raises:
            ValueError: there is something already, or the training has diverged.
        """
        check_free(out, "autoencoder")
        count = min(MEASURED, len(self.source.labels))
        index = torch.arange(count) * len(self.source.labels) // count
        images = from_uint8(self.source.images[index]).to(self.device)
        latents = [self.network.encode(part, return_dict=False)[0].sample() for part in images.split(PART)]
        deviation = float(torch.cat(latents).std())
        if not isfinite(deviation):
            raise ValueError("the autoencoder's training has diverged; use a larger --batch-size, or another --seed")
        self.network.register_to_config(scaling_factor=1 / deviation)
        with atomic_write(out) as unfinished:
            self.network.save_pretrained(unfinished)
        return Autoencoder.open(out)
