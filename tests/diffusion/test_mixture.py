import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import CosineSchedule, alpha, sigma

MakeMixture = Callable[..., GaussianMixture]
DIMS = [1, 2, 5]
NULL = 3


def points(dim: int, count: int = 12) -> tuple[Tensor, Tensor]:
    """z and a log-SNR from data to noise."""
    generator = torch.Generator().manual_seed(dim)
    z = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return z, CosineSchedule().log_snr(torch.linspace(0.1, 1.0, count))


def classes(count: int = 12) -> Tensor:
    return torch.arange(count) % 3


def slope(function: Callable[[Tensor], Tensor], z: Tensor, h: float = 1e-4) -> Tensor:
    """Gradient of one number per example, by central differences of order 4."""
    gradient = torch.empty_like(z)
    for axis in range(z.shape[1]):
        step = torch.zeros_like(z)
        step[:, axis] = h
        near, far = function(z + step) - function(z - step), function(z + 2 * step) - function(z - 2 * step)
        gradient[:, axis] = (8 * near - far) / (12 * h)
    return gradient


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("label", [classes(), torch.full((12,), NULL)], ids=["conditional", "unconditional"])
def test_eps_is_the_score_of_the_density(make_mixture: MakeMixture, dim: int, label: Tensor) -> None:
    mixture = make_mixture(dim=dim)
    z, log_snr = points(dim)
    score = -mixture.denoise(z, log_snr, label).eps / sigma(log_snr)[:, None]
    torch.testing.assert_close(score, slope(lambda z: mixture.log_density(z, log_snr, label), z), rtol=1e-8, atol=1e-9)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(z, log_snr, label).sum(), z)
    torch.testing.assert_close(score, gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_guided_eps_is_the_guided_score(make_mixture: MakeMixture, dim: int, w: float) -> None:
    mixture, label = make_mixture(dim=dim), classes()
    z, log_snr = points(dim)

    def guided_log_density(z: Tensor) -> Tensor:
        conditional = mixture.log_density(z, log_snr, label)
        return (1 + w) * conditional - w * mixture.log_density(z, log_snr, torch.full_like(label, NULL))

    weights = torch.full((12,), w, dtype=torch.float64)
    score = -Guided(mixture.denoise, NULL)(z, log_snr, label, weights).eps / sigma(log_snr)[:, None]
    torch.testing.assert_close(score, slope(guided_log_density, z), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("label", [1, NULL])
def test_x_is_the_mean_of_the_data_given_z(make_mixture: MakeMixture, dim: int, label: int) -> None:
    mixture = make_mixture(dim=dim)
    generator = torch.Generator().manual_seed(0)
    count = 200_000
    if label == NULL:
        component = torch.multinomial(mixture.weights, count, replacement=True, generator=generator)
        x = mixture.draw(mixture.classes[component], generator)
    else:
        x = mixture.draw(torch.full((count,), label), generator)
    z, log_snr = 0.4 * torch.ones(1, dim, dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    log_weight = -((z - alpha(log_snr) * x) / sigma(log_snr)).square().sum(1) / 2
    weight = log_weight.softmax(0)[:, None]
    mean = (weight * x).sum(0)
    error = (weight * (x - mean)).square().sum(0).sqrt()  # of importance sampling
    assert ((mixture.denoise(z, log_snr, torch.tensor([label])).x[0] - mean).abs() < 4 * error).all()
    assert (error < 0.01).all()


def test_densities_are_normalised_and_marginalise(make_mixture: MakeMixture) -> None:
    mixture = make_mixture(dim=1)
    line = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    log_snr = torch.full((4001,), 0.3, dtype=torch.float64)
    densities = [mixture.log_density(line, log_snr, torch.full((4001,), label)).exp() for label in range(4)]
    for density in densities:
        assert torch.trapezoid(density, line[:, 0]).item() == pytest.approx(1, abs=1e-9)
    prior = [mixture.weights[mixture.classes == c].sum() for c in range(3)]
    torch.testing.assert_close(densities[NULL], sum(p * d for p, d in zip(prior, densities[:NULL], strict=True)))


@pytest.mark.parametrize("dim", DIMS)
def test_the_classifier_is_bayes_rule(make_mixture: MakeMixture, dim: int) -> None:
    mixture = make_mixture(dim=dim)
    x, _ = points(dim)
    joint = torch.zeros(12, 3, dtype=torch.float64)
    for mean, std, weight, label in zip(mixture.means, mixture.stds, mixture.weights, mixture.classes, strict=True):
        joint[:, label] += (
            weight * (-((x - mean) / std).square().sum(1) / 2).exp() / (std.prod() * math.tau ** (dim / 2))
        )
    expected = joint / joint.sum(1, keepdim=True)
    torch.testing.assert_close(mixture.class_log_probability(x).softmax(1), expected)


def test_draw_has_the_moments_of_each_class(make_mixture: MakeMixture) -> None:
    mixture, count = make_mixture(dim=2), 60_000
    label = torch.arange(3).repeat_interleave(count)
    x = mixture.draw(label, torch.Generator().manual_seed(0)).reshape(3, count, 2)
    for c, drawn in enumerate(x):
        own = mixture.classes == c
        weight = (mixture.weights[own] / mixture.weights[own].sum())[:, None]
        mean = (weight * mixture.means[own]).sum(0)
        second = (weight * (mixture.means[own].square() + mixture.stds[own].square())).sum(0)
        deviation = (second - mean.square()).sqrt()
        assert ((drawn.mean(0) - mean).abs() < 4 * deviation / count**0.5).all()
        torch.testing.assert_close(drawn.std(0), deviation, rtol=0.015, atol=0)


def test_draw_repeats_with_its_generator(make_mixture: MakeMixture) -> None:
    mixture = make_mixture()
    first, second = (mixture.draw(classes(), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


def test_one_component_has_the_textbook_posterior() -> None:
    mean, std = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[0.2]], dtype=torch.float64)
    mixture = GaussianMixture(mean, std, torch.ones(1, dtype=torch.float64), torch.tensor([0]))
    z, log_snr = torch.tensor([[1.3]], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
    a = s = 0.5**0.5
    expected = (0.5 / 0.04 + a * 1.3 / s**2) / (1 / 0.04 + a**2 / s**2)
    assert mixture.denoise(z, log_snr, torch.tensor([0])).x.item() == pytest.approx(expected)


GOOD = {
    "means": torch.zeros(2, 2),
    "stds": torch.ones(2, 2),
    "weights": torch.full((2,), 0.5),
    "classes": torch.tensor([0, 1]),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"stds": torch.ones(2, 3)}, "one mean, std, weight and class per component"),
        ({"weights": torch.ones(3)}, "one mean, std, weight and class per component"),
        ({"stds": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}, "stds and weights must be positive"),
        ({"weights": torch.tensor([1.0, -0.5])}, "stds and weights must be positive"),
        ({"classes": torch.tensor([0, 2])}, r"every class 0..2 needs a component, got \[0, 2\]"),
        ({"classes": torch.tensor([1, 1])}, r"every class 0..1 needs a component"),
    ],
)
def test_bad_mixtures_are_refused(change: dict[str, Tensor], rule: str) -> None:
    GaussianMixture(**GOOD)
    with pytest.raises(ValueError, match=rule):
        GaussianMixture(**GOOD | change)
