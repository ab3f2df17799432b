"""fewstep: distil guided diffusion models into students of one to eight steps."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.inference.adapters import with_adapters
    from fewstep.inference.model import Base, Model, load
    from fewstep.inference.super_resolution import upscale
    from fewstep.inference.tasks import edit, inpaint, interpolate, transfer

# A compiler of CUDA without a GPU is no news, and torch warns of it in each process.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

# Imported when first used: torch takes seconds, and `fewstep --help` and most errors need none of it.
PLACES = {
    "fewstep.inference.adapters": ("with_adapters",),
    "fewstep.inference.model": ("Base", "Model", "load"),
    "fewstep.inference.super_resolution": ("upscale",),
    "fewstep.inference.tasks": ("edit", "inpaint", "interpolate", "transfer"),
}
__all__ = [
    "Base",
    "Model",
    "__version__",  # pyright: ignore[reportUnsupportedDunderAll]  # __getattr__ has it
    "edit",
    "inpaint",
    "interpolate",
    "load",
    "transfer",
    "upscale",
    "with_adapters",
]


def __getattr__(name: str) -> Any:
    """The public name, imported at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fewstep")
    place = next((module for module, names in PLACES.items() if name in names), None)
    if place is None:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(import_module(place), name)
