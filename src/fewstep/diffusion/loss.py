"""Weights of the squared error (Salimans & Ho 2022, section 4), stated in v-space where none of them explodes.

A weight omega on the x-space error is omega * sigma^2 on the v-space error, because x - x' = sigma (v' - v).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Batch

Weight = Callable[[Tensor], Tensor]


def snr(log_snr: Batch) -> Batch:
    """omega = alpha^2 / sigma^2, the eps-space error of DDPM; alpha^2 in v-space, so zero at t = 1."""
    return torch.sigmoid(log_snr)


def truncated_snr(log_snr: Batch) -> Batch:
    """omega = max(SNR, 1), the larger of the x- and the eps-space error; max(alpha^2, sigma^2) in v-space."""
    return torch.sigmoid(log_snr.abs())


def snr_plus_one(log_snr: Batch) -> Batch:
    """omega = SNR + 1, the v-space error itself; 1 in v-space."""
    return torch.ones_like(log_snr)


def uniform(w: Batch) -> Batch:
    """Every guidance weight counts alike (Meng et al. 2023)."""
    return torch.ones_like(w)


def relative(w: Batch) -> Batch:
    """(1 + w)^-2: errors count relative to the guided target, whose conditional term grows like 1 + w.

    Ours, not the paper's: without it large w dominates the loss, and the student forgets w = 0, where it began exact.
    """
    return (1 + w) ** -2


WEIGHTS: dict[str, Weight] = {f.__name__: f for f in (snr, truncated_snr, snr_plus_one)}
GUIDANCE_WEIGHTS: dict[str, Weight] = {f.__name__: f for f in (uniform, relative)}


def weighted_error(prediction: Prediction, target: Prediction, weight: Weight) -> Batch:
    """omega(log_snr) * mean squared x-space error of each example, the mean taken over its entries."""
    error = (prediction.v - target.v).square().flatten(1).mean(1)
    return weight(prediction.log_snr).to(error) * error
