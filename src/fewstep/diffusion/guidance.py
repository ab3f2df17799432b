"""Classifier-free guidance, the paper's convention: w = 0 is no guidance; diffusers' and Imagen's scale is 1 + w."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Condition, Denoise, Prediction
from fewstep.diffusion.schedule import Batch, Images, Schedule, expand


def guide(*, conditional: Images, unconditional: Images, w: Float[Tensor, "batch"]) -> Images:
    """(1 + w) conditional - w unconditional (Meng et al. 2023, section 3.1), alike in x, eps and v."""
    return conditional + expand(w, conditional) * (conditional - unconditional)


def nulls(label: Condition, null: int | Tensor) -> Condition:
    """`null` in the place of every condition of `label`."""
    return null.to(label).expand_as(label) if isinstance(null, Tensor) else torch.full_like(label, null)


def log_snr_interval(schedule: Schedule, times: Sequence[float] | None) -> tuple[float, float] | None:
    """The interval of `Guided`, of one in time: guidance at low <= t <= high alone.

    Raises:
        ValueError: not two times with 0 <= low < high <= 1.
    """
    if times is None:
        return None
    if len(times) != 2 or not 0 <= times[0] < times[1] <= 1:
        raise ValueError(
            "stage.guidance_interval must be null or two times [low, high] with 0 <= low < high <= 1, got "
            f"{list(times)}"
        )
    highest, lowest = schedule.log_snr(torch.tensor(times, dtype=torch.float64)).tolist()
    return lowest, highest


class Guided:
    """A Denoise made of one without w input: both branches in one call on a doubled batch, then `guide`.

    Args:
        null: what means "no condition": a label, the embedding (tokens, features) of the empty prompt, or an image.
        interval: (lowest, highest) log-SNR at which there is guidance; outside w is 0 (Kynkaanniemi et al. 2024).
    """

    evaluations = 2  # network evaluations per call and image

    def __init__(self, denoise: Denoise, null: int | Tensor, interval: tuple[float, float] | None = None) -> None:
        self.denoise = denoise
        self.null = null
        self.interval = interval

    def __call__(self, z: Images, log_snr: Batch, label: Condition, w: Float[Tensor, "batch"] | None) -> Prediction:
        assert w is not None, "a guided denoiser needs w"
        if self.interval is not None:
            w = w * ((log_snr >= self.interval[0]) & (log_snr <= self.interval[1]))
        labels = torch.cat([label, nulls(label, self.null)])
        both = self.denoise(torch.cat([z, z]), torch.cat([log_snr, log_snr]), labels, None)
        conditional, unconditional = both.v.chunk(2)
        return Prediction(z=z, v=guide(conditional=conditional, unconditional=unconditional, w=w), log_snr=log_snr)
