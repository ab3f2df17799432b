"""One fold of any ratio: a student's step is several of its teacher's, in one training."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.hop import folded
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Networks, Phase, Regression, Times, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.system.validation import AtLeastOne


@dataclass(frozen=True, kw_only=True)
class SingleFold(GuidedStudentSettings, Regression):
    """Regress to the prediction whose one DDIM step lands where `fold` steps of the teacher do.

    Progressive distillation without halvings: N steps are learned from N * fold of the teacher's at once, with `fold`
    evaluations of it an example, and no error of an earlier student is inherited.

    Args:
        num_steps: N, of the student. fold: steps of the teacher in one of the student's.
        The rest: see `Method` and `GuidedStudentSettings`.

    Raises:
        ValueError: fewer than one step.
    """

    paper: ClassVar[str] = "after Luhman & Luhman 2021 (2101.02388) and Salimans & Ho 2022 (2202.00512)"
    certainty: ClassVar[str] = "ours: the target of progressive distillation at any ratio"

    name: str = "single_fold"
    num_steps: AtLeastOne = 4
    fold: AtLeastOne = 8

    def with_steps(self, num_steps: int) -> "SingleFold":
        return replace(self, num_steps=num_steps)

    def phases(self) -> tuple[Phase, ...]:
        sampling = Sampling.uniform(self.num_steps, guidance="input")
        return (Phase(sampling, num_steps=self.num_steps, teacher_steps=self.num_steps * self.fold),)

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return phase.sampling.grid()

    def draw_times(self, draws: Draws, phase: Phase) -> Times:
        return draws.integers(1, self.num_steps + 1).double() / self.num_steps

    @torch.no_grad()
    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        if self.fold == 1:
            return nets.frozen_teacher(noised.z, noised.log_snr, label, w)
        end = (t - 1 / self.num_steps).clamp(min=0)
        return folded(
            nets.frozen_teacher, noised.z, t=t, t_end=end, num_steps=self.fold, schedule=nets.schedule, label=label, w=w
        )
