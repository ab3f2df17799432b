"""The schedules of DDPM's descendants: a table of betas over T timesteps, read as a schedule in continuous time."""

from dataclasses import dataclass
from functools import cached_property
from math import cos, log, pi
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.schedule import MOST_LOG_SNR, alpha

BetaKind = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "trained"]
LEAST_BETA = 1e-9  # of one near 1e-16 nothing is left in 1 - beta, and the log-SNR is infinite


@dataclass(frozen=True)
class BetaSchedule:
    """alpha^2 at timestep i is the product of (1 - beta_j) for j <= i (Ho et al. 2020); t = (i + 1) / T.

    Between timesteps the log-SNR is linear in t, and from t = 1 / T to 0 it rises to `log_snr_max`. With this t the
    grid 1, 1 - 1/N, ..., 0 visits the timesteps of diffusers' `timestep_spacing="trailing"` wherever N divides T. The
    network of such a teacher is told `timestep(log_snr)`.

    Args:
        kind: linear, scaled_linear (in the square root of beta; Stable Diffusion), squaredcos_cap_v2 (Nichol & Dhariwal
            2021), or trained (`betas` lists them).
        beta_start, beta_end: of the first two kinds. num_timesteps: T.
        rescale_zero_snr: shift and scale alpha so that the last timestep has no signal (Lin et al. 2024, algorithm 1);
            its log-SNR is then `log_snr_min`.

    Raises:
        ValueError: an unknown kind, a beta outside (1e-9, 1), fewer than two timesteps, or limits that do not rise.
    """

    kind: BetaKind = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_timesteps: int = 1000
    rescale_zero_snr: bool = False
    betas: tuple[float, ...] | None = None
    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(BetaKind) or (self.kind == "trained") != (self.betas is not None):
            raise ValueError(
                f"a beta schedule must be one of {', '.join(get_args(BetaKind))}, and trained has its betas, got "
                f"{self.kind!r} with {'betas' if self.betas is not None else 'none'}"
            )
        count = self.num_timesteps if self.betas is None else len(self.betas)
        if count != self.num_timesteps or not 2 <= count <= 100_000:
            raise ValueError(f"a beta schedule needs 2 to 100,000 timesteps and as many betas, got {count}")
        if not -MOST_LOG_SNR <= self.log_snr_min < self.log_snr_max <= MOST_LOG_SNR:
            raise ValueError(
                f"a beta schedule's log-SNR lies between log_snr_min < log_snr_max, neither beyond {MOST_LOG_SNR:g}, "
                f"got {self.log_snr_min:g} and {self.log_snr_max:g}"
            )
        betas = self._betas()
        if not bool(((betas > LEAST_BETA) & (betas < 1)).all()):
            raise ValueError(
                f"betas must lie between {LEAST_BETA:g} and 1, got {float(betas.min()):g} to {float(betas.max()):g}"
            )

    def _betas(self) -> Float[Tensor, "timesteps"]:
        if self.betas is not None:
            return torch.tensor(self.betas, dtype=torch.float64)
        count = self.num_timesteps
        match self.kind:
            case "linear":
                return torch.linspace(self.beta_start, self.beta_end, count, dtype=torch.float64)
            case "scaled_linear":
                roots = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=torch.float64)
                return roots.square()
        kept = [cos((i / count + 0.008) / 1.008 * pi / 2) ** 2 for i in range(count + 1)]
        return torch.tensor([min(1 - kept[i + 1] / kept[i], 0.999) for i in range(count)], dtype=torch.float64)

    @cached_property
    def table(self) -> Float[Tensor, "times"]:
        """log-SNR at t = 0, 1/T, ..., 1, falling; float64."""
        root = (1 - self._betas()).cumprod(0).sqrt()
        if self.rescale_zero_snr:
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        log_snr = (root.square() / (1 - root.square())).log().clamp(min=self.log_snr_min)
        return torch.cat([log_snr.new_tensor([max(self.log_snr_max, float(log_snr[0]) + log(2))]), log_snr])

    @property
    def lowest_log_snr(self) -> float:
        """Of the last timestep: the noisiest that the network has seen."""
        return float(self.table[-1])

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether the last timestep keeps less than a thousandth of the signal's amplitude."""
        return float(alpha(self.table[-1])) < 1e-3

    def log_snr(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        table = self.table.to(t.device)
        position = (t.double() * self.num_timesteps).clamp(0, self.num_timesteps)
        before = position.floor().long().clamp(max=self.num_timesteps - 1)
        return torch.lerp(table[before], table[before + 1], position - before)

    def time(self, log_snr: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        table = self.table.to(log_snr.device)
        value = log_snr.double().clamp(float(self.table[-1]), float(self.table[0]))
        after = torch.searchsorted(-table, -value.contiguous()).clamp(1, self.num_timesteps)  # NaN is at the end
        share = (table[after - 1] - value) / (table[after - 1] - table[after])
        return (after - 1 + share) / self.num_timesteps

    def timestep(self, log_snr: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        """What a network of this schedule is told: the timestep 0..T-1, a fraction between two of them."""
        return (self.time(log_snr) * self.num_timesteps - 1).clamp(min=0)
