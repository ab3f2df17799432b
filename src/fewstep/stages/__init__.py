"""One LightningModule per stage of the pipeline, on one base."""

from fewstep.stages.base import GuidanceRange, NonFiniteLossError, Stage, Training
from fewstep.stages.encoder import EncoderStage
from fewstep.stages.guidance import GuidanceStage
from fewstep.stages.progressive import ProgressiveStage, check_chain, check_ladder
from fewstep.stages.teacher import TeacherStage

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
