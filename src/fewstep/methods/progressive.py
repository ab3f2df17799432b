"""Progressive distillation: two steps of the teacher into one step of the student, halving by halving."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.guidance import nulls_but
from fewstep.diffusion.hop import two_hop
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Networks, Parent, Phase, Regression, Times, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.methods.state_source import StateSettings
from fewstep.system.validation import Positive


@dataclass(frozen=True, kw_only=True)
class Progressive(StateSettings, Regression):
    """A student of N steps from a teacher of 2N, for each N of a ladder (Meng et al. 2023, section 3.2).

    Times are i / N, i uniform in 1..N; t = 1 is among them, where sampling begins.

    The deterministic student's step is 1/N long and is taught two teacher steps of 1/(2N). The last one lands on t = 0,
    where the target is the teacher's second x up to sigma(0) = 4.5e-5.

    The stochastic student's jump is 2/N long and is taught two jumps of 1/N of the stochastic teacher of 2N steps; only
    at i = 1 is there no more than 1/N to go, which the teacher makes in one jump, and its own prediction is the target.
    This chain is our reconstruction: of the paper's algorithm for it we know that times differ a little and that there
    are edge cases. It closes: on exact flows every rung's target is the next flow, and the sampler keeps the moments.

    Args:
        ladder: the steps that the parent is run with, then those of each rung, half as many each.
        few_steps, few_steps_factor: rungs of at most so many steps get so many times `training.images`.
        sampler: what the students are made for.
        variant: joint, one student with a w input; or two_student: the conditional and the unconditional branch of a
            teacher without one, each distilled to its own target, in one network that is told which by the null
            condition. It is guided when it samples, by two evaluations a step, and has no w.
        The rest: see `Method` and `StateSettings`.

    Raises:
        ValueError: a ladder that does not halve.
    """

    paper: ClassVar[str] = "Salimans & Ho 2022 (2202.00512); Meng et al. 2023, stage two"
    certainty: ClassVar[str] = "sure: deterministic; the stochastic chain is our reconstruction"

    name: str = "progressive"
    ladder: Sequence[int] = (32, 16, 8, 4, 2, 1)
    few_steps: int = 2
    few_steps_factor: Positive = 2.0
    sampler: Literal["deterministic", "stochastic"] = "deterministic"
    variant: Literal["joint", "two_student"] = "joint"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ladder(self.ladder)

    def sampling(self, num_steps: int) -> Sampling:
        """How a student of that many steps is sampled."""
        guidance = "two_evaluations" if self.variant == "two_student" else "input"
        return Sampling.uniform(num_steps, sampler=self.sampler, guidance=guidance)

    def parent(self) -> Parent:
        first = self.sampling(self.ladder[0])
        return Parent(guidance=(first.guidance,), continues=first)

    def with_steps(self, num_steps: int) -> "Progressive":
        return replace(self, ladder=(*(rung for rung in self.ladder if rung > num_steps), num_steps))

    def phases(self) -> tuple[Phase, ...]:
        return tuple(
            Phase(
                self.sampling(num_steps),
                num_steps=num_steps,
                teacher_steps=teacher_steps,
                budget=self.few_steps_factor if num_steps <= self.few_steps else 1.0,
            )
            for teacher_steps, num_steps in pairwise(self.ladder)
        )

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange | None:
        return None if self.variant == "two_student" else parent

    def times(self, phase: Phase) -> Float[Tensor, "times"]:
        return phase.sampling.grid()

    def draw_times(self, draws: Draws, phase: Phase) -> Times:
        return draws.integers(1, phase.own_steps + 1).double() / phase.own_steps

    def draw_condition(self, label: Condition, nets: Networks, draws: Draws) -> Condition:
        if self.variant == "joint":
            return label
        return nulls_but(draws.uniform() < 0.5, label, nets.student.null)

    def hops(self, t: Times, phase: Phase) -> tuple[Times, Times]:
        """Where the teacher's two jumps from t meet, and where they and the student's one end."""
        half = (0.5 if self.sampler == "deterministic" else 1) / phase.own_steps
        return t - half, (t - 2 * half).clamp(min=0)

    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        mid, end = self.hops(t, phase)
        return two_hop(
            first=nets.frozen_teacher(noised.z, noised.log_snr, label, w),
            second=nets.frozen_teacher,
            log_snr_mid=nets.schedule.log_snr(mid),
            log_snr_end=nets.schedule.log_snr(end),
            label=label,
            w=w,
        )


def check_ladder(ladder: Sequence[int]) -> None:
    """Refuse steps that do not halve.

    Raises:
        ValueError: fewer than two numbers, one below 1, or one that is not half of the number before it.
    """
    if len(ladder) < 2 or min(ladder) < 1 or any(a != 2 * b for a, b in pairwise(ladder)):
        raise ValueError(
            "stage.ladder must halve from the teacher's steps to the last rung's, like [32,16,8,4,2,1], got "
            f"{list(ladder)}"
        )
