"""Adversarial diffusion distillation: a few-step generator that pleases a judge and its teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.prediction import Condition, Prediction, diffuse
from fewstep.diffusion.schedule import Images, alpha
from fewstep.methods.base import Method, Networks, Phase, Times, Weights
from fewstep.methods.consistency import renoising
from fewstep.methods.critic import CRITIC
from fewstep.methods.draws import Draws
from fewstep.methods.judge import JudgeSettings
from fewstep.methods.losses import Loss
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.methods.training import STUDENT
from fewstep.system.validation import NotNegative


@dataclass(frozen=True, kw_only=True)
class ADD(GuidedStudentSettings, JudgeSettings, Method):
    """Adversarial diffusion distillation (Sauer et al. 2023, 2311.17042).

    The data, noised to one of the student's levels, become its x in one evaluation. A judge tells x from data, and one
    step of the guided teacher says where x, noised afresh to a time t ~ U[0, 1], should be:

        distillation E alpha_t |x - sg(x_teacher(alpha_t x + sigma_t eps, t))|^2 + the judge's error

    mean over the values. The distillation alone is no aim: on Gaussian data its optimum is a point, the mean.

    Args:
        levels: where the sampler evaluates, falling in (0, 1].
        distillation: weight of the teacher's term, 0 for none.
        The rest: see `Method`, `GuidedStudentSettings` and `JudgeSettings`.

    Raises:
        ValueError: bad levels, a negative weight, or neither judge nor distillation.
    """

    paper: ClassVar[str] = "Sauer et al. 2023 (2311.17042)"
    certainty: ClassVar[str] = (
        "the losses are sure; ours: the teacher's own features, of x at a little noise, in the place of DINOv2's, so "
        "that no student is judged by what it trained on; means in the place of sums; w as an input"
    )
    optional_roles: ClassVar[tuple[str, ...]] = (CRITIC,)

    name: str = "add"
    levels: Sequence[float] = (1.0, 0.75, 0.5, 0.25)
    distillation: NotNegative = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distillation == 0 and self.judge is None:
            raise ValueError("stage.distillation must be above 0 where stage.judge is null, got 0")
        self.phases()

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, *self.judge_roles)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(renoising(self.levels, "input")),)

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return phase.sampling.grid()

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        return replace(nets, trained={**nets.trained, **self.judge_networks(nets.teacher, stream)})

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        data, label = batch
        w, t = nets.w_range.draw(draws), one_of(phase.sampling.grid(), draws)
        noised = diffuse(x=data, eps=draws.normal(), log_snr=nets.schedule.log_snr(t))
        x = nets.student(noised.z, noised.log_snr, label, w).x
        return self.judged(
            {STUDENT: Loss(self.teacher_error(x, nets, draws, label, w), t, w)},
            x,
            target=data,
            data=data,
            trained=nets.trained,
            schedule=nets.schedule,
            label=label,
            guidance_weight=self.training.guidance_weight,
            draws=draws,
        )

    def teacher_error(
        self, x: Images, nets: Networks, draws: Draws, label: Condition, w: Weights
    ) -> Float[Tensor, "batch"]:
        """The teacher's term; none is computed where it has no weight."""
        if not self.distillation:
            return torch.zeros_like(w)
        log_snr = nets.schedule.log_snr(draws.uniform())
        noised = diffuse(x=x.detach(), eps=draws.normal(), log_snr=log_snr)
        with torch.no_grad():
            goal: Prediction = nets.frozen_teacher(noised.z, log_snr, label, w)
        return self.distillation * alpha(log_snr) * (x - goal.x).square().flatten(1).mean(1)


def one_of(levels: Float[Tensor, "levels"], draws: Draws) -> Times:
    """One of the levels for each example, each as likely."""
    return levels.to(draws.device)[draws.integers(0, len(levels))]
