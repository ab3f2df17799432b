"""Balanced assignments against the optimal one, and prototypes that find the modes of data."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize, softmax

from fewstep.data.batches import ImagesInMemory
from fewstep.data.facts import DataFacts
from fewstep.data.labels import HELD_OUT, TRAINING
from fewstep.data.make_labels import Features, agreement, kmeans_of, labels_of, prototypes_of
from fewstep.data.split import Examples, SplitImages
from fewstep.diffusion.schedule import alpha, log_snr_of_share, sigma
from fewstep.networks import Denoiser, ResidualMLP
from fewstep.networks.clusters import Prototypes, cluster_error, sinkhorn


def cosines(count: int, clusters: int, seed: int = 0) -> Tensor:
    """Scores as prototypes give them, of random directions in three dimensions."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda rows: normalize(torch.randn(rows, 3, generator=generator), dim=1)  # noqa: E731
    return draw(count) @ draw(clusters).T


@pytest.mark.parametrize("seed", range(5))
def test_after_three_iterations_rows_sum_to_one_and_clusters_are_nearly_equal(seed: int) -> None:
    scores = 2 * torch.rand(512, 10, generator=torch.Generator().manual_seed(seed)) - 1
    scores[:, 0] += 0.5  # a cluster that all would like to be in
    found = sinkhorn(scores)
    torch.testing.assert_close(found.sum(1), torch.ones(512, dtype=torch.float64), atol=1e-12, rtol=0)
    size = found.sum(0) * 10 / 512
    assert 0.84 < size.min() <= size.max() < 1.20
    assert softmax(scores / 0.05, 1).sum(0).max() * 10 / 512 > 3  # which without the scaling it is


def test_it_tends_to_the_optimal_assignment_of_equal_clusters() -> None:
    """scipy's solution of the linear problem, in which each cluster has as many places as samples over clusters."""
    scores = cosines(24, 4)
    samples, places = linear_sum_assignment(scores.repeat_interleave(6, dim=1).numpy(), maximize=True)
    optimal = torch.empty(24, dtype=torch.long)
    optimal[samples] = torch.from_numpy(places // 6)
    assert torch.equal(sinkhorn(scores, eps=0.002, iterations=5000).argmax(1), optimal)
    assert not torch.equal(scores.argmax(1), optimal)


def test_the_error_is_a_cross_entropy_whose_goal_has_no_gradient() -> None:
    scores = cosines(32, 5).requires_grad_()
    goal, own = sinkhorn(scores.detach()).float(), softmax(scores / 0.1, 1)
    torch.testing.assert_close(cluster_error(scores), -(goal * own.log()).sum(1))
    cluster_error(scores).sum().backward()
    torch.testing.assert_close(scores.grad, (own - goal).detach() / 0.1)  # of a softmax to a constant goal


def test_scores_are_cosines() -> None:
    torch.manual_seed(0)
    prototypes = Prototypes(6, 3)
    features = torch.randn(40, 6)
    scores = prototypes(features)
    prototypes.prototypes.data *= 7
    torch.testing.assert_close(prototypes(features), scores)
    assert scores.abs().max() <= 1


def test_a_share_of_data_is_a_log_snr() -> None:
    share = torch.tensor([0.8, 0.85, 0.9], dtype=torch.float64)
    log_snr = log_snr_of_share(share)
    torch.testing.assert_close(alpha(log_snr) / sigma(log_snr), share / (1 - share))


def two_modes() -> tuple[ImagesInMemory, Tensor]:
    """Dark and bright images of 2 x 2 pixels, and which of them each training image is."""
    generator = torch.Generator().manual_seed(0)
    mode = torch.arange(400) % 2
    images = (64 + 128 * mode[:, None, None, None] + 12 * torch.randn(400, 1, 2, 2, generator=generator)).byte()
    facts = DataFacts("modes", (1, 2, 2), 1, -1.0, 1.0)
    train, held_out = Examples(images[:300], 0 * mode[:300]), Examples(images[300:], 0 * mode[300:])
    return SplitImages(facts=facts, train=train, held_out=held_out, batch_size=100, stream="0/labels"), mode


@pytest.mark.parametrize("by", ["prototypes", "kmeans"])
def test_two_clusters_are_the_two_modes(by: str) -> None:
    """With the features of a network that has learned nothing, at a share of data of 0.85."""
    data, mode = two_modes()
    torch.manual_seed(0)
    denoiser = Denoiser(ResidualMLP(shape=(1, 2, 2), num_classes=1, width=16, num_blocks=2, embedding_dim=8))
    features = Features.of(denoiser, "0/labels")
    steps: list[int] = []
    if by == "kmeans":
        assign = kmeans_of(data, features, 2, 300)
    else:
        assign = prototypes_of(data, features, 2, 20000, steps.append)
        assert steps == [100] * 200
    found = labels_of(data, features, assign)
    swapped = int(found[TRAINING][0] != mode[0])  # which cluster is which is chance
    assert torch.equal(found[TRAINING] ^ swapped, mode[:300])
    assert torch.equal(found[HELD_OUT] ^ swapped, mode[300:])
    again = labels_of(data, Features.of(denoiser, "0/labels"), assign)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_agreement_is_one_of_the_same_clusters_and_a_half_of_every_other_one() -> None:
    own = torch.arange(100) // 50
    assert agreement(1 - own, own) == pytest.approx((1.0, 1.0))
    assert agreement(torch.arange(100) % 2, own) == pytest.approx((0.5, 0.0), abs=1e-9)
