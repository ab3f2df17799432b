"""The noise levels at which methods train are distributed as their settings say, and errors are weighted as stated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_methods import NUM_CLASSES, SCHEDULE, gaussian, module, small
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.diffusion.prediction import Prediction, interpret
from fewstep.methods import Networks
from fewstep.methods.draws import Draws

COUNT = 4096
NORMAL_QUARTILE = 0.6745


def given() -> Batch:
    return Batch(0.4 * torch.randn(COUNT, 2), torch.arange(COUNT) % NUM_CLASSES)


def sigmas(name: str, role: str = "student", **changes: Any) -> Tensor:
    """sigma / alpha of each example of a large batch."""
    made = module(small(name, **changes))
    data = given()
    found = made.method.losses(data, made.nets, Draws.begin(data.x, "levels", 0), step=0, phase=made.phase)
    return (-SCHEDULE.log_snr(found[role].t.detach().double()) / 2).exp()


@pytest.mark.parametrize(
    ("name", "changes", "of"),
    [
        ("scm", {"log_mean": -0.4, "log_std": 0.7}, torch.log),
        ("ect", {"log_mean": -0.4, "log_std": 0.7}, torch.log),
    ],
)
def test_levels_are_log_normal(name: str, changes: dict[str, float], of: Callable[[Tensor], Tensor]) -> None:
    levels = of(sigmas(name, **changes))
    mean, std = changes["log_mean"], changes["log_std"]
    expected = torch.tensor([mean - NORMAL_QUARTILE * std, mean, mean + NORMAL_QUARTILE * std]).double()
    found = levels.quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_the_levels_of_a_policys_score_are_uniform() -> None:
    """Network time is phi / (pi / 2), and tan(phi) is sigma / alpha."""
    made = module(small("vdd", sigma=[0.1, 0.5]))
    data = given()
    found = made.method.losses(data, made.nets, Draws.begin(data.x, "levels", 0), step=0, phase=made.phase)
    levels = (found["student"].t.detach().double() * torch.pi / 2).tan()
    expected = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).double()
    torch.testing.assert_close(levels.quantile(torch.linspace(0, 1, 5).double()), expected, rtol=0, atol=0.02)


@pytest.mark.usefixtures("unchecked")
def test_the_error_of_tuned_consistency_is_over_the_distance_of_its_levels() -> None:
    """Geng et al. 2024: |difference|^2 / (sqrt(|difference|^2 + c^2) + c) / (sigma - sigma'), c = huber sqrt(dim)."""
    method: Any = small("ect along data", {"images": 32_000}, huber=0.2, log_mean=-0.5, log_std=0.3)

    def student(z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None = None, **_: Any) -> Prediction:
        """Predicts its log-SNR in every value, so that the difference is known."""
        return interpret("x", log_snr[:, None].expand_as(z), z=z, log_snr=log_snr)

    data, step = given(), 900
    nets: Any = Networks(student, gaussian, SCHEDULE, None)  # pyright: ignore[reportArgumentType]
    found = method.losses(data, nets, Draws.begin(data.x, "weights", step), step=step, phase=method.phases()[0])
    sigma, nearer = method.pair(Draws.begin(data.x, "weights", step), step / method.training.num_steps)
    apart = nearer > 1e-3  # else it ends at data
    square = 2 * (2 * sigma.log() - 2 * nearer.log()).square()
    c = 0.2 * 2**0.5
    expected = square / ((square + c**2).sqrt() + c) / (sigma - nearer)
    torch.testing.assert_close(found["student"].error[apart], expected[apart], rtol=0.02, atol=1e-4)
    assert int(apart.sum()) > COUNT / 2
