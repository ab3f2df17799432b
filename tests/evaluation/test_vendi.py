"""The Vendi score at its closed forms, and its error by its jackknife."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.evaluation.vendi import VENDI_IMAGES, gaussian_kernel, vendi, vendi_within_classes


def test_so_many_images_as_differ() -> None:
    assert vendi(torch.eye(7, dtype=torch.float64)).score == pytest.approx(7)
    assert vendi(torch.ones(7, 7, dtype=torch.float64)).score == pytest.approx(1)
    pairs = torch.block_diag(*[torch.ones(2, 2, dtype=torch.float64)] * 3)
    assert vendi(pairs).score == pytest.approx(3)
    shares = torch.tensor([0.7, 0.3]).double()  # 7 and 3 of a kind: the exponential of the entropy of the shares
    kinds = torch.block_diag(torch.ones(7, 7).double(), torch.ones(3, 3).double())
    assert vendi(kinds).score == pytest.approx(math.exp(-(shares * shares.log()).sum()))


@pytest.mark.parametrize("c", [0.1, 0.6])
def test_of_equally_similar_images(c: float) -> None:
    """Eigenvalues (1 + (n - 1) c) / n, once, and (1 - c) / n."""
    n, scale = 6, 2.0
    corners = torch.eye(n) * scale * math.sqrt(-math.log(c))  # at squared distances -2 scale^2 log c
    first, others = (1 + (n - 1) * c) / n, (1 - c) / n
    expected = math.exp(-first * math.log(first) - (n - 1) * others * math.log(others))
    assert vendi(gaussian_kernel(corners, scale)).score == pytest.approx(expected, rel=1e-6)


def test_influences_are_derivatives() -> None:
    """Of the score with the weight of one image raised, all others keeping their proportion."""
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = gaussian_kernel(x, 1.0)

    def weighted(image: int, eps: float) -> float:
        p = torch.full((12,), 1 / 12, dtype=torch.float64)
        p[image] *= 1 + eps
        root = (p / p.sum()).sqrt()
        values = torch.linalg.eigvalsh(kernel * root[:, None] * root)
        return (-torch.special.xlogy(values, values)).sum().exp().item()

    found = vendi(kernel).influence / 12
    derivatives = torch.tensor([(weighted(i, 1e-4) - weighted(i, -1e-4)) / 2e-4 for i in range(12)]).double()
    assert torch.allclose(found - found.mean(), derivatives - derivatives.mean(), rtol=1e-4, atol=1e-6)


def classes(count: int) -> tuple[Tensor, Tensor]:
    """Class 0 of well separated points, class 1 of a single one again and again, in turns."""
    features = torch.zeros(2 * count, 1)
    features[::2, 0] = 100.0 * torch.arange(count)
    return features, torch.arange(2 * count) % 2


def test_the_mean_over_classes_of_their_first_images() -> None:
    features, labels = classes(10)
    found = vendi_within_classes(features, labels, {0: 1.0, 1: 1.0, 2: 1.0})  # of 2 there is no sample
    assert found is not None
    score, (low, high) = found
    assert score == pytest.approx((10 + 1) / 2)
    assert (low, high) == pytest.approx((score, score))  # no image counts more than another of its class
    many, their_labels = classes(VENDI_IMAGES + 50)
    capped = vendi_within_classes(many, their_labels, {0: 1.0})
    assert capped is not None
    assert capped[0] == pytest.approx(VENDI_IMAGES)
    assert vendi_within_classes(features[:1], labels[:1], {0: 1.0}) is None
    assert vendi_within_classes(features, labels, {0: 0.0}) is None
