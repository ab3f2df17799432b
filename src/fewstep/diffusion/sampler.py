"""Samplers: DDIM, stochastic few-step, ancestral, re-noising, flow maps, policies; the encoder; an integrator.

Each sampler evaluates once at each of the given `times`, falling in (0, 1] (`uniform_times`: 1, 1 - 1/N, ..., 1/N), and
returns the last predicted x, at t = 0. They differ in one move: from a prediction at one time to z at the next.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Condition, Denoise, Prediction, Weights, diffuse
from fewstep.diffusion.rectified import placed
from fewstep.diffusion.schedule import (
    Batch,
    Images,
    Schedule,
    alpha,
    angle,
    append_zero,
    check_time_values,
    check_times,
    expand,
    network_time,
    sigma,
)

Fresh = Callable[[int], Images]
"""Standard normal noise for the move number 1, 2, ... of a sampler, in the shape of its images."""

END = "s"  # the extra input of a flow map or a policy: `network_time` of where its step ends

Sampler = Callable[[Prediction, Batch, Batch, Callable[[], Images]], Images]
"""(prediction at t, log-SNR at the next time s, log-SNR one further at k, fresh noise) -> z at s."""


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


def diffuse_further(z: Images, *, log_snr: Batch, log_snr_next: Batch, noise: Images) -> Images:
    """Diffuse z on to a noisier time: z_s = (alpha_s / alpha) z + sigma_{s|} noise.

    sigma_{s|}^2 = (1 - e^(log_snr_next - log_snr)) sigma_s^2 (Salimans & Ho 2022, section 2).
    """
    kept, added = alpha(log_snr_next) / alpha(log_snr), _added(log_snr, log_snr_next)
    return expand(kept, z) * z + expand(added, z) * noise


def _added(log_snr: Batch, log_snr_next: Batch) -> Batch:
    """Deviation of the noise between two times, the second noisier."""
    return sigma(log_snr_next) * (-torch.expm1(log_snr_next - log_snr)).clamp(min=0).sqrt()


def deterministic(
    prediction: Prediction, log_snr_next: Batch, log_snr_after: Batch, fresh: Callable[[], Images]
) -> Images:
    """DDIM: one step along the prediction."""
    return ddim_step(prediction, log_snr_next)


def stochastic(
    prediction: Prediction, log_snr_next: Batch, log_snr_after: Batch, fresh: Callable[[], Images]
) -> Images:
    """A deterministic jump of two steps, then one step of noise back (Meng et al. 2023, section 3.3).

    It needs a student of its own, made by `stage.sampler=stochastic`, whose native jump is two steps long. The move is
    taken from all times but the last, where there is one plain jump to 0. (Stated from a review of the paper; that its
    books balance was checked on Gaussian data.)
    """
    landed = ddim_step(prediction, log_snr_after)
    return diffuse_further(landed, log_snr=log_snr_after, log_snr_next=log_snr_next, noise=fresh())


def ancestral(
    prediction: Prediction,
    log_snr_next: Batch,
    log_snr_after: Batch,
    fresh: Callable[[], Images],
    g: float = 0.3,
) -> Images:
    """A draw of q(z_s | z_t, x) around the predicted x, the sampler of DDPM (Salimans & Ho 2022, section 2).

    mean = e^(l_t - l_s) (alpha_s / alpha_t) z_t + (1 - e^(l_t - l_s)) alpha_s x. Its variance lies, in logarithms, at
    `g` in [0, 1] between the two bounds (1 - e^(l_t - l_s)) sigma_s^2, right for data that are a point, and
    (1 - e^(l_t - l_s)) sigma_t^2, right for standard normal data; 0.3 is the coefficient of Ho & Salimans 2021.
    """
    log_snr, z = prediction.log_snr, prediction.z
    share = -torch.expm1(log_snr - log_snr_next)  # 1 - e^(l_t - l_s)
    kept = alpha(log_snr) / alpha(log_snr_next) * (sigma(log_snr_next) / sigma(log_snr)).square()
    deviation = share.sqrt() * sigma(log_snr_next) ** (1 - g) * sigma(log_snr) ** g
    mean = expand(kept, z) * z + expand(share * alpha(log_snr_next), z) * prediction.x
    return mean + expand(deviation, z) * fresh()


def renoise(prediction: Prediction, log_snr_next: Batch, log_snr_after: Batch, fresh: Callable[[], Images]) -> Images:
    """z_s = alpha_s x + sigma_s noise: the predicted x, noised afresh (Song et al. 2023, algorithm 1; LCM; DMD2).

    For a student that goes to t = 0 from any level, as consistency models do: x is then a sample at every step.
    """
    return diffuse(x=prediction.x, eps=fresh(), log_snr=log_snr_next).z


def flow_map(prediction: Prediction, log_snr_next: Batch, log_snr_after: Batch, fresh: Callable[[], Images]) -> Images:
    """DDIM by a network that is told where its step ends: `trajectory` gives it the input END."""
    return ddim_step(prediction, log_snr_next)


def restore(prediction: Prediction, log_snr_next: Batch, log_snr_after: Batch, fresh: Callable[[], Images]) -> Images:
    """DDIM that begins at the degraded image, the condition, instead of at noise: `trajectory` puts it there."""
    return ddim_step(prediction, log_snr_next)


def policy(prediction: Prediction, log_snr_next: Batch, log_snr_after: Batch, fresh: Callable[[], Images]) -> Images:
    """Where a policy leads by the end of its step: as `flow_map`, by a network that is made for these steps alone.

    In each step the network is called once, and its policy followed by sub-steps without it (`Policy.follow`).
    """
    return ddim_step(prediction, log_snr_next)


SAMPLERS: dict[str, Sampler] = {
    f.__name__: f for f in (deterministic, stochastic, ancestral, renoise, flow_map, restore, policy)
}
TOLD_THE_END = ("flow_map", "policy")  # whose network has the input END
BEGINS_AT_IMAGE = ("restore",)  # the condition, in the place of noise


def trajectory(
    denoise: Denoise,
    noise: Images,
    *,
    schedule: Schedule,
    times: Float[Tensor, "times"],
    label: Condition,
    w: Weights | None,
    clip: tuple[float, float] | None = None,
    sampler: Sampler = deterministic,
    fresh: Fresh | None = None,
) -> Iterator[Prediction]:
    """Yield the prediction of each step, at each of `times`, one evaluation each.

    `clip` holds each predicted x inside the data's range (low, high); see `sample` for the rest.

    Raises:
        ValueError: see `check_times`.
    """
    check_times(times)
    log_snrs = schedule.log_snr(append_zero(times)).to(noise.device)
    z, prediction, call = noise, None, cast(Callable[..., Prediction], denoise)
    if sampler is restore:
        z = placed(label, log_snrs[0].expand(len(noise)))
    for step, log_snr in enumerate(log_snrs[:-1]):
        if prediction is not None:
            draw = partial(_drawn, fresh, step, noise)
            z = sampler(prediction, log_snr.expand(len(z)), log_snrs[step + 1].expand(len(z)), draw)
        end = network_time(log_snrs[step + 1].expand(len(z)))
        ends = {"extra": {END: end}} if sampler in (flow_map, policy) else {}
        prediction = call(z, log_snr.expand(len(z)), label, w, **ends)
        prediction = prediction.clip(*clip) if clip else prediction
        yield prediction


def _drawn(fresh: Fresh | None, step: int, like: Images) -> Images:
    assert fresh is not None, "a sampler that adds noise needs `fresh`"
    return fresh(step).to(like)


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Images,
    *,
    schedule: Schedule,
    times: Float[Tensor, "times"],
    label: Condition,
    w: Weights | None,
    clip: tuple[float, float] | None = None,
    sampler: Sampler = deterministic,
    fresh: Fresh | None = None,
) -> Images:
    """Sample with one evaluation at each of `times`; the result is the last predicted x.

    Args:
        denoise: network, exact mixture or `Guided`; called once a step.
        noise: z at times[0], which is 1 as a rule, N(0, I); fixes the result of the deterministic sampler. `restore`
            does not look at it.
        times: evaluation times, strictly decreasing in (0, 1]; `uniform_times(N)` are 1, 1 - 1/N, ..., 1/N.
        label: class of each example; w: guidance weight of each example, >= 0, None for a plain conditional model.
        clip: as in `trajectory`.
        sampler: one of SAMPLERS; all but the deterministic one need `fresh`, see `fewstep.system.seeds.fresh_noise`.

    Raises:
        ValueError: see `check_times`.
    """
    predictions = trajectory(
        denoise,
        noise,
        schedule=schedule,
        times=times,
        label=label,
        w=w,
        clip=clip,
        sampler=sampler,
        fresh=fresh,
    )
    return deque(predictions, maxlen=1)[0].x


@torch.no_grad()
def sample_until(
    denoise: Denoise,
    noise: Images,
    *,
    until: Batch,
    lowest: float,
    schedule: Schedule,
    times: Sequence[float],
    label: Condition,
    w: Weights | None,
    sampler: Sampler = deterministic,
    fresh: Fresh | None = None,
) -> Images:
    """The states z of sampling with `times`, each example's at a time of its own: `noise` where it is times[0].

    The move to a time between two of `times` is the one to the later of them, cut short.

    Args:
        until: the time of each example. lowest: no `until` is below it; nothing is evaluated at or below `lowest`.
        The rest: see `sample`.

    Raises:
        ValueError: see `check_time_values`.
    """
    check_time_values(times)
    grid = [*times, 0.0, 0.0]
    z = noise
    for step, (t, following, after) in enumerate(zip(grid, grid[1:], grid[2:], strict=False), start=1):
        if t <= lowest + 1e-9:
            break
        log_snr, log_snr_after = (
            schedule.log_snr(torch.full_like(until, at, dtype=torch.float64)) for at in (t, after)
        )
        prediction = denoise(z, log_snr, label, w)
        end = until.double().clamp(min=following)
        moved = sampler(prediction, schedule.log_snr(end), log_snr_after, partial(_drawn, fresh, step, noise))
        z = torch.where(expand(t - until, z) > 1e-9, moved, z)
    return z


@torch.no_grad()
def encode(
    denoise: Denoise,
    x: Images,
    *,
    schedule: Schedule,
    times: Float[Tensor, "times"],
    label: Condition,
    w: Weights | None,
) -> Images:
    """DDIM backwards through the sampler's `times`: data x to its noise z at times[0], with as many evaluations.

    The evaluations are at t = 0 and then upwards at all of `times` but the first: for uniform times at 0, 1/N, ...,
    1 - 1/N. Sampling from z with the same condition gives x back up to the error of both, which is the
    probability-flow ODE's discretisation (Meng et al. 2023, section on encoding; Song et al. 2021).

    Raises:
        ValueError: see `check_times`.
    """
    check_times(times)
    z = x
    for log_snr, following in pairwise(schedule.log_snr(append_zero(times).flip(0)).to(x.device)):
        z = ddim_step(denoise(z, log_snr.expand(len(z)), label, w), following.expand(len(z)))
    return z


@torch.no_grad()
def integrate(
    denoise: Denoise,
    z: Images,
    *,
    log_snr: Float[Tensor, ""],
    log_snr_next: Float[Tensor, ""],
    num_steps: int,
    label: Condition,
    w: Weights | None,
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
