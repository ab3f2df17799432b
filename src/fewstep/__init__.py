"""fewstep: distil guided diffusion models into students of one to eight steps."""

from importlib.metadata import version

from fewstep.inference.model import Model, load
from fewstep.inference.tasks import edit, inpaint, interpolate, transfer

__version__ = version("fewstep")
__all__ = ["Model", "__version__", "edit", "inpaint", "interpolate", "load", "transfer"]
