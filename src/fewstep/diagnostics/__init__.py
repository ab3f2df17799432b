"""Diagnostics of a student in training: what to look at where the loss does not say whether it is well."""

from fewstep.diagnostics.callback import Diagnostics
from fewstep.diagnostics.probe import NUM_EXAMPLES

__all__ = ["NUM_EXAMPLES", "Diagnostics"]
