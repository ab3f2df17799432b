"""Few-step tasks on given data: edit it, fill in what is missing, transfer it to another condition, blend two.

Meng et al. 2023 show these tasks (image-to-image, inpainting, style transfer), without formulas in what we could read;
each function says which published method it is. `times`, `label` and `w` are as in `sampler.sample`.
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.diffusion.prediction import Condition, Denoise, Prediction, Weights, diffuse, interpret
from fewstep.diffusion.sampler import Fresh, Sampler, deterministic, encode, sample
from fewstep.diffusion.schedule import Batch, Images, Schedule, append_zero, check_times


def steps_for(strength: float, times: Float[Tensor, "times"]) -> int:
    """Number of steps that an edit takes: those from the time nearest to `strength`, t = 0 among them; halves go up.

    For N uniform times it is round(strength N).

    Raises:
        ValueError: a strength outside [0, 1]; see `check_times`.
    """
    check_times(times)
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength:g}; 0 keeps the image, 1 nothing of it")
    middles = append_zero(times).unfold(0, 2, 1).mean(1)
    return int((strength + 1e-9 >= middles).sum())


@torch.no_grad()
def edit(
    denoise: Denoise,
    x: Images,
    noise: Images,
    *,
    schedule: Schedule,
    times: Float[Tensor, "times"],
    strength: float,
    label: Condition,
    w: Weights | None,
    sampler: Sampler = deterministic,
    fresh: Fresh | None = None,
) -> Images:
    """Noise x to the one of `times` that is nearest to `strength`, then take the steps from there (SDEdit, Meng et al.
    2022, in a student's own times; for N uniform ones it starts at t = round(strength N) / N).

    Strength 0 is x itself. From t = 1 it is `sample` from `noise`, which then has nothing of x in it, even where the
    schedule keeps some signal at t = 1.

    Args:
        sampler, fresh: as in `sample`; a student made for `renoise` needs it, since DDIM along its predictions, which
            are of t = 0, lands beside the noised data's distribution.

    Raises:
        ValueError: a strength outside [0, 1]; see `check_times`.
    """
    steps = steps_for(strength, times)
    if steps == 0:
        return x
    times = times[-steps:]
    log_snr = schedule.log_snr(times[:1]).to(x.device).expand(len(x))
    z = noise if float(times[0]) == 1 else diffuse(x=x, eps=noise, log_snr=log_snr).z
    return sample(denoise, z, schedule=schedule, times=times, label=label, w=w, sampler=sampler, fresh=fresh)


@torch.no_grad()
def inpaint(
    denoise: Denoise,
    x: Images,
    missing: Bool[Tensor, "batch *shape"],
    noise: Images,
    *,
    schedule: Schedule,
    times: Float[Tensor, "times"],
    label: Condition,
    w: Weights | None,
    sampler: Sampler = deterministic,
    fresh: Fresh | None = None,
) -> Images:
    """Sample what is missing of x: before every step the known part of the predicted x is replaced by the truth.

    With DDIM the known part of z is then alpha_t x + sigma_t noise at every t, the data on their way to one fixed noise
    (replacement, Song et al. 2021, appendix I.2, with the noise of DDIM in place of fresh noise); with `renoise` it is
    noised afresh (Song et al. 2023, algorithm 4). The known part of the result is x itself, bit for bit.

    Args:
        sampler, fresh: as in `edit`.

    Raises:
        ValueError: see `check_times`.
    """
    check_times(times)

    def amended(z: Images, log_snr: Batch, label: Condition, w: Weights | None, extra: Any = None) -> Prediction:
        ends = {} if extra is None else {"extra": extra}  # of flow maps
        predicted = cast(Any, denoise)(z, log_snr, label, w, **ends).x
        return interpret("x", torch.where(missing, predicted, x), z=z, log_snr=log_snr)

    log_snr = schedule.log_snr(times[:1]).to(x.device).expand(len(x))
    z = torch.where(missing, noise, diffuse(x=x, eps=noise, log_snr=log_snr).z)
    filled = sample(amended, z, schedule=schedule, times=times, label=label, w=w, sampler=sampler, fresh=fresh)
    return torch.where(missing, filled, x)


@torch.no_grad()
def transfer(
    denoise: Denoise,
    x: Images,
    *,
    encoder: Denoise,
    schedule: Schedule,
    times: Float[Tensor, "times"],
    encode_times: Float[Tensor, "encode_times"],
    source: Condition,
    target: Condition,
    w: Weights | None,
    encode_w: Weights | None,
) -> Images:
    """Encode x as what it is, decode it as what it shall be (dual implicit bridges, Su et al. 2023, by one model).

    Both ways are DDIM; with enough steps of an exact model the two flows are inverse, so that `target` = `source` at
    equal w gives x back, and p(x | source) becomes p(x | target).

    Args:
        encoder: called as `encode` with `encode_times` does: `denoise` itself, or a student of `encode`.
    """
    z = encode(encoder, x, schedule=schedule, times=encode_times, label=source, w=encode_w)
    return sample(denoise, z, schedule=schedule, times=times, label=target, w=w)


def slerp(first: Images, second: Images, fraction: Float[Tensor, "batch"]) -> Images:
    """The way from `first` (fraction 0) to `second` (1) along the sphere (Shoemake 1985), each example by itself.

    The direction turns evenly, sin((1-f) o) / sin(o) a + sin(f o) / sin(o) b of the unit vectors with angle o between
    them, and the norm goes evenly from one to the other: blends of noise are as long as noise is.
    """
    a, b = first.flatten(1).double(), second.flatten(1).double()
    f = fraction.double()[:, None]
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    a, b = a / norm_a.clamp(min=1e-12), b / norm_b.clamp(min=1e-12)
    # 2 atan2(|a-b|, |a+b|) keeps its digits where the arccosine of a.b loses them (Kahan)
    omega = 2 * torch.atan2((a - b).norm(dim=1, keepdim=True), (a + b).norm(dim=1, keepdim=True))
    sine = omega.sin()
    turned = torch.where(sine > 1e-9, ((1 - f) * omega).sin() * a + (f * omega).sin() * b, (1 - f) * a + f * b)
    turned = turned / turned.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (turned * torch.lerp(norm_a, norm_b, f)).to(first.dtype).reshape(first.shape)
