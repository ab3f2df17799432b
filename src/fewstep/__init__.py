"""fewstep: distil guided diffusion models into students of one to eight steps."""

import logging
from importlib.metadata import version

# A compiler of CUDA without a GPU is no news, and torch warns of it in each process.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from fewstep.inference.adapters import with_adapters  # noqa: E402
from fewstep.inference.model import Base, Model, load  # noqa: E402
from fewstep.inference.super_resolution import upscale  # noqa: E402
from fewstep.inference.tasks import edit, inpaint, interpolate, transfer  # noqa: E402

__version__ = version("fewstep")
__all__ = [
    "Base",
    "Model",
    "__version__",
    "edit",
    "inpaint",
    "interpolate",
    "load",
    "transfer",
    "upscale",
    "with_adapters",
]
