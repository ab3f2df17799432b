"""What is computed of tensors lies on their device. The meta device stands for a GPU; most operations refuse a mix."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.edit import slerp
from fewstep.diffusion.experts import Experts
from fewstep.diffusion.guidance import guide, guide_twice, nulls_but, shared_weight, steer
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import diffuse, interpret
from fewstep.diffusion.sampler import ddim_step, sample
from fewstep.diffusion.schedule import CosineSchedule, append_zero, uniform_times
from fewstep.diffusion.styles import Styles

COUNT = 4
Z, ONE, LABEL = torch.zeros(COUNT, 2), torch.zeros(COUNT), torch.zeros(COUNT, dtype=torch.long)
Make = Callable[..., GaussianMixture]
CASES: dict[str, Callable[[Make, Tensor, Tensor, Tensor], Tensor]] = {
    "cosine": lambda make, z, one, label: CosineSchedule().log_snr(one),
    "cosine, back": lambda make, z, one, label: CosineSchedule().time(one),
    "betas": lambda make, z, one, label: BetaSchedule().log_snr(one),
    "betas, back": lambda make, z, one, label: BetaSchedule().time(one),
    "betas, timestep": lambda make, z, one, label: BetaSchedule().timestep(one),
    "grid": lambda make, z, one, label: append_zero(one),
    "diffuse": lambda make, z, one, label: diffuse(x=z, eps=z, log_snr=one).z,
    "step": lambda make, z, one, label: ddim_step(interpret("v", z, z=z, log_snr=one), one),
    "slerp": lambda make, z, one, label: slerp(z, z, one),
    "guide": lambda make, z, one, label: guide(conditional=z, unconditional=z, w=one),
    "guide twice": lambda make, z, one, label: guide_twice(paired=z, conditional=z, unconditional=z, w=one),
    "steer": lambda make, z, one, label: steer(neutral=z, towards=z, away=z, amount=one),
    "nulls": lambda make, z, one, label: nulls_but(one > 0, label, 3),
    "weight": lambda make, z, one, label: shared_weight(1.0, COUNT, one.device) + one,
    "mixture": lambda make, z, one, label: make().denoise(z, one, label).x,
    "density": lambda make, z, one, label: make().log_density(z, one, label),
    "class": lambda make, z, one, label: make().class_log_probability(z),
    "style": lambda make, z, one, label: styled(make()).style_log_probability(z, label),
    "draw": lambda make, z, one, label: experts(z).draw(one, z),
    "responsibilities": lambda make, z, one, label: experts(z).log_responsibilities(z),
    "sample": lambda make, z, one, label: sample(
        make().denoise, z, schedule=CosineSchedule(), times=uniform_times(3), label=label, w=None
    ),
}


def styled(mixture: GaussianMixture) -> GaussianMixture:
    """Its components in two classes of two styles."""
    count = len(mixture.means)
    return GaussianMixture(
        mixture.means, mixture.stds, mixture.weights, torch.arange(count) % 4, Styles(num_classes=2, num_styles=2)
    )


def experts(z: Tensor) -> Experts:
    """Three of unit covariance for each example."""
    unit = torch.eye(2, device=z.device).expand(len(z), 3, 2, 2)
    return Experts(torch.zeros(len(z), 3, 2, device=z.device), unit, torch.zeros(len(z), 3, device=z.device))


@pytest.mark.parametrize("name", CASES)
def test_on_the_device_of_what_is_given(name: str, make_mixture: Make) -> None:
    here = CASES[name](make_mixture, Z, ONE, LABEL)
    there = CASES[name](make_mixture, *(each.to("meta") for each in (Z, ONE, LABEL)))
    assert (there.device.type, there.shape, there.dtype) == ("meta", here.shape, here.dtype)
