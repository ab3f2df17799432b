"""Stage two, one rung: two half-steps of the teacher into one step of the student."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from fewstep.data.batches import Batch
from fewstep.diffusion.guidance import nulls
from fewstep.diffusion.prediction import Condition, Denoise, Prediction, diffuse
from fewstep.diffusion.schedule import Schedule, time_grid
from fewstep.diffusion.target import progressive_target
from fewstep.methods.base import Draw, GuidanceRange, Regression, Stage, Training
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser

RungSampler = Literal["deterministic", "stochastic"]
Variant = Literal["joint", "two_student"]
Times = Float[Tensor, "batch"]


class ProgressiveStage(Stage):
    """A student of `num_steps` steps from a teacher of twice as many (Meng et al. 2023, section 3.2).

    Times are i / N, i uniform in 1..N for N = `num_steps`; t = 1 is among them, where sampling begins.

    The deterministic student's step is 1/N long and is taught two teacher steps of 1/(2N). The last one lands on t = 0,
    where the target is the teacher's second x up to sigma(0) = 4.5e-5.

    The stochastic student's jump is 2/N long and is taught two jumps of 1/N of the stochastic teacher of 2N steps; only
    at i = 1 is there no more than 1/N to go, which the teacher makes in one jump, and its own prediction is the target.
    This chain is our reconstruction: of the paper's algorithm for it we know that times differ a little and that there
    are edge cases. It closes: on exact flows every rung's target is the next flow, and the sampler keeps the moments.

    Args:
        student: starts as a copy of the teacher. teacher: one evaluation per call, takes w.
        num_steps: of the student.
        w_min, w_max, w_draw, w_values: the parent's; see `GuidanceRange`.
        sampler: what the student is made for, deterministic or stochastic.
        variant: joint, one student with a w input; or two_student: the conditional and the unconditional branch of a
            teacher without one, each distilled to its own target, in one network that is told which by the null
            condition. It is guided when it samples, by two evaluations a step, and has no w.
        The rest: see `Stage`.

    Raises:
        ValueError: an unknown sampler or variant.
    """

    name = "progressive"
    guidance: GuidanceRange | None

    def __init__(
        self,
        *,
        student: Denoiser,
        teacher: Denoise,
        schedule: Schedule,
        training: Training,
        stream: str,
        num_steps: int,
        w_min: float | None,
        w_max: float | None,
        w_draw: Draw = "uniform",
        w_values: Sequence[float] | None = None,
        sampler: RungSampler = "deterministic",
        variant: Variant = "joint",
    ) -> None:
        super().__init__(student=student, schedule=schedule, training=training, stream=stream)
        check_chain(sampler, variant)
        self.teacher = teacher
        self.num_steps = num_steps
        self.sampling: RungSampler = sampler
        self.variant = variant
        if variant == "two_student":
            self.guidance = None
        else:
            assert w_min is not None, "a student with a w input has a parent with one"
            assert w_max is not None, "a student with a w input has a parent with one"
            self.guidance = GuidanceRange(w_min, w_max, w_draw, w_values)

    @property
    def times(self) -> Times:
        """Where the student's jumps begin, in the order of sampling."""
        return time_grid(self.num_steps)[:-1]

    def jump(self, t: Times) -> tuple[Times, Times]:
        """Where the teacher's two jumps from t meet, and where they and the student's one end."""
        half = (0.5 if self.sampling == "deterministic" else 1) / self.num_steps
        return t - half, (t - 2 * half).clamp(min=0)

    def draw_times(self, draws: Draws) -> Times:
        """Where the jumps of a batch begin."""
        return draws.integers(1, self.num_steps + 1).double() / self.num_steps

    def regression(self, batch: Batch) -> Regression:
        x, label = batch
        draws = Draws.like(x)
        t = self.draw_times(draws)
        eps = draws.normal()
        w = self.guidance.draw(draws) if self.guidance else None
        if self.variant == "two_student":
            conditional = draws.uniform() < 0.5
            label = label.where(conditional.reshape(-1, *[1] * (label.ndim - 1)), nulls(label, self.student.null))
        noised = diffuse(x=x, eps=eps, log_snr=self.schedule.log_snr(t))
        target = self.target(noised, t, label, w)
        return Regression(self.student(noised.z, noised.log_snr, label, w), target, t, w)

    def target(self, noised: Prediction, t: Times, label: Condition, w: Float[Tensor, "batch"] | None) -> Prediction:
        mid, end = self.jump(t)
        return progressive_target(
            teacher=self.teacher,
            z=noised.z,
            log_snr=noised.log_snr,
            log_snr_mid=self.schedule.log_snr(mid),
            log_snr_end=self.schedule.log_snr(end),
            label=label,
            w=w,
        )


def check_chain(sampler: str, variant: str) -> None:
    """Refuse what is no chain of students.

    Raises:
        ValueError: names the values there are.
    """
    if sampler not in get_args(RungSampler):
        raise ValueError(f"stage.sampler must be one of {', '.join(get_args(RungSampler))}, got {sampler!r}")
    if variant not in get_args(Variant):
        raise ValueError(f"stage.variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")


def check_ladder(ladder: Sequence[int]) -> list[int]:
    """The ladder as a list: the steps its first teacher is run with, then those of each rung, half as many each.

    Raises:
        ValueError: fewer than two numbers, one below 1, or one that is not half of the number before it.
    """
    rungs = list(ladder)
    whole = all(type(n) is int and n >= 1 for n in rungs)
    if len(rungs) < 2 or not whole or any(a != 2 * b for a, b in pairwise(rungs)):
        raise ValueError(
            f"stage.ladder must halve from the teacher's steps to the last rung's, like [32,16,8,4,2,1], got {rungs}"
        )
    return rungs
