"""Deterministic samplers: DDIM along a grid, DDIM backwards, and a fourth-order integrator as ground truth."""

from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Condition, Denoise, Prediction
from fewstep.diffusion.schedule import Batch, Images, Schedule, angle, expand, time_grid


def ddim_step(prediction: Prediction, log_snr_next: Batch) -> Images:
    """z_s = alpha_s x + sigma_s eps (Song et al. 2021; Salimans & Ho 2022, eq. 8).

    Computed as cos(d) z - sin(d) v with d = phi - phi_s, which the addition theorems make of it, for half the work.
    Exact in both directions: a larger log-SNR denoises, a smaller one encodes.
    """
    z, v = prediction.z, prediction.v
    step = expand(angle(prediction.log_snr) - angle(log_snr_next), z)
    return torch.cos(step) * z - torch.sin(step) * v


def invert_ddim(*, z: Images, z_next: Images, log_snr: Batch, log_snr_next: Batch) -> Prediction:
    """The prediction at z whose one DDIM step lands on z_next: v = (cos(d) z - z_next) / sin(d), d = phi - phi_next.

    Amplifies rounding by 1 / sin(d): pass float64 where the two times are close.
    """
    step = expand(angle(log_snr) - angle(log_snr_next), z)
    return Prediction(z=z, v=(torch.cos(step) * z - z_next) / torch.sin(step), log_snr=log_snr)


def trajectory(
    denoise: Denoise,
    noise: Images,
    *,
    schedule: Schedule,
    num_steps: int,
    label: Condition,
    w: Float[Tensor, "batch"] | None,
    clip: tuple[float, float] | None = None,
) -> Iterator[Prediction]:
    """Yield the prediction of each of the `num_steps` DDIM steps from t = 1 towards t = 0, one evaluation each.

    `clip` holds each predicted x inside the data's range (low, high); no target of a stage is ever clipped.
    """
    z, prediction = noise, None
    for log_snr in schedule.log_snr(time_grid(num_steps)[:-1]).to(noise.device):
        if prediction is not None:
            z = ddim_step(prediction, log_snr.expand(len(z)))
        prediction = denoise(z, log_snr.expand(len(z)), label, w)
        prediction = prediction.clip(*clip) if clip else prediction
        yield prediction


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Images,
    *,
    schedule: Schedule,
    num_steps: int,
    label: Condition,
    w: Float[Tensor, "batch"] | None,
    clip: tuple[float, float] | None = None,
) -> Images:
    """Sample with `num_steps` DDIM steps t = 1, 1 - 1/N, ..., 1/N; the result is the last predicted x.

    Args:
        denoise: network, exact mixture or `Guided`; called once a step.
        noise: z at t = 1, N(0, I); fixes the result.
        label: class of each example; w: guidance weight of each example, >= 0, None for a plain conditional model.
        clip: as in `trajectory`.
    """
    predictions = trajectory(denoise, noise, schedule=schedule, num_steps=num_steps, label=label, w=w, clip=clip)
    return deque(predictions, maxlen=1)[0].x


@torch.no_grad()
def integrate(
    denoise: Denoise,
    z: Images,
    *,
    log_snr: Float[Tensor, ""],
    log_snr_next: Float[Tensor, ""],
    num_steps: int,
    label: Condition,
    w: Float[Tensor, "batch"] | None,
) -> Images:
    """Solve the probability-flow ODE dz/dphi = v(z, phi) by the classical Runge-Kutta rule in equal angles, order 4.

    In the angle the ODE is exactly this: z = cos(phi) x + sin(phi) eps differentiates to v. Pass float64.
    """
    angles = torch.linspace(float(angle(log_snr)), float(angle(log_snr_next)), num_steps + 1, dtype=torch.float64)

    def velocity(z: Images, phi: Tensor) -> Images:
        at = (-2 * torch.log(torch.tan(phi))).to(z.device)
        return denoise(z, at.expand(len(z)), label, w).v

    for phi, following in pairwise(angles):
        h = float(following - phi)
        k1 = velocity(z, phi)
        k2 = velocity(z + h / 2 * k1, phi + h / 2)
        k3 = velocity(z + h / 2 * k2, phi + h / 2)
        k4 = velocity(z + h * k3, following)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z
