"""What a teacher really is, asked of itself over a batch of data: how its output reads, whether its null works."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

import torch

from fewstep.diffusion.guidance import nulls
from fewstep.diffusion.prediction import KINDS, Condition, PredictionKind, diffuse, interpret
from fewstep.diffusion.schedule import Images, Schedule, alpha, sigma
from fewstep.networks import Frozen

LOG_SNRS = (6.0, 3.0, 1.0, -1.0, -3.0, -5.0)
DENOISES = 1.1  # at most so many times the error of a linear guess; of few examples that is known to some percent
NULL_DIFFERS = 1e-3  # share of the prediction that must change when the condition is taken away


@dataclass(frozen=True)
class Level:
    """Mean squared errors of the predicted x at one log-SNR.

    `linear` is that of the best prediction that knows no more than mean and variance of the data; `readings` those of
    the network's output read as x, eps and v; `unconditional` that of the best reading, asked without a condition.
    """

    log_snr: float
    linear: float
    readings: Mapping[PredictionKind, float]
    unconditional: float | None
    difference: float | None


@dataclass(frozen=True)
class Findings:
    """What was found.

    Args:
        says: the reading the teacher names. reads_as: the one of the least error. worse: each reading's error over that
            of `reads_as`, the geometric mean over the levels: alike whether errors are measured in x, eps or v.
        quality: the error of `reads_as` over that of `Level.linear`; null_quality the same without a condition.
        null_difference: largest share of a prediction that changes without the condition.
        terminal_alpha: share of the signal's amplitude left where sampling starts.
        levels: noise from little to much.
    """

    says: PredictionKind
    reads_as: PredictionKind
    worse: Mapping[PredictionKind, float]
    quality: float
    has_null: bool
    null_quality: float | None
    null_difference: float | None
    terminal_alpha: float
    levels: tuple[Level, ...]

    @property
    def denoises(self) -> bool:
        return self.quality < DENOISES

    @property
    def null_works(self) -> bool:
        """Whether it denoises without a condition, and otherwise than with one."""
        if self.null_quality is None or self.null_difference is None:
            return False
        return self.null_quality < DENOISES and self.null_difference > NULL_DIFFERS

    @property
    def has_zero_terminal_snr(self) -> bool:
        return self.terminal_alpha < 1e-3

    @property
    def problems(self) -> list[str]:
        """Why it should not be distilled as it is."""
        found = []
        if not self.denoises:
            found.append(
                f"no reading denoises: the best, {self.reads_as}, errs {self.quality:.3g} times as much as a linear "
                "guess (other data, another value range, or not trained)"
            )
        elif self.reads_as != self.says:
            found.append(
                f"it denoises as {self.reads_as} and says {self.says}, {self.worse[self.says]:.3g} times worse"
            )
        if not self.has_null:
            found.append("it has no null condition, which guidance needs")
        elif self.denoises and not self.null_works:
            found.append("its null condition does not work: train it with labels dropped")
        return found


@torch.no_grad()
def examine(
    teacher: Frozen, x: Images, label: Condition, *, schedule: Schedule, has_null: bool, seed: int = 0
) -> Findings:
    """Ask the teacher at several noise levels what it knows the answer of: its own data, noised.

    Args:
        x, label: examples of the data it was trained on, at least a few dozen.
        schedule: where its sampling starts. has_null: whether it can be asked without a condition.

    Raises:
        ValueError: the schedule ends with next to no noise.
    """
    denoiser, generator = teacher.denoiser, torch.Generator().manual_seed(seed)
    says = denoiser.prediction
    lowest = float(schedule.log_snr(torch.tensor(1.0, dtype=torch.float64)))
    variance = float((x - x.mean(0)).square().mean())
    asked = [value for value in LOG_SNRS if value >= lowest]
    if not asked:
        raise ValueError(
            f"a teacher's schedule must reach a log-SNR of {LOG_SNRS[0]:g} to be checked, and this one ends at "
            f"{lowest:.3g}, next to no noise; are num_train_timesteps and the betas right?"
        )
    answers, errors = [], []
    for value in asked:
        log_snr = torch.full((len(x),), value, dtype=torch.float64)
        z = diffuse(x=x, eps=torch.randn(x.shape, generator=generator, dtype=x.dtype), log_snr=log_snr).z
        said = teacher(z, log_snr, label, None)
        free = teacher(z, log_snr, nulls(label, teacher.null), None) if has_null else None
        output = getattr(said, says)
        reads = {k: error(interpret(k, output, z=z, log_snr=log_snr).x, x) for k in KINDS}
        errors.append(reads)
        answers.append((z, log_snr, said, free))
    totals = {kind: geometric([reads[kind] for reads in errors]) for kind in KINDS}
    best = min(KINDS, key=totals.__getitem__)
    levels = []
    for value, reads, (z, log_snr, said, free) in zip(asked, errors, answers, strict=True):
        a, s = float(alpha(log_snr[0]).square()), float(sigma(log_snr[0]).square())
        without = None if free is None else interpret(best, getattr(free, says), z=z, log_snr=log_snr).x
        levels.append(
            Level(
                log_snr=value,
                linear=variance * s / (a * variance + s),
                readings=reads,
                unconditional=None if without is None else error(without, x),
                difference=None if free is None else float((said.v - free.v).norm() / said.v.norm()),
            )
        )
    frees = [level.unconditional / level.linear for level in levels if level.unconditional is not None]
    differences = [level.difference for level in levels if level.difference is not None]
    return Findings(
        says=says,
        reads_as=best,
        worse={kind: totals[kind] / totals[best] for kind in KINDS},
        quality=geometric([level.readings[best] / level.linear for level in levels]),
        has_null=has_null,
        null_quality=geometric(frees) if frees else None,
        null_difference=max(differences, default=None),
        terminal_alpha=float(alpha(torch.tensor(lowest, dtype=torch.float64))),
        levels=tuple(levels),
    )


def error(guess: Images, x: Images) -> float:
    """Mean squared error, never quite 0."""
    return max(float((guess - x).double().square().mean()), 1e-30)


def geometric(values: list[float]) -> float:
    """The geometric mean."""
    return exp(sum(log(value) for value in values) / len(values))
