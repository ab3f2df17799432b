"""Diagnostics of a student in training: what to look at where the loss does not say whether it is well."""

from fewstep.diagnostics.probe import NUM_EXAMPLES
from fewstep.diagnostics.watch import Diagnostics

__all__ = ["NUM_EXAMPLES", "Diagnostics"]
