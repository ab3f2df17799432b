"""KID is the unbiased squared MMD of the cubic kernel, if requested."""

import pytest
import torch
from figures import final_figures
from torch import Tensor

from fewstep.diffusion.mixture import GaussianMixture
from fewstep.evaluation.features import MixtureFeatures
from fewstep.evaluation.images import Reference


def mmd(x: Tensor, y: Tensor) -> float:
    """Binkowski et al. 2018, eq. 4, with k(a, b) = (a.b / dim + 1)^3."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    count = len(x)
    within = sum(
        (kernel(a, a).sum() - kernel(a, a).diagonal().sum()) / (count * (count - 1)) for a in (x, y)
    )  # pairs of different points
    return float(within - 2 * kernel(x, y).mean())


def test_kid_is_the_unbiased_mmd(make_mixture) -> None:
    mixture: GaussianMixture = make_mixture()
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    x, y = (mixture.draw(labels, generator).float() for _ in range(2))
    net, reference = MixtureFeatures(mixture), Reference("test", y, labels)
    figures = final_figures(net, images=x + 0.5, labels=labels, reference=reference, kid=True)
    assert figures.kid == pytest.approx(mmd(x + 0.5, y), rel=1e-4)
    assert figures.kid > 0.05
    assert final_figures(net, images=x, labels=labels, reference=reference).kid is None
