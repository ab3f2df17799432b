"""fewstep: distil guided diffusion models into students of one to eight steps."""

from importlib.metadata import version

from fewstep.model import Model, load

__version__ = version("fewstep")
__all__ = ["Model", "__version__", "load"]
