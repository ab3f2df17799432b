"""Distribution matching that keeps the teacher's diversity: the first step follows the teacher, the others match."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fewstep.diffusion.hop import folded
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.sampler import ddim_step
from fewstep.diffusion.schedule import Images
from fewstep.methods.base import Networks, Phase, Times, Weights
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.draws import Draws
from fewstep.methods.losses import Loss, regress
from fewstep.system.validation import AtLeastOne, Positive


@dataclass(frozen=True, kw_only=True)
class DPDMD(DMD2):
    """Diversity-preserved distribution matching (DP-DMD, 2026).

    The student samples by DDIM. Its first step, which settles what a sample will be, regresses to where `teacher_steps`
    steps of the guided teacher lead from the same noise, at the student's own second level. The state there is a
    constant, and matching moves the last x with a gradient through all steps that follow.

    Args:
        levels: where the student is evaluated, falling from 1; at least two.
        teacher_steps: of the teacher, equally long in t, in the student's first step.
        first_weight: of the first step's error.
        The rest: see `DMD2`; what `guidance_t_max` says of the student's level means t = 1 here.

    Raises:
        ValueError: see `DMD2`; fewer than two levels, no step of the teacher, a weight that is not positive, or
            settings of samples of several levels.
    """

    paper: ClassVar[str] = "Wu et al. 2026 (2602.03139)"
    certainty: ClassVar[str] = (
        "sure: read in the authors' code; the teacher ends at the student's own level, the first step has noise of its "
        "own, and w as an input are ours"
    )

    name: str = "dp_dmd"
    teacher_steps: AtLeastOne = 4
    first_weight: Positive = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.levels) < 2 or self.levels[0] != 1:
            raise ValueError(
                "stage.levels must begin at 1 and have at least two, the first of which follows the teacher, got "
                f"{list(self.levels)}"
            )
        if self.states is not None or self.fake_sees_level:
            raise ValueError(
                "stage.states must be null and stage.fake_sees_level false where all samples are of the student's own "
                f"last step, got {self.states and dict(self.states)} and {self.fake_sees_level}; stage=dmd2 has them"
            )

    def phases(self) -> tuple[Phase, ...]:
        sampling = super().phases()[0].sampling
        return (Phase(replace(sampling, sampler="deterministic"), num_steps=len(self.levels)),)

    def generate(
        self, data: Images, nets: Networks, draws: Draws, label: Condition, w: Weights, *, step: int, phase: Phase
    ) -> Prediction:
        """The last prediction of the student's sampling, whose first has no gradient."""
        eps = draws.normal()
        times = (torch.full((len(eps),), t, dtype=torch.float64, device=eps.device) for t in self.levels)
        first, *others = map(nets.schedule.log_snr, times)
        with torch.no_grad():
            prediction = nets.student(eps, first, label, w)
        for log_snr in others:
            prediction = nets.student(ddim_step(prediction, log_snr), log_snr, label, w)
        return prediction

    def student_loss(
        self, x: Images, nets: Networks, draws: Draws, label: Condition, w: Weights, *, level: Times
    ) -> Loss:
        loss = super().student_loss(x, nets, draws, label, w, level=torch.ones_like(level))
        return replace(loss, error=loss.error + self.first_weight * self.first_step(nets, draws, label, w).error)

    def first_step(self, nets: Networks, draws: Draws, label: Condition, w: Weights) -> Loss:
        """The error of the step from noise of its own to the second level, where the teacher's steps end."""
        start, end = (torch.full((len(w),), level, dtype=torch.float64, device=w.device) for level in self.levels[:2])
        target = folded(
            nets.frozen_teacher,
            draws.normal(),
            t=start,
            t_end=end,
            num_steps=self.teacher_steps,
            schedule=nets.schedule,
            label=label,
            w=w,
        )
        prediction = nets.student(target.z, target.log_snr, label, w)
        return regress(prediction, target, self.training, t=start, w=w)
