"""Networks whose right answers are known: the exact mixture behind the signature of a network."""

import torch
from torch import Tensor, nn

from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import PredictionKind
from fewstep.diffusion.schedule import CosineSchedule


class ExactNetwork(nn.Module):
    """Outputs `kind` of the exact mixture at the time of its native schedule, timestep / 1000, or at ours.

    Args:
        null_is: the label whose answer "no class" gets: itself, or a class where the null does not work.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        kind: PredictionKind,
        native_schedule: BetaSchedule | None = None,
        null_is: int | None = None,
    ) -> None:
        super().__init__()
        self.arguments = {
            "shape": [mixture.means.shape[1]],
            "num_classes": mixture.num_classes,
            "guidance_input": False,
        }
        self.mixture, self.kind, self.native_schedule = mixture, kind, native_schedule
        self.null_is = mixture.num_classes if null_is is None else null_is
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
        if self.native_schedule is None:  # network_time, the angle over pi / 2
            log_snr = -2 * torch.log(torch.tan(time.double() * torch.pi / 2))
        else:
            log_snr = self.native_schedule.log_snr((1000 * time.double() + 1) / self.native_schedule.num_timesteps)
        label = label.where(label != self.mixture.num_classes, self.null_is)
        return getattr(self.mixture.denoise(z, log_snr, label), self.kind)


def schedule_of(native_schedule: BetaSchedule | None) -> BetaSchedule | CosineSchedule:
    return native_schedule or CosineSchedule()
