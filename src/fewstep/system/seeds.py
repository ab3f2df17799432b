"""Random numbers are named, not remembered: each use has a seed that is a function of what it is for."""

from collections.abc import Callable, Sequence
from hashlib import sha256

import torch
from jaxtyping import Float
from torch import Tensor


def seed_for(*key: int | str) -> int:
    """A 63-bit seed for a stream of random numbers, named by its key: seed_for(run_seed, "teacher", step)."""
    return int.from_bytes(sha256("/".join(map(str, key)).encode()).digest()[:8], "big") >> 1


def reseed(seed: int, device: torch.device) -> None:
    """torch.manual_seed for the CPU and `device` alone.

    torch's own keeps, for each kind of device that is not in use, the seed and a formatted stack for later: a
    millisecond and some kilobytes per call, every training step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def starting_noise(seed: int, start: int, count: int, shape: Sequence[int]) -> Float[Tensor, "count *shape"]:
    """z at t = 1 for the images start, start + 1, ...: image i's depends on (seed, i) alone, not on the batch size."""
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
    """The noise that a sampler adds at its moves 1, 2, ...: image i's at a move depends on (seed, i, move) alone."""

    def at(step: int) -> Float[Tensor, "count *shape"]:
        return starting_noise(seed_for(seed, "fresh", step), start, count, shape)

    return at
