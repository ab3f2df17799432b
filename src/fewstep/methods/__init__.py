"""One LightningModule per stage of the pipeline, on one base."""

from fewstep.methods.base import GuidanceRange, NonFiniteLossError, Stage, Training
from fewstep.methods.encoder import EncoderStage
from fewstep.methods.guidance import GuidanceStage
from fewstep.methods.progressive import ProgressiveStage, check_chain, check_ladder
from fewstep.methods.teacher import TeacherStage

__all__ = [
    "EncoderStage",
    "GuidanceRange",
    "GuidanceStage",
    "NonFiniteLossError",
    "ProgressiveStage",
    "Stage",
    "TeacherStage",
    "Training",
    "check_chain",
    "check_ladder",
]
