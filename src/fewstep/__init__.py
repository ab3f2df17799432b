"""fewstep: distil guided diffusion models into students of one to eight steps."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep import methods
    from fewstep.data.batch import Batch
    from fewstep.data.facts import DataFacts
    from fewstep.diffusion.schedule import CosineSchedule
    from fewstep.inference.adapters import with_adapters
    from fewstep.inference.model import Base, Model, load
    from fewstep.inference.super_resolution import upscale
    from fewstep.inference.tasks import edit, inpaint, interpolate, transfer
    from fewstep.methods.training import RoleTraining, Training
    from fewstep.python.distil import distil
    from fewstep.python.module import Distillation
    from fewstep.python.teachers import as_model
    from fewstep.training.module import DistillationModule

# A compiler of CUDA without a GPU is no news, and torch warns of it in each process.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

# Imported when first used: torch takes seconds, and `fewstep --help` and most errors need none of it.
PLACES = {
    "fewstep.data.batch": ("Batch",),
    "fewstep.data.facts": ("DataFacts",),
    "fewstep.diffusion.schedule": ("CosineSchedule",),
    "fewstep.inference.adapters": ("with_adapters",),
    "fewstep.inference.model": ("Base", "Model", "load"),
    "fewstep.inference.super_resolution": ("upscale",),
    "fewstep.inference.tasks": ("edit", "inpaint", "interpolate", "transfer"),
    "fewstep.methods.training": ("RoleTraining", "Training"),
    "fewstep.python.distil": ("distil",),
    "fewstep.python.module": ("Distillation",),
    "fewstep.python.teachers": ("as_model",),
    "fewstep.training.module": ("DistillationModule",),
}
__all__ = [
    "Base",
    "Batch",
    "CosineSchedule",
    "DataFacts",
    "Distillation",
    "DistillationModule",
    "Model",
    "RoleTraining",
    "Training",
    "__version__",  # pyright: ignore[reportUnsupportedDunderAll]  # __getattr__ has it
    "as_model",
    "distil",
    "edit",
    "inpaint",
    "interpolate",
    "load",
    "methods",
    "transfer",
    "upscale",
    "with_adapters",
]


def __dir__() -> list[str]:
    """The public names, for completion."""
    return __all__


def __getattr__(name: str) -> Any:
    """The public name, imported at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fewstep")
    if name == "methods":
        return import_module("fewstep.methods")
    place = next((module for module, names in PLACES.items() if name in names), None)
    if place is None:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(import_module(place), name)
