"""Intervals cover as often as they say, and influences are the derivatives that they stand for."""

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from fewstep.data.mixture import ring_mixture
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.evaluation.energy import energy_distance
from fewstep.evaluation.features import MixtureFeatures
from fewstep.evaluation.grid import root_mean_square
from fewstep.evaluation.intervals import (
    diversity_interval,
    frechet_influence,
    inception_influence,
    interval,
    kernel_influence,
    recall_interval,
    share_interval,
)
from fewstep.evaluation.metrics import figures_of
from fewstep.evaluation.statistics import (
    Features,
    Moments,
    ReferenceStatistics,
    Spectrum,
    frechet_distance,
    square_root,
)

REPETITIONS = 200
STD = 0.16  # twice the data set's: so few of its points lie between classes that the inception score needs more images
LEAST, MOST = 0.90, 0.99  # of 200 intervals, 95 % of which cover: three standard deviations down, and up as far as 99 %


def evaluations(mixture: GaussianMixture, change: Callable[[Tensor], Tensor], count: int = 300) -> dict[str, Tensor]:
    """(figure, low, high) of every figure in independent evaluations of changed exact samples, with one reference."""
    generator = torch.Generator().manual_seed(0)
    net, labels = MixtureFeatures(mixture), torch.arange(count) % mixture.num_classes
    known = torch.randint(mixture.num_classes, (2 * count,), generator=generator)
    reference = ReferenceStatistics(mixture.draw(known, generator).float(), known)
    rows: dict[str, list[list[float]]] = {}
    for _ in range(REPETITIONS):
        z, exact = (mixture.draw(labels, generator).float() for _ in range(2))
        x = change(z)
        figures = figures_of(Features.of(net, x), labels, reference, mixture.num_classes)
        for name, own in figures.intervals.items():
            rows.setdefault(name, []).append([asdict(figures)[name], *own])
        energy = energy_distance(x, exact, labels)
        rows.setdefault("energy_distance", []).append([energy.distance, *energy.interval])
        rmse, own = root_mean_square((x - z).double().square().mean(1), labels)
        rows.setdefault("exact_rmse", []).append([rmse, *own])
    return {name: torch.tensor(own, dtype=torch.float64) for name, own in rows.items()}


def coverage(rows: Tensor, width: float = 1.0) -> float:
    """Share of intervals that hold the expectation of the figure, if they were `width` times as wide."""
    figure, low, high = rows.T
    truth = figure.mean()
    low, high = figure + width * (low - figure), figure + width * (high - figure)
    return ((low <= truth) & (truth <= high)).double().mean().item()


@pytest.mark.slow
def test_intervals_cover_the_expectation_as_often_as_they_say() -> None:
    """On the exact mixture, of samples that are a tenth too far out, and narrower ones would not."""
    rows = evaluations(ring_mixture(num_classes=5, dim=2, std=STD), lambda z: 1.1 * z)
    assert len(rows) == 9
    for name, own in rows.items():
        assert coverage(own) >= LEAST, name
        if name not in ("recall", "accuracy"):  # too wide by construction
            assert coverage(own) <= MOST, name
            assert coverage(own, width=0.5) < LEAST, name


@pytest.mark.slow
def test_of_exact_samples_too_and_their_energy_distance_is_at_its_floor() -> None:
    mixture = ring_mixture(num_classes=5, dim=2, std=STD)
    rows = evaluations(mixture, lambda z: z)
    covered = {name: coverage(own) for name, own in rows.items() if name != "exact_rmse"}
    assert min(covered.values()) >= LEAST, covered
    distances, low, high = rows["energy_distance"].T
    labels = torch.arange(300) % 5
    exact = [mixture.draw(labels, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    floor = energy_distance(exact[0], exact[1], labels).floor
    assert floor == pytest.approx(distances.mean().item(), abs=3 * distances.std().item() / REPETITIONS**0.5)
    assert ((low <= floor) & (floor <= high)).double().mean() >= LEAST


def standard_error(influence: Tensor) -> float:
    return (influence.std() / len(influence) ** 0.5).item()


def jackknife(figure: Callable[[Tensor], Tensor | float], rows: Tensor) -> float:
    """The standard error of a figure by leaving one row out."""
    keep = ~torch.eye(len(rows), dtype=torch.bool)
    left_out = torch.tensor([float(figure(rows[own])) for own in keep], dtype=torch.float64)
    return (len(rows) - 1) ** 0.5 * left_out.std(correction=0).item()


def drawn(count: int, features: int) -> tuple[Tensor, Moments, Moments, Tensor]:
    """Features, their moments, those of a reference, and the root of its covariance."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -1, features)
    x = 0.2 + 0.8 * scale * torch.randn(count, features, generator=generator)
    real = Moments.of(scale * torch.randn(400, features, generator=generator))
    return x, Moments.of(x), real, square_root(real.covariance)


def distance(own: Moments, real: Moments, root: Tensor) -> float:
    return frechet_distance(own, real, Spectrum.of(own, root))


def test_the_error_of_fid_is_its_jackknifes() -> None:
    x, own, real, root = drawn(200, 6)
    expected = jackknife(lambda rows: distance(Moments.of(rows), real, root), x)
    assert standard_error(frechet_influence(x, own, real, root, Spectrum.of(own, root))) == pytest.approx(
        expected, rel=0.03
    )


@pytest.mark.parametrize(("count", "features"), [(50, 6), (20, 24)])
def test_influences_on_fid_are_its_derivatives_with_fewer_images_than_features_too(count: int, features: int) -> None:
    x, (mean, covariance), real, root = drawn(count, features)
    own = Moments(mean, covariance)
    found = frechet_influence(x, own, real, root, Spectrum.of(own, root))

    def moved(y: Tensor, eps: float) -> float:
        changed = Moments(mean + eps * y, covariance + eps * (torch.outer(y, y) - covariance))
        return distance(changed, real, root)

    derivatives = torch.tensor([(moved(y, 1e-4) - moved(y, -1e-4)) / 2e-4 for y in x.double() - mean])
    assert torch.allclose(found - found[0], (derivatives - derivatives[0]).double(), rtol=1e-3, atol=1e-4)


def test_the_errors_of_the_inception_score_and_of_kid_are_their_jackknifes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 5, generator=generator)

    def score(logits: Tensor) -> Tensor:
        p = logits.softmax(1)
        return (p * (p / p.mean(0)).log()).sum(1).mean().exp()

    assert standard_error(inception_influence(logits)) == pytest.approx(jackknife(score, logits), rel=0.02)
    x, real = torch.randn(150, 4, generator=generator) + 0.5, torch.randn(200, 4, generator=generator)

    def kid(x: Tensor) -> Tensor:
        within = ((x @ x.T / 4 + 1) ** 3).fill_diagonal_(0).sum() / (len(x) * (len(x) - 1))
        return within - 2 * ((x @ real.T / 4 + 1) ** 3).mean()

    assert standard_error(kernel_influence(x, real)) == pytest.approx(jackknife(kid, x), rel=0.02)


def half(own: list[float] | None) -> float:
    assert own is not None
    return (own[1] - own[0]) / 2


def test_the_interval_of_diversity_is_its_jackknifes_or_by_classes_of_two() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zeros = torch.zeros(40, dtype=torch.long)
    own = diversity_interval(torch.pdist(x).mean().item(), x, zeros, {0: 1.0, 7: 9.0})  # of 7 there is no sample
    error = jackknife(lambda rows: torch.pdist(rows).mean(), x)
    assert half(own) == pytest.approx(2.0227 * error, rel=1e-4)  # Student's t of 39 degrees of freedom
    pairs = torch.tensor([[0.0], [1.0], [0.0], [3.0]])
    own = diversity_interval(2.0, pairs, torch.tensor([0, 0, 1, 1]), {0: 1.0, 1: 1.0})
    assert half(own) > 1  # classes of distance 1 and 3
    assert diversity_interval(1.0, pairs[:2], zeros[:2], {0: 1.0}) is None


def test_what_classes_differ_in_is_no_error_where_each_has_two_images() -> None:
    labels = torch.arange(60) % 2
    assert interval(0.5, labels.double(), labels) == [0.5, 0.5]
    assert half(interval(0.5, labels.double())) > 0.1
    alone = torch.cat([labels, torch.tensor([5])])
    assert half(interval(0.5, alone.double(), alone)) > 0.1
    with pytest.raises(ValueError, match="two images"):
        interval(0.5, labels[:1].double())


def test_more_variance_and_the_least_value() -> None:
    influence = torch.tensor([-1.0, 1.0] * 50)
    low, high = interval(0.1, influence, least=0.0)
    assert (low, high - 0.1) == (0.0, pytest.approx(1.984 * 100.5**-0.5 * 1.0025, rel=0.01))
    assert half(interval(9.0, influence, extra=0.03)) == pytest.approx(half(interval(9.0, influence)) * 2, rel=0.02)


@pytest.mark.parametrize("hits", [0, 3, 50, 100])
def test_the_interval_of_a_share_is_wilsons(hits: int) -> None:
    expected = binomtest(hits, 100).proportion_ci(method="wilson")
    assert share_interval(hits / 100, 100) == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_recall_by_few_samples_is_less_sure_than_by_many() -> None:
    one, many = torch.tensor([60, *[0] * 99]), torch.ones(100, dtype=torch.long)
    assert recall_interval(0.6, 100, many) == share_interval(0.6, 100)
    assert half(recall_interval(0.6, 100, one)) > 3 * half(share_interval(0.6, 100))
    assert recall_interval(0.0, 100, 0 * many) == share_interval(0.0, 100)
    assert recall_interval(1.0, 100, one) == share_interval(1.0, 100)


def test_the_error_of_a_root_is_that_of_its_square() -> None:
    errors = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zeros = torch.zeros(500, dtype=torch.long)
    root, own = root_mean_square(errors, zeros)
    assert half(own) == pytest.approx(1.965 * standard_error(errors) / (2 * root), rel=1e-3)
    assert root_mean_square(0 * errors, zeros) == (0.0, [0.0, 0.0])
