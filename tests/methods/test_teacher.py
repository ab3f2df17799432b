"""The teacher: what it learns, and that the exact denoiser is the least that it can reach."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from small_methods import NULL, Exact, batch, fit, loss, module, network, regression, small
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.mixture import MixtureData
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import alpha, sigma
from fewstep.networks import Denoiser, ResidualMLP


def test_the_teacher_drops_its_share_of_the_labels() -> None:
    seen: list[Tensor] = []

    class Spy(ResidualMLP):
        def forward(self, z: Tensor, time: Tensor, label: Tensor, w: Tensor | None) -> Tensor:
            seen.append(label)
            return super().forward(z, time, label, w)

    spy = Denoiser(Spy(shape=(2,), num_classes=3, width=4, num_blocks=1, embedding_dim=4))
    result = regression(module(small("teacher"), spy), batch(6000))
    label = batch(6000).label
    assert float((seen[0] == 3).float().mean()) == pytest.approx(0.1, abs=0.015)
    assert torch.equal(seen[0][seen[0] != 3], label[seen[0] != 3])
    torch.testing.assert_close(result.target.x, batch(6000).x, rtol=0, atol=1e-5)
    assert result.w is None


@pytest.mark.parametrize(("share", "kept"), [(0.0, True), (1.0, False)])
def test_no_label_or_every_label_is_dropped_at_the_ends(share: float, kept: bool) -> None:
    made = module(small("teacher", label_dropout=share), Exact(Labels(), guidance_input=False))
    loss(made, batch(64, torch.float64))
    (label,) = Labels.seen
    assert torch.equal(label, batch(64).label if kept else torch.full((64,), NULL))


class Labels:
    """A denoiser that remembers the labels of its latest call."""

    seen: tuple[Tensor, ...] = ()

    def __call__(self, z: Tensor, log_snr: Tensor, label: Tensor, w: Tensor | None) -> Any:
        Labels.seen = (label,)
        return network()(z.float(), log_snr, label, w)


def posterior_variance(mixture: GaussianMixture, z: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
    """Var(x | z, label), the mean over the dimensions: of the components' posteriors, by the law of total variance."""
    a, s = alpha(log_snr)[:, None, None], sigma(log_snr)[:, None, None]
    variance = (a * mixture.stds) ** 2 + s**2
    log_density = (-((z[:, None] - a * mixture.means) ** 2) / (2 * variance) - variance.log() / 2).sum(-1)
    of_class = (mixture.classes == label[:, None]) | (label == NULL)[:, None]
    share = (log_density + mixture.weights.log()).masked_fill(~of_class, -torch.inf).softmax(1)[..., None]
    means = mixture.means + a * mixture.stds**2 / variance * (z[:, None] - a * mixture.means)
    of_each = mixture.stds**2 * s**2 / variance
    mean = (share * means).sum(1)
    return ((share * (of_each + means**2)).sum(1) - mean**2).mean(1)


def test_the_exact_denoisers_loss_is_the_posterior_variance_and_no_other_has_less(make_mixture: Any) -> None:
    """Weighted so that the error is that of x: E|x - E[x | z, label]|^2, and off^2 sigma^2 more for one that is off."""
    mixture, count = make_mixture(), 20_000
    label = torch.arange(count) % 3
    given = Batch(mixture.draw(label, torch.Generator().manual_seed(0)), label)
    method = small("teacher", {"weight": "uniform_x"}, label_dropout=0.0)
    exact = module(method, Exact(mixture.denoise, guidance_input=False))
    seen = regression(exact, given)
    expected = posterior_variance(mixture, seen.prediction.z.detach(), seen.prediction.log_snr, label)
    assert loss(exact, given) == pytest.approx(float(expected.mean()), rel=0.03)
    off = module(method, Exact(mixture.denoise, guidance_input=False, off=0.3))
    more = (0.3 * sigma(seen.prediction.log_snr)).square().mean()
    assert loss(off, given) - loss(exact, given) == pytest.approx(float(more), rel=0.05)
    orthogonal = (seen.target.x - seen.prediction.x.detach()) * seen.prediction.z.detach()
    assert float(orthogonal.mean().abs()) < 4 * float(orthogonal.std()) / (2 * count) ** 0.5


def test_one_fit_lowers_the_loss() -> None:
    made = module(small("teacher", {"images": 150 * 64, "batch_size": 64, "ema_decay": 0.9}), network())
    held_out = MixtureData(num_classes=3, dim=2, std=0.1, num_reference=2000, batch_size=1, stream="0").reference()

    def judged(model: Denoiser) -> float:
        return loss(module(small("teacher"), deepcopy(model), stream="held out"), held_out)

    before = judged(made.student)
    fit(made)
    assert judged(made.student) < 0.6 * before
    assert judged(made.nets.model) < 0.6 * before


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_bad_label_dropout_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"stage.label_dropout must be a number from 0 to 1, got {share}"):
        small("teacher", label_dropout=share)


def test_it_needs_no_teacher_and_makes_one() -> None:
    method = small("teacher")
    assert method.parent() is None
    assert method.without_teacher() is method
    (phase,) = method.phases()
    assert (phase.sampling.guidance, phase.sampling.times) == ("two_evaluations", None)
    assert method.has_dropout
