"""Straight paths in a variance-preserving diffusion: z_T = (1 - T) x + T eps, of velocity u = eps - x.

Divided by alpha + sigma, z = alpha x + sigma eps is the point of that path at the time T = sigma / (alpha + sigma), and
so a prediction of v is one of u:

    u = eps - x = (sigma - alpha) z + (alpha + sigma) v.

Where a degraded image z_L = x + e takes the place of z_T at a time T_L, a step of that length gives x back if
u(z_L, T_L) = e / T_L (FluxSR, 2025, 2502.01993; restated from its figures, as its code is not public).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Batch, Images, alpha, expand, sigma


def rectified_time(log_snr: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
    """T = sigma / (alpha + sigma), in (0, 1)."""
    return torch.sigmoid(-log_snr / 2)


def log_snr_at(rectified: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
    """The inverse of `rectified_time`."""
    return -2 * torch.logit(rectified)


def placed(point: Images, log_snr: Batch) -> Images:
    """z of a point of a straight path: (alpha + sigma) times it."""
    return expand(alpha(log_snr) + sigma(log_snr), point) * point


def velocity(prediction: Prediction) -> Images:
    """u = eps - x of a prediction."""
    a, s = (expand(f(prediction.log_snr), prediction.z) for f in (alpha, sigma))
    return (s - a) * prediction.z + (a + s) * prediction.v


def between(low: Images, eps: Images, *, time: Batch, start: float) -> Images:
    """The point at `time` in [start, 1] of the straight path from `low`, at `start`, to the noise, at 1."""
    share = expand((time - start) / (1 - start), low)
    return (1 - share) * low + share * eps
