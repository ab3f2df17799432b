"""What data-free trajectory students share: maps from pure noise alone to any time of its trajectory."""

from dataclasses import dataclass
from typing import Literal

import torch

from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.schedule import Images
from fewstep.methods.base import Networks, Times, Weights
from fewstep.methods.flow_map import FlowMapStudent, predict_to


@dataclass(frozen=True, kw_only=True)
class FromNoise(FlowMapStudent):
    """A flow map that starts at t = 1 alone, and so is sampled in one step; trained without data."""

    @property
    def most_steps(self) -> int:
        return 1

    @property
    def inputs(self) -> Literal["noise"]:
        return "noise"

    def predict_from_noise(self, nets: Networks, eps: Images, s: Times, label: Condition, w: Weights) -> Prediction:
        """The student's prediction at pure noise for its step to s."""
        start, end = nets.schedule.log_snr(torch.ones_like(s)), nets.schedule.log_snr(s)
        return predict_to(nets.student, eps, log_snr=start, log_snr_end=end, label=label, w=w)
