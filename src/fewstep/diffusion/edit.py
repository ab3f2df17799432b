"""Few-step tasks on given data: edit it, fill in what is missing, transfer it to another condition, blend two.

Meng et al. 2023 show these tasks (image-to-image, inpainting, style transfer), without formulas in what we could read;
each function says which published method it is. `times`, `label` and `w` are as in `sampler.sample`.
"""

from collections.abc import Callable
from math import floor

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.diffusion.prediction import Condition, Denoise, Prediction, diffuse, interpret
from fewstep.diffusion.sampler import ddim_step, encode, sample
from fewstep.diffusion.schedule import Images, Schedule, check_times


def steps_for(strength: float, num_steps: int) -> int:
    """round(strength N): how many of the N steps an edit of this strength takes; halves go up.

    Raises:
        ValueError: a strength outside [0, 1] or fewer than one step.
    """
    if not 0 <= strength <= 1 or num_steps < 1:
        raise ValueError(f"strength must be in [0, 1] of at least 1 step, got {strength:g} of {num_steps}")
    return floor(strength * num_steps + 0.5)


def _descend(
    denoise: Denoise,
    z: Images,
    *,
    schedule: Schedule,
    times: Float[Tensor, "times"],
    label: Condition,
    w: Float[Tensor, "batch"] | None,
    amend: Callable[[Prediction], Prediction] = lambda prediction: prediction,
) -> Images:
    """The last x of DDIM steps from z at times[0], every prediction amended before its step."""
    prediction = None
    for log_snr in schedule.log_snr(times).to(z.device):
        if prediction is not None:
            z = ddim_step(prediction, log_snr.expand(len(z)))
        prediction = amend(denoise(z, log_snr.expand(len(z)), label, w))
    assert prediction is not None, "at least one time"
    return prediction.x


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
    w: Float[Tensor, "batch"] | None,
) -> Images:
    """Noise x to the time from which round(strength N) of the N `times` are left, then take those last steps (SDEdit,
    Meng et al. 2022, in an N-step student's own times; for uniform ones it starts at t = round(strength N) / N).

    Strength 0 is x itself. From t = 1 it is `sample` from `noise`, which then has nothing of x in it, even where the
    schedule keeps some signal at t = 1.

    Raises:
        ValueError: a strength outside [0, 1]; see `check_times`.
    """
    check_times(times)
    steps = steps_for(strength, len(times))
    if steps == 0:
        return x
    times = times[-steps:]
    log_snr = schedule.log_snr(times[:1]).to(x.device).expand(len(x))
    z = noise if float(times[0]) == 1 else diffuse(x=x, eps=noise, log_snr=log_snr).z
    return _descend(denoise, z, schedule=schedule, times=times, label=label, w=w)


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
    w: Float[Tensor, "batch"] | None,
) -> Images:
    """Sample what is missing of x: before every step the known part of the predicted x is replaced by the truth.

    The known part of z is then alpha_t x + sigma_t noise at every t, the data on their way to one fixed noise
    (replacement, Song et al. 2021, appendix I.2, with the noise of DDIM in place of fresh noise). The known part of the
    result is x itself, bit for bit.

    Raises:
        ValueError: see `check_times`.
    """
    check_times(times)

    def amend(prediction: Prediction) -> Prediction:
        mended = torch.where(missing, prediction.x, x)
        return interpret("x", mended, z=prediction.z, log_snr=prediction.log_snr)

    log_snr = schedule.log_snr(times[:1]).to(x.device).expand(len(x))
    z = torch.where(missing, noise, diffuse(x=x, eps=noise, log_snr=log_snr).z)
    filled = _descend(denoise, z, schedule=schedule, times=times, label=label, w=w, amend=amend)
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
    w: Float[Tensor, "batch"] | None,
    encode_w: Float[Tensor, "batch"] | None,
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
