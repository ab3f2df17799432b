"""What a student regresses to. A target is a keyword-only function of a teacher Denoise and the noised data."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Condition, Denoise, Prediction
from fewstep.diffusion.sampler import ddim_step
from fewstep.diffusion.schedule import Batch, Images, angle, expand


def clipped(teacher: Denoise, low: float, high: float) -> Denoise:
    """A teacher whose every predicted x is held inside the data's range (low, high): for clipped targets.

    The paper's own choice is not known. Free targets are the default: all of this library's identities hold for them.
    """

    def denoise(z: Images, log_snr: Batch, label: Condition, w: Float[Tensor, "batch"] | None) -> Prediction:
        return teacher(z, log_snr, label, w).clip(low, high)

    return denoise


@torch.no_grad()
def guided_target(
    *, teacher: Denoise, z: Images, log_snr: Batch, label: Condition, w: Float[Tensor, "batch"]
) -> Prediction:
    """Stage one: the guided teacher's own prediction at z (Meng et al. 2023, section 3.1). `teacher` is `Guided`."""
    return teacher(z, log_snr, label, w)


@torch.no_grad()
def progressive_target(
    *,
    teacher: Denoise,
    z: Images,
    log_snr: Batch,
    log_snr_mid: Batch,
    log_snr_end: Batch,
    label: Condition,
    w: Float[Tensor, "batch"] | None,
) -> Prediction:
    """Stage two: the prediction whose one DDIM step makes the teacher's two (Salimans & Ho 2022, algorithm 2).

    With angle steps d1 = phi - phi_mid, d2 = phi_mid - phi_end, d = d1 + d2 and the teacher's v1 at z, v2 at z_mid:

        v = (sin(d1) cos(d2) v1 + sin(d2) v2 - sin(d1) sin(d2) z) / sin(d)

    which equals x = (sin(phi) z_end - sin(phi_end) z) / sin(d) without its cancellation: for d1 = d2 = d/2 it is
    (v1 + v2 / cos(d/2) - tan(d/2) z) / 2, and no term grows as d shrinks. (Our derivation; tested against
    `invert_ddim` in float64.)
    """
    first = teacher(z, log_snr, label, w)
    second = teacher(ddim_step(first, log_snr_mid), log_snr_mid, label, w)
    d1, d2 = angle(log_snr) - angle(log_snr_mid), angle(log_snr_mid) - angle(log_snr_end)
    whole = torch.sin(d1 + d2)
    v = (
        expand(torch.sin(d1) * torch.cos(d2) / whole, z) * first.v
        + expand(torch.sin(d2) / whole, z) * second.v
        - expand(torch.sin(d1) * torch.sin(d2) / whole, z) * z
    )
    return Prediction(z=z, v=v, log_snr=log_snr)
