"""TRACT: a student that jumps from anywhere in a group of teacher steps to the group's end, in few phases."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.hop import two_hop
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Networks, Parent, Phase, Regression, Times, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.networks.ema import Average, bias_corrected
from fewstep.system.validation import Positive, ShareBelowOne

SELF_TEACHER = "self_teacher"


@dataclass(frozen=True, kw_only=True)
class Tract(GuidedStudentSettings, Regression):
    """Transitive closure of the teacher's steps: S_in of them become S_out, in one phase (Berthelot et al. 2023).

    A group is the S_in / S_out teacher steps inside one student step. From t = i / S_in inside a group the teacher
    makes one step to u = t - 1 / S_in, the self-teacher, an average of the student, the rest to the group's end s; the
    student's one step from t to s shall make both (`two_hop`; from u = s there is no second). At the start of each
    phase the self-teacher is the student, and its decay is corrected for that: the first update copies the weights.

    Args:
        time_schedule: the steps that the parent is run with, then those of each phase's student: [64, 8, 1].
        self_teacher_decay: of the self-teacher, per step; 0.5 in the authors' code.
        few_steps, few_steps_factor: phases of at most so many steps get so many times `training.images`.
        The rest: see `Method` and `GuidedStudentSettings`.

    Raises:
        ValueError: steps of which one does not divide the one before, or a decay outside [0, 1).
    """

    paper: ClassVar[str] = "Berthelot et al. 2023 (2303.04248)"
    certainty: ClassVar[str] = "sure: read in the authors' code; w as an input is ours"

    name: str = "tract"
    time_schedule: Sequence[int] = (64, 8, 1)
    self_teacher_decay: ShareBelowOne = 0.5
    few_steps: int = 0
    few_steps_factor: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.time_schedule
        if len(steps) < 2 or min(steps) < 1 or any(a <= b or a % b for a, b in pairwise(steps)):
            raise ValueError(
                "stage.time_schedule must fall, each number a divisor of the one before, like [64,8,1], got "
                f"{list(steps)}"
            )

    def parent(self) -> Parent:
        return Parent(guidance=("input",), continues=Sampling.uniform(self.time_schedule[0], guidance="input"))

    def with_steps(self, num_steps: int) -> "Tract":
        return replace(self, time_schedule=(*(steps for steps in self.time_schedule if steps > num_steps), num_steps))

    def phases(self) -> tuple[Phase, ...]:
        return tuple(
            Phase(
                Sampling.uniform(num_steps, guidance="input"),
                num_steps=num_steps,
                teacher_steps=teacher_steps,
                budget=self.few_steps_factor if num_steps <= self.few_steps else 1.0,
            )
            for teacher_steps, num_steps in pairwise(self.time_schedule)
        )

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        self_teacher = Average(nets.student, bias_corrected(self.self_teacher_decay))
        return replace(nets, averages={**nets.averages, SELF_TEACHER: self_teacher})

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return torch.arange(phase.learned_steps, 0, -1, dtype=torch.float64) / phase.learned_steps

    def draw_times(self, draws: Draws, phase: Phase) -> Times:
        return draws.integers(1, phase.learned_steps + 1).double() / phase.learned_steps

    def hops(self, t: Times, phase: Phase) -> tuple[Times, Times]:
        """Where the teacher's step from t ends, and where its group does."""
        number = (t * phase.learned_steps).round()  # of the teacher's step that begins at t
        size = phase.learned_steps // phase.own_steps
        end = torch.div(number - 1, size, rounding_mode="floor") * size
        return (number - 1) / phase.learned_steps, end / phase.learned_steps

    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        mid, end = self.hops(t, phase)
        return two_hop(
            first=nets.frozen_teacher(noised.z, noised.log_snr, label, w),
            second=nets.averages[SELF_TEACHER],
            log_snr_mid=nets.schedule.log_snr(mid),
            log_snr_end=nets.schedule.log_snr(end),
            label=label,
            w=w,
        )
