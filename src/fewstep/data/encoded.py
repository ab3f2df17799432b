"""Images encoded once: mean and variance of their latents, kept in memory as far as there is room."""

from hashlib import sha256

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.data.batches import from_uint8
from fewstep.networks.frozen.autoencoder import Autoencoder

ENCODER_BATCH = 16  # images or prompts a call, always as many, so that what is made of one never depends on the others
MAX_CACHED = 2**28  # bytes


class EncodedImages:
    """Moments of images by what they hold, so that a data set that fits is encoded in its first epoch alone."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], Tensor] = {}

    def of(
        self, images: UInt8[Tensor, "batch 3 height width"], autoencoder: Autoencoder, device: torch.device | str
    ) -> Float[Tensor, "batch 2 channels rows columns"]:
        """Mean and variance of each image's latent, on `device`, where they are kept too."""
        keys = [(str(device), sha256(image.numpy().tobytes()).digest()) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        for start in range(0, len(new), ENCODER_BATCH):
            chunk = [*new][start : start + ENCODER_BATCH]
            part = torch.zeros(ENCODER_BATCH, *images.shape[1:], dtype=torch.uint8)
            part[: len(chunk)] = torch.stack([new[key] for key in chunk])
            moments = torch.stack(autoencoder.encode(from_uint8(part.to(device))), 1)
            self._known.update(zip(chunk, moments[: len(chunk)].clone(), strict=True))  # a view would keep all of them
        found = torch.stack([self._known[key] for key in keys])
        if len(self._known) * found[0].nbytes > MAX_CACHED:
            self._known.clear()
        return found
