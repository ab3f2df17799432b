"""Samples that several evaluations would draw alike, in a folder: a teacher's cost more than all of its students'."""

from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.system.files import atomic_write

SAMPLES, SECONDS = "samples", "seconds"


def kept(
    folder: Path | None, protocol: str, key: tuple[object, ...], draw: Callable[[], Tensor]
) -> tuple[Tensor, float]:
    """Samples and the seconds that they took: those in `folder` of this key, else drawn now and written there.

    Args:
        folder: None keeps nothing. protocol: id of the protocol, which has the seed of the noise and the conditions.
        key: all else that the samples depend on; with None in it they are not kept.
    """
    path = None
    if folder is not None and None not in key:
        text = repr((torch.__version__, version("fewstep"), protocol, *key))
        path = folder / f"{sha256(text.encode()).hexdigest()[:32]}.safetensors"
        if (found := read(path)) is not None:
            return found
    start = perf_counter()
    x = draw()
    seconds = perf_counter() - start
    if path is not None:
        with atomic_write(path) as temporary:
            save_file({SAMPLES: x.contiguous(), SECONDS: torch.tensor(seconds, dtype=torch.float64)}, temporary)
    return x, seconds


def read(path: Path) -> tuple[Tensor, float] | None:
    """What is in a file of kept samples; None if it is missing or damaged."""
    try:
        tensors = load_file(path)
        return tensors[SAMPLES], tensors[SECONDS].item()
    except (OSError, SafetensorError, KeyError):
        return None
