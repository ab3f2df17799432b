"""Methods of training and distillation, each one object; README.md here says which paper each is from."""

from fewstep.methods.base import Method, Networks, Parent, Phase, Regression
from fewstep.methods.consistency import Consistency
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.encoder import Encoder
from fewstep.methods.guidance import Guidance
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.progressive import Progressive
from fewstep.methods.teacher import Teacher
from fewstep.methods.tract import Tract
from fewstep.methods.training import Training

__all__ = [
    "DMD2",
    "Consistency",
    "Encoder",
    "Guidance",
    "GuidanceRange",
    "Method",
    "Networks",
    "Parent",
    "Phase",
    "Progressive",
    "Regression",
    "Teacher",
    "Tract",
    "Training",
]
