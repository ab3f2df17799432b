"""The import hook of tests/conftest.py fires: without it, all shape annotations would be comments."""

import jaxtyping
import pytest
import torch

from fewstep.diffusion.guidance import guide
from fewstep.diffusion.prediction import Prediction, diffuse
from fewstep.networks import ResidualMLP
from fewstep.system.seeds import starting_noise

WRONG = jaxtyping.TypeCheckError


def test_right_shapes_pass() -> None:
    noised = diffuse(x=torch.ones(4, 2), eps=torch.ones(4, 2), log_snr=torch.zeros(4))
    assert torch.allclose(noised.z, torch.full((4, 2), 2**0.5))


def test_a_wrong_batch_is_refused() -> None:
    with pytest.raises(WRONG):
        diffuse(x=torch.ones(4, 2), eps=torch.ones(4, 2), log_snr=torch.zeros(3))


def test_a_wrong_dtype_is_refused() -> None:
    with pytest.raises(WRONG):
        guide(conditional=torch.ones(4, 2).long(), unconditional=torch.ones(4, 2), w=torch.zeros(4))


def test_a_broadcast_that_nobody_meant_is_refused() -> None:
    with pytest.raises(WRONG):
        guide(conditional=torch.ones(4, 2), unconditional=torch.ones(4, 1), w=torch.zeros(4))


def test_dataclasses_are_checked() -> None:
    with pytest.raises(WRONG):
        Prediction(z=torch.ones(4, 2), v=torch.ones(4, 3), log_snr=torch.zeros(4))


def test_every_package_is_hooked() -> None:
    network = ResidualMLP(shape=(2,), num_classes=3, width=4, num_blocks=1, embedding_dim=4)
    with pytest.raises(WRONG):
        network(torch.ones(4, 2), torch.zeros(4), torch.zeros(4), None)  # labels are no floats
    with pytest.raises(WRONG):
        starting_noise("0", 0, 1, (2,))  # pyright: ignore[reportArgumentType]


def test_the_package_of_the_methods_is_hooked() -> None:
    from fewstep.methods import GuidanceRange

    with pytest.raises(WRONG):
        GuidanceRange(0.0, 4.0).quantile(torch.zeros(4, dtype=torch.long))
