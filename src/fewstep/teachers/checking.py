"""Check of a teacher over a batch of data: how its output reads, whether its null condition works."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import geometric_mean

import torch

from fewstep.diffusion.guidance import nulls
from fewstep.diffusion.prediction import KINDS, Condition, Prediction, PredictionKind, diffuse, interpret
from fewstep.diffusion.schedule import Images, Schedule, alpha, sigma
from fewstep.networks import Frozen

LOG_SNRS = (6.0, 3.0, 1.0, -1.0, -3.0, -5.0)
DENOISES = 1.1  # at most so many times the error of a linear guess; of few examples that is known to some percent
NULL_DIFFERS = 1e-3  # share of the prediction that must change when the condition is taken away


@dataclass(frozen=True)
class Level:
    """Mean squared errors of the predicted x at one log-SNR.

    Args:
        linear: of the best prediction from the mean and variance of the data alone.
        readings: of the network's output read as x, eps and v; unconditional: the same without a condition.
        difference: share of the prediction that changes without the condition.
    """

    log_snr: float
    linear: float
    readings: Mapping[PredictionKind, float]
    unconditional: Mapping[PredictionKind, float] | None
    difference: float | None


@dataclass(frozen=True)
class Findings:
    """What a check found.

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
    """Compare a teacher's predictions at several noise levels with the data that were noised.

    Args:
        x, label: examples of the data it was trained on, at least a few dozen.
        schedule: where its sampling starts. has_null: whether it has a null condition.

    Raises:
        ValueError: the schedule ends with next to no noise.
    """
    lowest = float(schedule.log_snr(torch.tensor(1.0, dtype=torch.float64)))
    log_snrs = [value for value in LOG_SNRS if value >= lowest]
    if not log_snrs:
        raise ValueError(
            f"a teacher's schedule must reach a log-SNR of {LOG_SNRS[0]:g} to be checked, and this one ends at "
            f"{lowest:.3g}, next to no noise; are num_train_timesteps and the betas right?"
        )
    generator = torch.Generator().manual_seed(seed)
    levels = [examine_level(teacher, x, label, value, has_null, generator) for value in log_snrs]
    totals = {kind: geometric_mean(level.readings[kind] for level in levels) for kind in KINDS}
    best = min(KINDS, key=totals.__getitem__)
    frees = [level.unconditional[best] / level.linear for level in levels if level.unconditional is not None]
    differences = [level.difference for level in levels if level.difference is not None]
    return Findings(
        says=teacher.denoiser.prediction,
        reads_as=best,
        worse={kind: totals[kind] / totals[best] for kind in KINDS},
        quality=geometric_mean(level.readings[best] / level.linear for level in levels),
        has_null=has_null,
        null_quality=geometric_mean(frees) if frees else None,
        null_difference=max(differences, default=None),
        terminal_alpha=float(alpha(torch.tensor(lowest, dtype=torch.float64))),
        levels=tuple(levels),
    )


def examine_level(
    teacher: Frozen, x: Images, label: Condition, level: float, has_null: bool, generator: torch.Generator
) -> Level:
    """Noise the data to one log-SNR and measure the teacher's errors there."""
    log_snr = torch.full((len(x),), level, dtype=torch.float64)
    z = diffuse(x=x, eps=torch.randn(x.shape, generator=generator, dtype=x.dtype), log_snr=log_snr).z
    kind = teacher.denoiser.prediction

    def errors(prediction: Prediction) -> dict[PredictionKind, float]:
        output = getattr(prediction, kind)
        return {each: error(interpret(each, output, z=z, log_snr=log_snr).x, x) for each in KINDS}

    conditional = teacher(z, log_snr, label, None)
    free = teacher(z, log_snr, nulls(label, teacher.null), None) if has_null else None
    a, s = float(alpha(log_snr[0]).square()), float(sigma(log_snr[0]).square())
    variance = float((x - x.mean(0)).square().mean())
    return Level(
        log_snr=level,
        linear=variance * s / (a * variance + s),
        readings=errors(conditional),
        unconditional=None if free is None else errors(free),
        difference=None if free is None else float((conditional.v - free.v).norm() / conditional.v.norm()),
    )


def error(guess: Images, x: Images) -> float:
    """Mean squared error, never quite 0."""
    return max(float((guess - x).double().square().mean()), 1e-30)
