"""Reflow: the straight flow between noise and the samples of the model before, round by round, then one step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Phase
from fewstep.methods.from_pairs import FromPairs
from fewstep.methods.student_settings import GuidedStudentSettings


@dataclass(frozen=True, kw_only=True)
class Reflow(GuidedStudentSettings, FromPairs):
    """Rectified flow on pairs, a phase a round (Liu et al. 2022), and one step learnt at pure noise (InstaFlow, 2023).

    A rectified flow goes along y = (1 - r) x + r eps and learns u = E[eps - x | y]. With r = sigma / (alpha + sigma), y
    is z / (alpha + sigma) for z = alpha x + sigma eps of the same x and eps, so both have the same expectations: the
    flow of our v between *paired* x and eps is the rectified flow up to scale and time. So are loss and sampler:
    u = (alpha + sigma) v + (sigma - alpha) z and dr/dphi = 1 / (alpha + sigma)^2, so the squared error of u over a
    uniform r is that of v over a uniform angle (weight snr_plus_one, cosine schedule) times pi / 2; and a step of DDIM
    is Euler's in y.

    The first round's pairs are the teacher's, each later one's those of the student before, in its own steps.

    Args:
        steps: of each round's student, falling, [8, 4, 1]. A last 1 is the distillation: that student learns at t = 1
            alone, where the rectified flow's first step and knowledge distillation are the same.
        The rest: see `FromPairs`.

    Raises:
        ValueError: steps that are none or do not fall, or fewer than one.
    """

    paper: ClassVar[str] = "Liu et al. 2022 (2209.03003); one step: Liu et al. 2023 (2309.06380)"
    certainty: ClassVar[str] = "sure: read in the authors' code; the circular path, the squared error and w are ours"

    name: str = "reflow"
    steps: Sequence[int] = (8, 4, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps or min(self.steps) < 1 or any(a <= b for a, b in pairwise(self.steps)):
            raise ValueError(f"stage.steps must be falling numbers of at least 1, got {list(self.steps)}")

    def phases(self) -> tuple[Phase, ...]:
        return tuple(
            Phase(Sampling.uniform(steps, guidance="input"), num_steps=steps, teacher_steps=before)
            for before, steps in pairwise([self.teacher_steps, *self.steps])
        )
