"""Every network can give a policy: wider outputs of its last layer, beside the first prediction for every component."""

from typing import Any

import pytest
import torch
from test_networks import NETWORKS
from torch import nn
from wrapped import TEXT, WRAPPED, lively, question, with_config

from fewstep.networks import Denoiser, ResidualMLP
from fewstep.networks.backbones.text_unet import TextUNet
from fewstep.networks.denoiser import with_components
from fewstep.networks.smaller import smaller_student

ALL = {
    **{f"{kind.__name__}-{len(sizes['shape'])}": (kind, sizes) for kind, sizes in NETWORKS},
    **WRAPPED,
    "learned variance": (TextUNet, with_config(TEXT, out_channels=6)),
}


@pytest.mark.parametrize("name", ALL)
def test_each_component_begins_beside_the_networks_own_prediction(name: str) -> None:
    kind, sizes = ALL[name]
    plain = Denoiser(lively(kind(**sizes)).eval())
    torch.manual_seed(0)
    made = with_components(plain, 3)
    made.eval()
    z, time, label, w = question(sizes)
    with torch.no_grad():
        output, expected = made.network(z, time, label, w), plain.network(z, time, label, w)
    assert output.shape == (4, 9, *z.shape[1:])
    difference = (output[:, :3] - expected[:, None]).square().mean().sqrt()
    assert 1e-3 < float(difference) < 0.3 * float(expected.square().mean().sqrt()) + 0.1
    assert not output[:, 3:].any()
    assert {*made.state_dict()} == {*plain.state_dict()}


def test_the_number_of_components_is_not_for_a_smaller_student_to_say() -> None:
    kind, sizes = ALL["ResidualMLP-1"]
    with pytest.raises(ValueError, match=r"stage\.student must change arguments .* got 'components'"):
        smaller_student(with_components(Denoiser(kind(**sizes)), 2), {"components": 3})
    assert smaller_student(with_components(Denoiser(kind(**sizes)), 2), {"width": 8}).components == 2


@pytest.mark.parametrize("kind", [ResidualMLP])
def test_a_negative_number_is_refused(kind: type[nn.Module]) -> None:
    sizes: dict[str, Any] = ALL["ResidualMLP-1"][1]
    with pytest.raises(ValueError, match="components must be at least 0"):
        kind(**sizes, components=-1)
