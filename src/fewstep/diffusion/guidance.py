"""Classifier-free guidance, the paper's convention: w = 0 is no guidance; diffusers' and Imagen's scale is 1 + w."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.diffusion.prediction import Denoise, Prediction
from fewstep.diffusion.schedule import Batch, Images, expand


def guide(*, conditional: Images, unconditional: Images, w: Float[Tensor, "batch"]) -> Images:
    """(1 + w) conditional - w unconditional (Meng et al. 2023, section 3.1), alike in x, eps and v."""
    return conditional + expand(w, conditional) * (conditional - unconditional)


class Guided:
    """A Denoise made of one without w input: both branches in one call on a doubled batch, then `guide`.

    `null_label` is the label that means "no class".
    """

    evaluations = 2  # network evaluations per call and image

    def __init__(self, denoise: Denoise, null_label: int) -> None:
        self.denoise = denoise
        self.null_label = null_label

    def __call__(
        self, z: Images, log_snr: Batch, label: Int[Tensor, "batch"], w: Float[Tensor, "batch"] | None
    ) -> Prediction:
        assert w is not None, "a guided denoiser needs w"
        labels = torch.cat([label, torch.full_like(label, self.null_label)])
        both = self.denoise(torch.cat([z, z]), torch.cat([log_snr, log_snr]), labels, None)
        conditional, unconditional = both.v.chunk(2)
        return Prediction(z=z, v=guide(conditional=conditional, unconditional=unconditional, w=w), log_snr=log_snr)
