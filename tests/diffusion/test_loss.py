from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.loss import GUIDANCE_WEIGHTS, WEIGHTS, weighted_error
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import CosineSchedule

# Salimans & Ho 2022, section 4: the weight of the x-space error as a function of the signal-to-noise ratio ...
OF_X_ERROR: dict[str, Callable[[Tensor], Tensor]] = {
    "snr": lambda ratio: ratio,
    "truncated_snr": lambda ratio: ratio.clamp(min=1),
    "snr_plus_one": lambda ratio: ratio + 1,
}
# ... and what the errors in x, eps and v then add up to, which is how the paper introduces them.
OF_ALL_ERRORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "snr": lambda x, eps, v: eps,
    "truncated_snr": lambda x, eps, v: torch.maximum(x, eps),
    "snr_plus_one": lambda x, eps, v: v,
}


def pair(t: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Prediction, Prediction]:
    """A prediction and a target at the same z."""
    log_snr = CosineSchedule().log_snr(t)
    generator = torch.Generator().manual_seed(0)
    z, v, truth = (torch.randn(len(t), 1, 3, 3, generator=generator, dtype=dtype) for _ in range(3))
    return Prediction(z=z, v=v, log_snr=log_snr), Prediction(z=z, v=truth, log_snr=log_snr)


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_in_v_space_are_the_papers(name: str) -> None:
    prediction, target = pair(torch.linspace(0.05, 0.95, 40))
    error = weighted_error(prediction, target, WEIGHTS[name])
    x_error = squared(prediction.x, target.x)
    torch.testing.assert_close(error, OF_X_ERROR[name](prediction.log_snr.exp()) * x_error)
    all_errors = x_error, squared(prediction.eps, target.eps), squared(prediction.v, target.v)
    torch.testing.assert_close(error, OF_ALL_ERRORS[name](*all_errors))


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_weight_explodes_at_the_ends_of_time(name: str) -> None:
    prediction, target = pair(torch.tensor([0.0, 1.0]), torch.float32)
    error = weighted_error(prediction, target, WEIGHTS[name])
    assert error.dtype == torch.float32
    assert (error <= squared(prediction.v, target.v) * (1 + 1e-6)).all()


def test_every_weight_has_a_definition_here() -> None:
    assert set(WEIGHTS) == set(OF_X_ERROR) == set(OF_ALL_ERRORS)


def test_the_same_prediction_has_no_error() -> None:
    prediction, _ = pair(torch.rand(5))
    assert not weighted_error(prediction, prediction, WEIGHTS["snr"]).any()


def test_weights_of_w() -> None:
    w = torch.tensor([0.0, 1.0, 3.0])
    assert {name: weight(w).tolist() for name, weight in GUIDANCE_WEIGHTS.items()} == {
        "uniform": [1, 1, 1],
        "relative": [1, 1 / 4, 1 / 16],
    }
