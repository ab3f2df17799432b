"""Weights and metrics of the error (Salimans & Ho 2022, section 4), stated in v-space where no weight explodes.

A weight omega on the x-space error is omega * sigma^2 on the v-space error, because x - x' = sigma (v' - v).
"""

from collections.abc import Callable
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Batch

Weight = Callable[[Tensor], Tensor]

Metric = Callable[[Tensor, Tensor], Tensor]
"""(difference of v, flattened; weight of its square, one per example) -> error of each example."""

HUBER_SCALE = 0.00054


def snr(log_snr: Batch) -> Batch:
    """omega = alpha^2 / sigma^2, the eps-space error of DDPM; alpha^2 in v-space, so zero at t = 1."""
    return torch.sigmoid(log_snr)


def truncated_snr(log_snr: Batch) -> Batch:
    """omega = max(SNR, 1), the larger of the x- and the eps-space error; max(alpha^2, sigma^2) in v-space."""
    return torch.sigmoid(log_snr.abs())


def snr_plus_one(log_snr: Batch) -> Batch:
    """omega = SNR + 1, the v-space error itself; 1 in v-space."""
    return torch.ones_like(log_snr)


def uniform_x(log_snr: Batch) -> Batch:
    """omega = 1, the x-space error itself (lambda = 1 of consistency models, Song et al. 2023); sigma^2 in v-space."""
    return torch.sigmoid(-log_snr)


def uniform(w: Batch) -> Batch:
    """Every guidance weight counts alike (Meng et al. 2023)."""
    return torch.ones_like(w)


def relative(w: Batch) -> Batch:
    """(1 + w)^-2: errors count relative to the guided target, whose conditional term grows like 1 + w.

    Ours, not the paper's: without it large w dominates the loss, and the student forgets w = 0, where it began exact.
    """
    return (1 + w) ** -2


WEIGHTS: dict[str, Weight] = {f.__name__: f for f in (snr, truncated_snr, snr_plus_one, uniform_x)}
GUIDANCE_WEIGHTS: dict[str, Weight] = {f.__name__: f for f in (uniform, relative)}


def l2(difference: Float[Tensor, "batch entries"], weight: Batch) -> Batch:
    """Weighted mean square over the entries."""
    return weight * difference.square().mean(1)


def pseudo_huber(difference: Float[Tensor, "batch entries"], weight: Batch) -> Batch:
    """sqrt(weight |difference|^2 + c^2) - c, of the norm of the whole example, c = 0.00054 sqrt(D) for D entries.

    (Song & Dhariwal 2024; c is 0.0299 at 3 x 32 x 32.) Far above c it is the norm, far below the square over 2 c.
    Computed as square / (sqrt(square + c^2) + c), which keeps its digits below c.
    """
    c = HUBER_SCALE * sqrt(difference.shape[1])
    square = weight * difference.square().sum(1)
    return square / ((square + c**2).sqrt() + c)


def huber(difference: Float[Tensor, "batch entries"], weight: Batch) -> Batch:
    """The mean of sqrt(weight d^2 + c^2) - c over the values d, c = 0.001 (Luo et al. 2023, authors' code)."""
    return ((weight[:, None] * difference.square() + 1e-6).sqrt() - 1e-3).mean(1)


def l1(difference: Float[Tensor, "batch entries"], weight: Batch) -> Batch:
    """The mean absolute value over the entries, times the root of the weight."""
    return weight.sqrt() * difference.abs().mean(1)


METRICS: dict[str, Metric] = {f.__name__: f for f in (l2, l1, pseudo_huber, huber)}


def weighted_error(prediction: Prediction, target: Prediction, weight: Weight, metric: str = "l2") -> Batch:
    """The error of each example: the metric of its x-space difference, whose square has the weight omega(log_snr).

    Raises:
        ValueError: `metric` is none of METRICS.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    difference = (prediction.v - target.v).flatten(1)
    return METRICS[metric](difference, weight(prediction.log_snr).to(difference))
