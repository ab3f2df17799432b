from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.loss import GUIDANCE_WEIGHTS, METRICS, WEIGHTS, weighted_error
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import CosineSchedule

# Salimans & Ho 2022, section 4: the weight of the x-space error as a function of the signal-to-noise ratio ...
OF_X_ERROR: dict[str, Callable[[Tensor], Tensor]] = {
    "snr": lambda ratio: ratio,
    "truncated_snr": lambda ratio: ratio.clamp(min=1),
    "snr_plus_one": lambda ratio: ratio + 1,
    "uniform_x": lambda ratio: torch.ones_like(ratio),
}
# ... and what the errors in x, eps and v then add up to, which is how the paper introduces them.
OF_ALL_ERRORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "snr": lambda x, eps, v: eps,
    "truncated_snr": lambda x, eps, v: torch.maximum(x, eps),
    "snr_plus_one": lambda x, eps, v: v,
    "uniform_x": lambda x, eps, v: x,
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


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_metric_is_l2_unless_named(name: str) -> None:
    prediction, target = pair(torch.linspace(0, 1, 9), torch.float32)
    expected = WEIGHTS[name](prediction.log_snr).float() * squared(prediction.v, target.v)
    assert torch.equal(weighted_error(prediction, target, WEIGHTS[name]), expected)
    assert torch.equal(weighted_error(prediction, target, WEIGHTS[name], metric="l2"), expected)


@pytest.mark.parametrize("name", WEIGHTS)
def test_pseudo_huber_is_of_the_norm_of_the_whole_example(name: str) -> None:
    """sqrt(omega |x - x'|^2 + c^2) - c with c = 0.00054 sqrt(D), not a sum of such terms over the entries."""
    prediction, target = pair(torch.linspace(0.05, 0.95, 40))
    square = OF_X_ERROR[name](prediction.log_snr.exp()) * (prediction.x - target.x).square().flatten(1).sum(1)
    c = 0.00054 * 9**0.5
    expected = (square + c**2).sqrt() - c
    torch.testing.assert_close(weighted_error(prediction, target, WEIGHTS[name], metric="pseudo_huber"), expected)


@pytest.mark.parametrize(("scale", "power"), [(1e-9, 2), (1e3, 1)])
def test_pseudo_huber_is_the_square_near_zero_and_the_norm_far_away(scale: float, power: int) -> None:
    difference = scale * torch.ones(1, 3072, dtype=torch.float64)
    c, norm = 0.00054 * 3072**0.5, scale * 3072**0.5
    assert c == pytest.approx(0.0299, abs=5e-5)
    expected = norm**2 / (2 * c) if power == 2 else norm - c
    error = METRICS["pseudo_huber"](difference, torch.ones(1, dtype=torch.float64))
    assert float(error) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_at_no_error_is_zero_and_has_a_finite_gradient(name: str) -> None:
    difference = torch.zeros(2, 5, requires_grad=True)
    error = METRICS[name](difference, torch.ones(2))
    error.sum().backward()
    assert not error.any()
    assert difference.grad is not None
    assert not difference.grad.any()


def test_an_unknown_metric_is_refused() -> None:
    prediction, target = pair(torch.rand(5))
    with pytest.raises(ValueError, match="metric must be one of l2, l1, pseudo_huber, huber, got 'l3'"):
        weighted_error(prediction, target, WEIGHTS["snr"], metric="l3")
