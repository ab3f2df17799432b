"""The energy distance against its definition and a closed form."""

from math import exp, pi, sqrt

import pytest
import torch
from scipy.special import ndtr

from fewstep.data.mixture import ring_mixture
from fewstep.evaluation.energy import energy_distance


def test_it_is_the_definition_and_0_for_equal_sets() -> None:
    x, y, labels = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [7.0]]), torch.tensor([0, 0])
    assert energy_distance(x, y, labels).distance == pytest.approx(2 * (3 + 7 + 2 + 6) / 4 - 2 / 4 - 8 / 4)
    assert energy_distance(x, y, labels).floor == pytest.approx(4)  # 2 / 2 times the distance of 3 and 7
    many = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    equal = energy_distance(many, many.flip(0), torch.zeros(500, dtype=torch.long))
    assert equal.distance == pytest.approx(0, abs=1e-7)
    assert equal.interval[0] == 0


@pytest.mark.parametrize("shift", [0.1, 1.0])
def test_of_two_gaussians_it_is_the_closed_form(shift: float) -> None:
    """2 E|X - Y| - 2 E|X - X'| with X - Y ~ N(shift, 2)."""
    x = torch.special.ndtri((torch.arange(3000).double() + 0.5) / 3000)[:, None]
    between = 2 / sqrt(pi) * exp(-(shift**2) / 4) + shift * (1 - 2 * float(ndtr(-shift / sqrt(2))))
    own = energy_distance(x, x + shift, torch.zeros(3000, dtype=torch.long))
    assert own.distance == pytest.approx(2 * between - 4 / sqrt(pi), rel=0.01)
    assert own.interval[0] < own.distance < own.interval[1]


def test_the_floor_is_the_mean_of_two_exact_sets() -> None:
    mixture, labels = ring_mixture(num_classes=5, dim=2, std=0.08), torch.arange(100) % 5
    generator = torch.Generator().manual_seed(0)
    found = [
        energy_distance(mixture.draw(labels, generator), mixture.draw(labels, generator), labels) for _ in range(300)
    ]
    distances, floors = torch.tensor([[own.distance, own.floor] for own in found], dtype=torch.float64).T
    assert floors.std() < 0.05 * floors.mean()
    assert floors.mean().item() == pytest.approx(distances.mean().item(), abs=3 * distances.std().item() / 120**0.5)
    shuffled = labels[torch.randperm(100, generator=generator)]
    x = mixture.draw(labels, generator)
    assert energy_distance(x, x, shuffled).floor > 1.5 * floors.mean()  # of random classes
