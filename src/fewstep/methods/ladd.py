"""Latent adversarial diffusion distillation: a judge that reads the teacher, and the teacher's samples as real ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.batch import Pairs
from fewstep.diffusion.prediction import diffuse
from fewstep.methods.add import one_of
from fewstep.methods.base import Networks, Phase, Times
from fewstep.methods.consistency import renoising
from fewstep.methods.draws import Draws
from fewstep.methods.from_pairs import FromPairs
from fewstep.methods.losses import Loss
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.methods.training import STUDENT


@dataclass(frozen=True, kw_only=True)
class LADD(GuidedStudentSettings, FromPairs):
    """Latent adversarial diffusion distillation (Sauer et al. 2024, 2403.12015).

    Samples of the guided teacher, noised to one of the student's levels, become its x in one evaluation; the judge,
    which reads the teacher's features at each of its blocks, tells x from those samples. There is nothing else: no
    regression, and no data. Samples are made with their w before it trains, at a cost that is counted (`FromPairs`).

    Args:
        levels: where the sampler evaluates, falling in (0, 1].
        The rest: see `FromPairs`; `judge` must be given.

    Raises:
        ValueError: bad levels, or no judge.
    """

    paper: ClassVar[str] = "Sauer et al. 2024 (2403.12015)"
    certainty: ClassVar[str] = (
        "the set-up is sure, from notes of readers; the paper does not give the form of the losses, here ADD's; ours: "
        "heads at each place in the place of convolutions, w as an input"
    )

    name: str = "ladd"
    levels: Sequence[float] = (1.0, 0.75, 0.5, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is None:
            raise ValueError("stage.judge must be given: the judge is all that this student learns from")
        self.phases()

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(renoising(self.levels, "input"), teacher_steps=self.teacher_steps),)

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return phase.sampling.grid()

    def draw_times(self, draws: Draws, phase: Phase) -> Times:
        return one_of(phase.sampling.grid(), draws)

    def losses(self, batch: Pairs, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        t = self.draw_times(draws, phase)
        noised = diffuse(x=batch.x, eps=draws.normal(), log_snr=nets.schedule.log_snr(t))
        x = nets.student(noised.z, noised.log_snr, batch.label, batch.w).x
        return self.judged(
            {STUDENT: Loss(torch.zeros_like(batch.w), t, batch.w)},
            x,
            target=batch.x,
            data=batch.x,
            trained=nets.trained,
            schedule=nets.schedule,
            label=batch.label,
            guidance_weight=self.training.guidance_weight,
            draws=draws,
        )
