"""Consistency models: a student that goes from any level to t = 0 in one evaluation, along the teacher or the data."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.hop import two_hop
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Networks, Phase, Regression, Times, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.readings import require_identity_at_data
from fewstep.methods.state_source import StateSettings
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.networks.ema import Average, constant
from fewstep.system.validation import AtLeastTwo, ShareBelowOne

SELF_TEACHER = "self_teacher"


@dataclass(frozen=True, kw_only=True)
class Consistency(StateSettings, GuidedStudentSettings, Regression):
    """Consistency distillation (Song et al. 2023, algorithm 2): f at one grid level shall be f at the next.

    From t = i / N the teacher makes one DDIM step to u = t - 1/N, where the self-teacher, an average of the student or
    the student itself without gradient, predicts x; that is the target at t (`two_hop` with s = 0). f is the student's
    predicted x: read from v or eps it is the identity at t = 0, which the paper's boundary scalings are for.

    The student is sampled by noising its x afresh to each of the chosen levels (algorithm 1), or to every second, ...

    Args:
        num_levels: N, of the training grid.
        levels: where the sampler evaluates, falling in (0, 1].
        metric: l2, or pseudo_huber of the whole example (Song & Dhariwal 2024).
        self_teacher_decay: per step; 0 is the student itself.
        The rest: see `Method`, `StateSettings` and `GuidedStudentSettings`.

    Raises:
        ValueError: fewer than two levels of the grid, bad sampling levels, a decay outside [0, 1).
    """

    paper: ClassVar[str] = "Song et al. 2023 (2303.01469); Song & Dhariwal 2024 (2310.14189)"
    certainty: ClassVar[str] = "sure: read in the authors' code; the schedule and w as an input are ours"

    name: str = "consistency"
    num_levels: AtLeastTwo = 40
    levels: Sequence[float] = (1.0, 0.75, 0.5, 0.25)
    metric: Literal["l2", "pseudo_huber"] = "l2"
    self_teacher_decay: ShareBelowOne = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.phases()

    @property
    def metric_name(self) -> str:
        return self.metric

    def without_teacher(self) -> "ConsistencyTraining":
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return ConsistencyTraining(**own)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(renoising(self.levels, "input")),)

    def networks(self, nets: Networks, stream: str) -> Networks:
        require_identity_at_data(self, nets)
        nets = super().networks(nets, stream)
        if not self.self_teacher_decay:
            return nets
        self_teacher = Average(nets.student, constant(self.self_teacher_decay))
        return replace(nets, averages={**nets.averages, SELF_TEACHER: self_teacher})

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return torch.arange(self.num_levels, 0, -1, dtype=torch.float64) / self.num_levels

    def lowest_time(self, phase: Phase) -> float:
        return 1 / self.num_levels

    def draw_times(self, draws: Draws, phase: Phase) -> Times:
        return draws.integers(1, self.num_levels + 1).double() / self.num_levels

    def first_hop(self, noised: Prediction, label: Condition, w: Weights | None, nets: Networks) -> Prediction:
        """What the step to the next level follows: the teacher's prediction."""
        return nets.frozen_teacher(noised.z, noised.log_snr, label, w)

    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        return two_hop(
            first=self.first_hop(noised, label, w, nets),
            second=nets.averages.get(SELF_TEACHER, nets.student),
            log_snr_mid=nets.schedule.log_snr(t - 1 / self.num_levels),
            log_snr_end=nets.schedule.log_snr(torch.zeros_like(t)),
            label=label,
            w=w,
        )


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(Consistency):
    """Consistency training (Song et al. 2023, algorithm 3), stage=consistency with teacher=none.

    The step to the next level follows the data: x and eps of the example itself. There is no guidance to distil, so the
    student has no w; and no parent that it could be smaller than.

    Raises:
        ValueError: a setting that is of a student of a teacher.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("w_min", "w_max", "student", "adapter", "states") if getattr(self, name) is not None]
        if given := [*given, *(["clip_target"] if self.clip_target else [])]:
            raise ValueError(
                f"stage.{given[0]} is about a teacher, and teacher=none says there is none, got "
                f"{getattr(self, given[0])!r}"
            )

    def parent(self) -> None:
        return None

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(renoising(self.levels, "none")),)

    def guidance(self, parent: GuidanceRange | None) -> None:
        return None

    def first_hop(self, noised: Prediction, label: Condition, w: Weights | None, nets: Networks) -> Prediction:
        return noised


def renoising(levels: Sequence[float], guidance: Literal["input", "none"]) -> Sampling:
    """The sampling of a student that goes from each of the levels to t = 0.

    Raises:
        ValueError: levels outside (0, 1], or not falling.
    """
    try:
        return Sampling(sampler="renoise", times=tuple(float(t) for t in levels), guidance=guidance)
    except ValueError as error:
        raise ValueError(f"stage.levels are no levels to sample at, like [1.0, 0.5]: {error}") from error
