"""What students of stored pairs share: noise, and the sample that a teacher makes from it in several steps."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.batch import Pairs
from fewstep.diffusion.prediction import Prediction, diffuse, interpret
from fewstep.methods.base import Method, Networks, Phase, Times
from fewstep.methods.critic import CRITIC
from fewstep.methods.draws import Draws
from fewstep.methods.judge import JudgeSettings
from fewstep.methods.losses import Loss, regress
from fewstep.methods.student_settings import StudentSettings
from fewstep.methods.training import STUDENT
from fewstep.system.validation import AtLeastOne


@dataclass(frozen=True, kw_only=True)
class FromPairs(StudentSettings, JudgeSettings, Method):
    """A regression to pairs (noise, w, label) -> sample, which the phase's teacher makes before it trains.

    Making them costs `teacher_steps` evaluations of the teacher a pair, and counts: in the card, and of a budget in
    evaluations, of which it takes at most half. A student of one step learns at pure noise alone.

    Args:
        teacher_steps: of DDIM, by which the first phase's teacher makes each sample.
        num_pairs: made at most, in each phase.
        store: folder where pairs are made, and found again by other runs; None for one in the run's own.
        The rest: see `Method` and `StudentSettings`.

    Raises:
        ValueError: no pairs, or fewer than one step.
    """

    optional_roles: ClassVar[tuple[str, ...]] = (CRITIC,)

    teacher_steps: AtLeastOne = 16
    num_pairs: AtLeastOne = 50_000
    store: str | None = None

    @property
    def inputs(self) -> Literal["pairs"]:
        return "pairs"

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, *self.judge_roles)

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        return replace(nets, trained={**nets.trained, **self.judge_networks(nets.teacher, stream)})

    def times(self, phase: Phase) -> Float[Tensor, "times"] | None:
        return phase.sampling.grid() if phase.num_steps == 1 else None

    def draw_times(self, draws: Draws, phase: Phase) -> Times:
        """One time per example."""
        return torch.ones(draws.count, device=draws.device) if phase.num_steps == 1 else draws.uniform()

    def losses(self, batch: Pairs, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        t = self.draw_times(draws, phase)
        truth = between(batch, nets, t)
        if nets.student.training:
            draws.separate_ranks()
        prediction = nets.student(truth.z, truth.log_snr, batch.label, batch.w)
        return self.judged(
            {STUDENT: regress(prediction, truth, self.training, t=t, w=batch.w)},
            prediction.x,
            target=batch.x,
            data=batch.x,
            trained=nets.trained,
            schedule=nets.schedule,
            label=batch.label,
            guidance_weight=self.training.guidance_weight,
            draws=draws,
        )


def between(pairs: Pairs, nets: Networks, t: Times) -> Prediction:
    """The truth at time t of the paths that join noise and sample: z = alpha x + sigma noise, at t = 1 the noise.

    Sampling starts from noise alone there, also on schedules whose alpha is not 0.
    """
    log_snr = nets.schedule.log_snr(t)
    path = diffuse(x=pairs.x, eps=pairs.noise, log_snr=log_snr)
    start = interpret("x", pairs.x, z=pairs.noise, log_snr=log_snr)
    at_noise = (t == 1).reshape(-1, *[1] * (pairs.x.ndim - 1))
    z, v = (torch.where(at_noise, one, other) for one, other in ((start.z, path.z), (start.v, path.v)))
    return Prediction(z=z, v=v, log_snr=log_snr)
