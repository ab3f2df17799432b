"""Methods of training and distillation, each one object; README.md here says which paper each is from."""

from fewstep.methods.add import ADD
from fewstep.methods.base import Method, Networks, Parent, Phase, Regression
from fewstep.methods.boot import Boot
from fewstep.methods.consistency import Consistency
from fewstep.methods.ddil import DDIL
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.dp_dmd import DPDMD
from fewstep.methods.ect import EasyConsistency
from fewstep.methods.em_mixture import EMMixture
from fewstep.methods.encoder import Encoder
from fewstep.methods.flow_map import FlowMap
from fewstep.methods.flow_trajectory import FlowTrajectory
from fewstep.methods.freeflow import FreeFlow
from fewstep.methods.guidance import Guidance
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.ict import ImprovedConsistency
from fewstep.methods.knowledge_distillation import KnowledgeDistillation
from fewstep.methods.ladd import LADD
from fewstep.methods.lcm import LatentConsistency
from fewstep.methods.meanflow import MeanFlow
from fewstep.methods.noise_aware_judge import NoiseAwareJudge
from fewstep.methods.o2mkd import O2MKD
from fewstep.methods.pi_flow import PiFlow
from fewstep.methods.pid import PID
from fewstep.methods.progressive import Progressive
from fewstep.methods.rdd import RDD
from fewstep.methods.reflow import Reflow
from fewstep.methods.scm import ContinuousConsistency
from fewstep.methods.sfddm import SFDDM
from fewstep.methods.sid import SiD
from fewstep.methods.single_fold import SingleFold
from fewstep.methods.teacher import Teacher
from fewstep.methods.tract import Tract
from fewstep.methods.training import Training
from fewstep.methods.two_guidances import TwoGuidances
from fewstep.methods.vdd import VDD

__all__ = [
    "ADD",
    "DDIL",
    "DMD2",
    "DPDMD",
    "LADD",
    "O2MKD",
    "PID",
    "RDD",
    "SFDDM",
    "VDD",
    "Boot",
    "Consistency",
    "ContinuousConsistency",
    "EMMixture",
    "EasyConsistency",
    "Encoder",
    "FlowMap",
    "FlowTrajectory",
    "FreeFlow",
    "Guidance",
    "GuidanceRange",
    "ImprovedConsistency",
    "KnowledgeDistillation",
    "LatentConsistency",
    "MeanFlow",
    "Method",
    "Networks",
    "NoiseAwareJudge",
    "Parent",
    "Phase",
    "PiFlow",
    "Progressive",
    "Reflow",
    "Regression",
    "SiD",
    "SingleFold",
    "Teacher",
    "Tract",
    "Training",
    "TwoGuidances",
]
