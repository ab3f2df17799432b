"""Noise schedules: time -> log-SNR, and the variance-preserving coefficients that follow from it.

Every function of the library below the schedule takes the log-SNR, never t: two schedules that agree
on the log-SNR are the same diffusion. Coefficients are float64 until they meet an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, exp, pi
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

RULE, REMEDY = "evaluation times must lie in (0, 1] and strictly decrease", "use uniform_times(N) or a model's own"
MOST_LOG_SNR = 1000.0  # of which the coefficients are still numbers
Batch = Float[Tensor, "batch"]
Images = Float[Tensor, "batch *shape"]


def alpha(log_snr: Tensor) -> Tensor:
    """Signal coefficient, alpha^2 = sigmoid(log_snr); the process preserves variance: alpha^2 + sigma^2 = 1."""
    return torch.sigmoid(log_snr).sqrt()


def sigma(log_snr: Tensor) -> Tensor:
    """Noise coefficient, sigma^2 = sigmoid(-log_snr)."""
    return torch.sigmoid(-log_snr).sqrt()


def angle(log_snr: Tensor) -> Tensor:
    """Angle phi in (0, pi/2) with alpha = cos(phi) and sigma = sin(phi) (Salimans & Ho 2022, appendix D)."""
    return torch.atan(torch.exp(-0.5 * log_snr))


def log_snr_of_share(share: Tensor) -> Tensor:
    """The log-SNR of share x + (1 - share) eps: where a rectified flow whose clean end is 1 is ours but for scale."""
    return 2 * torch.logit(share)


def expand(coefficient: Batch, like: Images) -> Tensor:
    """One coefficient per example, in the dtype of `like` and with its number of dimensions."""
    return coefficient.to(like).reshape(-1, *[1] * (like.ndim - 1))


@runtime_checkable
class Schedule(Protocol):
    """Time t in [0, 1] (0 data, 1 noise) to log-SNR and back, both in float64."""

    def log_snr(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        """log(alpha^2 / sigma^2) at time t; falls as t grows."""
        ...

    def time(self, log_snr: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        """The inverse of `log_snr`."""
        ...


@dataclass(frozen=True)
class CosineSchedule:
    """alpha = cos(phi) with the angle phi linear in t, cut so that log-SNR stays in [log_snr_min, log_snr_max].

    log_snr(t) = -2 log tan(a t + b), b = arctan(e^(-log_snr_max / 2)), a = arctan(e^(-log_snr_min / 2)) - b
    (Salimans & Ho 2022, public code). The default cut leaves sigma(0) = alpha(1) = 4.5e-5, zero for all purposes.

    Raises:
        ValueError: the limits are not increasing, or one has no place in float64.
    """

    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    def __post_init__(self) -> None:
        if not -MOST_LOG_SNR <= self.log_snr_min < self.log_snr_max <= MOST_LOG_SNR:
            raise ValueError(
                f"schedule limits must be log_snr_min < log_snr_max, neither beyond {MOST_LOG_SNR:g}, got "
                f"{self.log_snr_min} and {self.log_snr_max}; the paper uses -20 and 20"
            )

    def _line(self) -> tuple[float, float]:
        offset = atan(exp(-self.log_snr_max / 2))
        return atan(exp(-self.log_snr_min / 2)) - offset, offset

    def log_snr(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        slope, offset = self._line()
        return -2 * torch.log(torch.tan(slope * t.double() + offset))

    def time(self, log_snr: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        slope, offset = self._line()
        return (angle(log_snr.double()) - offset) / slope


def uniform_times(num_steps: int) -> Float[Tensor, "times"]:
    """`uniform_time_values` as a tensor, float64."""
    return torch.tensor(uniform_time_values(num_steps), dtype=torch.float64)


def uniform_time_values(num_steps: int) -> tuple[float, ...]:
    """The evaluation times 1, 1 - 1/N, ..., 1/N of an N-step sampler; numbers, where a plan's tensors have no values.

    Raises:
        ValueError: fewer than one step.
    """
    if num_steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {num_steps}")
    return tuple(number / num_steps for number in range(num_steps, 0, -1))


def check_times(times: Float[Tensor, "times"]) -> None:
    """Check that these are evaluation times of a sampler: in (0, 1], strictly decreasing, at least one.

    Raises:
        ValueError: they are not.
    """
    if times.ndim != 1 or not len(times):
        raise ValueError(f"{RULE}, at least one of them, got shape {tuple(times.shape)}; {REMEDY}")
    check_time_values(times.tolist())


def check_time_values(values: Sequence[float]) -> None:
    """`check_times` of plain numbers.

    Raises:
        ValueError: they are not.
    """
    if not len(values):
        raise ValueError(f"{RULE}, at least one of them, got none; {REMEDY}")
    for index, t in enumerate(values):
        if not 0 < t <= 1:  # nor is NaN
            raise ValueError(f"{RULE}, got {t:g} at index {index}; {REMEDY}")
        if index and t >= values[index - 1]:
            raise ValueError(f"{RULE}, got {t:g} after {values[index - 1]:g} at index {index}; {REMEDY}")


def append_zero(times: Float[Tensor, "times"]) -> Float[Tensor, "times_and_zero"]:
    """Evaluation times and the time 0 at which sampling ends, float64."""
    return torch.cat([times.double(), times.new_zeros(1, dtype=torch.float64)])


def network_time(log_snr: Batch) -> Batch:
    """What a network is told about the noise: phi / (pi/2) in (0, 1), near t itself for the cosine schedule."""
    return angle(log_snr) / (pi / 2)
