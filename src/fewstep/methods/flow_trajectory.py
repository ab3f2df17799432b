"""Flow-trajectory distillation: one step from a degraded image to what a teacher makes of it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fewstep.data.batch import Pairs
from fewstep.diffusion.rectified import between, log_snr_at, placed, rectified_time, velocity
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Batch, Images, Schedule
from fewstep.methods.base import Networks, Parent, Phase
from fewstep.methods.draws import Draws
from fewstep.methods.from_pairs import FromPairs
from fewstep.methods.losses import Loss
from fewstep.methods.training import STUDENT
from fewstep.networks.denoiser import arguments_of
from fewstep.system.validation import Share

LATEST = 1 - 1e-4  # rectified time; at 1 the log-SNR is infinite


def restoring(start: float) -> Sampling:
    """One evaluation at t = `start`, where the degraded image stands for z.

    Raises:
        ValueError: a time outside (0, 1).
    """
    if not 0 < start < 1:
        raise ValueError(
            f"stage.start must be a time between 0 and 1, got {start:g}; it is where the image stands for z"
        )
    return Sampling(sampler="restore", times=(start,), guidance="none")


def require_images(name: str, nets: Networks) -> None:
    """Check that the student's condition is an image.

    Raises:
        ValueError: it is a class or a prompt.
    """
    if not arguments_of(nets.student.network).get("image_condition", False):
        raise ValueError(
            f"stage={name} restores degraded images, and this student's condition is none; use dataset=patches_sr"
        )


def start_of(schedule: Schedule, start: float) -> float:
    """The rectified time T_L of a time of the schedule."""
    return float(rectified_time(schedule.log_snr(torch.tensor(start, dtype=torch.float64))))


def flow_trajectory_error(u: Images, *, low: Images, x: Images, start: float) -> Batch:
    """L_FTD = (T_L / (1 - T_L))^2 |u - (z_L - x) / T_L|^2, its mean over the values of each example.

    It is FluxSR's |((eps - x) - T_L u) / (1 - T_L) - (eps - z_L) / (1 - T_L)|^2, where the network's u implies a
    velocity between noise and degraded image, which is compared with the true one. The noise drops out.
    """
    return ((start * u - (low - x)) / (1 - start)).square().flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class FlowTrajectory(FromPairs):
    """FluxSR's flow-trajectory distillation (Li et al. 2025, 2502.01993), in one step from degraded images.

    The degraded image z_L takes the place of z at the rectified time T_L; from there a straight path leads on to the
    noise eps of which the teacher made x under the condition z_L. Along it, over T in [T_L, 1], the student's velocity
    is regressed to the constant (z_L - x) / T_L (`flow_trajectory_error`). It is sampled by one step from z_L.

    Args:
        start: t of the schedule at T_L.
        share_at_start: of the examples at T_L itself, the only time that sampling evaluates; there L_FTD is the
            squared error of the restored image over (1 - T_L)^2, the paper's other term. The rest are uniform in T.
        The rest: see `Method`, `FromPairs` and `StudentSettings`; `training.weight` is not used.

    Raises:
        ValueError: a time outside (0, 1), or a share outside [0, 1].
    """

    paper: ClassVar[str] = "after FluxSR, Li et al. 2025 (2502.01993)"
    certainty: ClassVar[str] = (
        "flow_trajectory-style: the objective from the paper's figure; T_L, weights and pairs are ours; no TV-LPIPS, "
        "no attention diversification"
    )

    name: str = "flow_trajectory"
    start: float = 0.25
    share_at_start: Share = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        restoring(self.start)

    def parent(self) -> Parent:
        return Parent(guidance=("none",))

    def guidance(self, parent: object) -> None:
        return None

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(restoring(self.start), num_steps=1, teacher_steps=self.teacher_steps),)

    def networks(self, nets: Networks, stream: str) -> Networks:
        require_images(self.name, nets)
        return super().networks(nets, stream)

    def losses(self, batch: Pairs, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        start, low = start_of(nets.schedule, self.start), batch.label
        later = start + (LATEST - start) * draws.uniform().double()
        time = torch.where(draws.uniform() < self.share_at_start, start, later)
        log_snr = log_snr_at(time)
        z = placed(between(low, batch.noise, time=time, start=start), log_snr)
        if nets.student.training:
            draws.separate_ranks()
        u = velocity(nets.student(z, log_snr, low, None))
        return {STUDENT: Loss(flow_trajectory_error(u, low=low, x=batch.x, start=start), nets.schedule.time(log_snr))}
