"""Easy consistency tuning: a diffusion model becomes a consistency model by levels that come ever closer."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.hop import two_hop
from fewstep.diffusion.prediction import diffuse
from fewstep.methods.base import Method, Networks, Parent, Phase
from fewstep.methods.consistency import renoising
from fewstep.methods.draws import Draws, standard_normal
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.losses import Loss
from fewstep.methods.readings import require_identity_at_data
from fewstep.methods.student_settings import GuidedStudentSettings
from fewstep.methods.training import STUDENT
from fewstep.system.validation import AtLeastOne, NotNegative, Positive

SigmaPair = tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]
"""sigma / alpha at t and at r < t, of each example."""


@dataclass(frozen=True, kw_only=True)
class TunedConsistency(GuidedStudentSettings, Method):
    """Consistency between two levels t > r of a curriculum, with the student itself as its own teacher at r.

    The hop from t to r follows the guided teacher (`hop=teacher`: distillation, w is an input), or as published the
    data (`hop=data`: then there is no guidance to learn). With levels in sigma / alpha the error of an example is

        (sqrt(|x_t - sg(x_r)|^2 + c^2) - c) / (t - r),   c = huber sqrt(D)

    Args:
        levels: where the sampler evaluates, falling in (0, 1].
        hop: see above. huber: c over the square root of the number of values.
        The rest: see `Method` and `GuidedStudentSettings`.

    Raises:
        ValueError: bad sampling levels, a negative c, or weights of a student without w.
    """

    levels: Sequence[float] = (1.0, 0.75, 0.5, 0.25)
    hop: Literal["teacher", "data"] = "teacher"
    huber: NotNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hop == "data" and (self.w_min is not None or self.w_max is not None):
            raise ValueError(
                "stage.w_min and stage.w_max are of a guided teacher, and stage.hop=data follows none, got "
                f"{self.w_min} and {self.w_max}"
            )
        self.phases()

    @abstractmethod
    def pair(self, draws: Draws, done: float) -> SigmaPair:
        """The two levels of each example when this share of the training is done."""

    def parent(self) -> Parent:
        return Parent(guidance=("input", "two_evaluations") if self.hop == "teacher" else ("two_evaluations", "none"))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(renoising(self.levels, "input" if self.hop == "teacher" else "none")),)

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange | None:
        return super().guidance(parent) if self.hop == "teacher" else None

    def networks(self, nets: Networks, stream: str) -> Networks:
        require_identity_at_data(self, nets)
        return super().networks(nets, stream)

    def losses(self, batch: Batch, nets: Networks, draws: Draws, *, step: int, phase: Phase) -> dict[str, Loss]:
        x, label = batch
        w = nets.guidance.draw(draws) if nets.guidance else None
        start, end = self.pair(draws, min(1.0, step / self.training.num_steps))
        clean, noise = nets.schedule.log_snr(torch.zeros_like(start)), nets.schedule.log_snr(torch.ones_like(start))
        log_snr = (-2 * start.log()).clamp(noise, clean - 1)  # above the clean end, so that the step has a length
        log_snr_mid = torch.maximum((-2 * end.log()).clamp(noise, clean), log_snr + 1e-6)
        length = (-log_snr / 2).exp() - (-log_snr_mid / 2).exp()
        noised = diffuse(x=x, eps=draws.normal(), log_snr=log_snr)
        first = noised
        if self.hop == "teacher":
            first = nets.frozen_teacher(noised.z, log_snr, label, w)
        target = two_hop(first=first, second=nets.student, log_snr_mid=log_snr_mid, log_snr_end=clean, label=label, w=w)
        difference = (nets.student(noised.z, log_snr, label, w).x - target.x).flatten(1)
        c = self.huber * difference.shape[1] ** 0.5
        square = difference.square().sum(1)
        error = square / ((square + c**2 + 1e-12).sqrt() + c) / length.to(square)
        return {STUDENT: Loss(error, nets.schedule.time(log_snr).clamp(0, 1), w)}


@dataclass(frozen=True, kw_only=True)
class EasyConsistency(TunedConsistency):
    """ECT (Geng et al. 2024): t is log-normal, r = t (1 - q^-(stage + 1) (1 + k sigmoid(-b t))), at least 0.

    The stage rises from 0 to `stages` - 1 over the training, so that r comes from near 0 up to t: a diffusion loss at
    first, consistency at last.

    Args:
        log_mean, log_std: of t. q, k, b: see above. stages: of the curriculum.
        The rest: see `TunedConsistency`.

    Raises:
        ValueError: a curriculum that cannot be.
    """

    paper: ClassVar[str] = "Geng et al. 2024 (2406.14548)"
    certainty: ClassVar[str] = "sure: read in the authors' code, which follows the data; hop=teacher with w is ours"

    name: str = "ect"
    log_mean: float = -1.1
    log_std: Positive = 2.0
    q: float = 2.0
    k: NotNegative = 8.0
    b: float = 1.0
    stages: AtLeastOne = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.q > 1:
            raise ValueError(f"stage.q must be above 1, got {self.q:g}")

    def pair(self, draws: Draws, done: float) -> SigmaPair:
        t = (self.log_mean + self.log_std * standard_normal(draws)).exp()
        stage = min(int(done * self.stages), self.stages - 1)
        return t, (t * (1 - (1 + self.k * torch.sigmoid(-self.b * t)) / self.q ** (stage + 1))).clamp(min=0)
