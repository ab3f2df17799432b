"""Seeds as functions of a key: each use of randomness has its own seed, so no generator state need be saved."""

from collections.abc import Callable, Sequence
from hashlib import sha256

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.system.limits import require_seed


def seed_for(*key: int | str) -> int:
    """A 63-bit seed from the hash of a key, as seed_for(run_seed, "teacher", step)."""
    return int.from_bytes(sha256("/".join(map(str, key)).encode()).digest()[:8], "big") >> 1


def reseed(seed: int, device: torch.device) -> None:
    """Seed the default generators of the CPU and of `device`, and no others.

    torch.manual_seed also records a formatted stack for each backend not yet initialised: a millisecond and some
    kilobytes per call, in every training step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def starting_noise(seed: int, start: int, count: int, shape: Sequence[int]) -> Float[Tensor, "count *shape"]:
    """z at t = 1 of images start, start + 1, ...; that of image i depends on (seed, i) alone, not on the batch size.

    Raises:
        ValueError: see `require_seed`.
    """
    require_seed(seed)
    generator = torch.Generator()
    return torch.stack(
        [
            torch.randn(*shape, generator=generator.manual_seed(seed_for(seed, "noise", index)))
            for index in range(start, start + count)
        ]
    )


def fresh_noise(
    seed: int, start: int, count: int, shape: Sequence[int]
) -> Callable[[int], Float[Tensor, "count *shape"]]:
    """step -> the noise that a stochastic sampler adds there; that of image i depends on (seed, i, step) alone."""

    def at(step: int) -> Float[Tensor, "count *shape"]:
        return starting_noise(seed_for(seed, "fresh", step), start, count, shape)

    return at
