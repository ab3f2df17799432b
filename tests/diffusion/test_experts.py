"""Mixtures of experts: densities, the exact policy, and where the objectives of VDD lead."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from fewstep.diffusion.experts import ExpertPolicy, Experts, expert_error, gate_error
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.methods.vdd import teacher_score

SCHEDULE = CosineSchedule()
STD, SIGMA = 0.25, 0.1
BLURRED = (STD**2 + SIGMA**2) ** 0.5


def some_experts(batch: int = 3, experts: int = 4, dim: int = 2) -> Experts:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(batch, experts, dim, dim, generator=generator, dtype=torch.float64) / 4
    factors = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).abs() + 0.1)
    means = torch.randn(batch, experts, dim, generator=generator, dtype=torch.float64)
    logits = torch.randn(batch, experts, generator=generator, dtype=torch.float64)
    return Experts(means, factors, logits.log_softmax(1))


def library(experts: Experts) -> MixtureSameFamily:
    gaussians = MultivariateNormal(experts.means, scale_tril=experts.factors)
    return MixtureSameFamily(Categorical(logits=experts.log_gates), gaussians)


def two_modes(std: float = STD) -> GaussianMixture:
    """At -1 and 1, with weights 0.3 and 0.7."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return GaussianMixture(means, torch.full_like(means, std), weights, torch.zeros(2, dtype=torch.long))


def distilled(teacher: GaussianMixture, starts: list[float], steps: int = 200) -> tuple[Tensor, Tensor]:
    """Means and deviations of experts of fixed equal gates that begin at `starts` with a deviation of 0.5."""
    means = torch.tensor(starts, dtype=torch.float64)[None, :, None].clone().requires_grad_()
    raw = torch.full((1, len(starts), 1, 1), 0.5, dtype=torch.float64).log().requires_grad_()
    gates = torch.full((1, len(starts)), 1 / len(starts), dtype=torch.float64).log()
    optimizer, generator = torch.optim.Adam([means, raw], lr=4e-2), torch.Generator().manual_seed(1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    x, label, w = torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.float64)
    log_snr = torch.tensor([SIGMA], dtype=torch.float64).log() * -2
    for _ in range(steps):
        experts = Experts(means, raw.exp(), gates)
        samples = experts.of_each(torch.randn(256, len(starts), 1, 1, generator=generator, dtype=torch.float64))
        score = teacher_score(teacher.denoise, samples.detach(), x, log_snr, label, w)
        optimizer.zero_grad()
        expert_error(experts, samples, score).sum().backward()
        optimizer.step()
        scheduler.step()
    return means.detach().flatten(), raw.detach().exp().flatten()


# The mixture ----------------------------------------------------------------------------------------------------------


def test_densities_entropies_and_samples_are_the_librarys() -> None:
    experts = some_experts()
    x = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(experts.log_density(x), library(experts).log_prob(x))
    torch.testing.assert_close(experts.entropies(), library(experts).component_distribution.entropy())
    count = 100_000
    parts = (experts.means, experts.factors, experts.log_gates)
    many = Experts(*(each[:1].expand(count, *each.shape[1:]) for each in parts))
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    drawn = many.draw(uniform, torch.randn(count, 2, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(drawn.mean(0), library(experts).mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.var(0), library(experts).variance[0], rtol=0.03, atol=0)


def test_a_sample_is_of_the_expert_in_whose_part_the_number_falls() -> None:
    experts = some_experts(1, 3)
    gates = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 1e-9], dtype=torch.float64)
    chosen, count = [0, 0, 1, 1, 2, 2], len(uniform)
    wide = Experts(*(each.expand(count, *each.shape[1:]) for each in (experts.means, experts.factors, gates.log())))
    eps = torch.randn(count, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    expected = [experts.means[0, k] + experts.factors[0, k] @ e for k, e in zip(chosen, eps, strict=True)]
    torch.testing.assert_close(wide.draw(uniform, eps), torch.stack(expected))
    short = Experts(experts.means, experts.factors, (gates * (1 - 1e-6)).log())  # as rounding may leave them
    found = short.draw(torch.tensor([1 - 1e-9], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(found[0], experts.means[0, 2])


def test_a_detached_mixture_and_its_policy_are_the_same_without_gradients() -> None:
    experts = some_experts()
    moving = Experts(*(each.clone().requires_grad_() for each in (experts.means, experts.factors, experts.log_gates)))
    z, log_snr = torch.randn(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    policy = ExpertPolicy(z, log_snr, moving)
    found = policy.detach().at(z, log_snr).x
    assert policy.at(z, log_snr).x.requires_grad
    assert not found.requires_grad
    assert torch.equal(found, policy.at(z, log_snr).x)


def test_the_policy_is_the_exact_denoiser_of_the_mixture() -> None:
    """Of diagonal factors that of `GaussianMixture`; turned data have turned predictions."""
    mixture = GaussianMixture(
        torch.tensor([[0.5, -0.2], [-0.7, 0.1]], dtype=torch.float64),
        torch.tensor([[0.1, 0.4], [0.3, 0.2]], dtype=torch.float64),
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.zeros(2, dtype=torch.long),
    )
    count = 6
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    log_snr = SCHEDULE.log_snr(torch.linspace(0.05, 1.0, count, dtype=torch.float64))
    expected = mixture.denoise(z, log_snr, torch.zeros(count, dtype=torch.long)).x
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).Q
    for rotation in (torch.eye(2, dtype=torch.float64), turn):
        covariances = rotation @ torch.diag_embed(mixture.stds.square()) @ rotation.T
        given = (mixture.means @ rotation.T, torch.linalg.cholesky(covariances), mixture.weights.log())
        experts = Experts(*(each.expand(count, *each.shape) for each in given))
        found = ExpertPolicy(z, log_snr, experts).at(z @ rotation.T, log_snr).x
        torch.testing.assert_close(found @ rotation, expected)


def test_the_policys_way_from_noise_ends_in_the_mixture() -> None:
    """In one dimension the flow keeps the order: the quantiles of noise go to those of the mixture."""
    uniform = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    means, factors = torch.tensor([[-1.0], [0.5]]).double(), torch.tensor([[[0.1]], [[0.3]]]).double()
    gates = torch.tensor([0.4, 0.6]).double().log()
    experts = Experts(*(each.expand(49, *each.shape) for each in (means, factors, gates)))
    ends = SCHEDULE.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64))
    z = torch.special.ndtri(uniform)[:, None]
    x = ExpertPolicy(z, ends[0].expand(49), experts).follow(ends[1].expand(49))
    torch.testing.assert_close(below(experts, x), uniform, rtol=0, atol=0.01)


def below(experts: Experts, x: Tensor) -> Tensor:
    """The distribution function in one dimension."""
    share = torch.special.ndtr((x - experts.means[..., 0]) / experts.factors[..., 0, 0])
    return (experts.log_gates.exp() * share).sum(1)


# Where the objectives lead --------------------------------------------------------------------------------------------


def test_the_score_is_that_of_the_blurred_data() -> None:
    teacher, blurred = two_modes(), two_modes(BLURRED)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
    density = (blurred.weights.log() - 0.5 * ((x[:, None] - blurred.means[:, 0]) / BLURRED) ** 2).logsumexp(1)
    expected = torch.autograd.grad(density.sum(), x)[0]
    log_snr = torch.full((1,), SIGMA, dtype=torch.float64).log() * -2
    given = (torch.zeros(1, 1), log_snr, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.float64))
    found = teacher_score(teacher.denoise, x.detach()[:, None, None, None], *given)
    torch.testing.assert_close(found.flatten(), expected)


def test_the_experts_gradient_is_that_of_the_reverse_divergence() -> None:
    """That of KL(q || p) by quadrature, while gates are held."""
    start = some_experts(1, 3, 1)
    means, factors = start.means.clone().requires_grad_(), start.factors.clone().requires_grad_()
    experts = Experts(means, factors, start.log_gates)
    target = Experts(torch.tensor([[[0.3]]]).double(), torch.tensor([[[[0.7]]]]).double(), torch.zeros(1, 1).double())
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None, None]
    log_q = experts.log_density(grid)
    divergence = (log_q.exp() * (log_q - target.log_density(grid))).sum() * 16 / 4000
    expected = torch.autograd.grad(divergence, (means, factors))
    eps = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    samples = experts.of_each(eps[:, None, None, None].expand(-1, 3, -1, -1))
    score = -(samples.detach() - 0.3) / 0.49
    found = torch.autograd.grad(expert_error(experts, samples, score).sum(), (means, factors))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_two_experts_that_start_apart_reach_both_modes_blurred_by_sigma() -> None:
    means, stds = distilled(two_modes(), [-0.5, 0.5])
    torch.testing.assert_close(means, torch.tensor([-1.0, 1.0]).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(stds, torch.full((2,), BLURRED).double(), rtol=0, atol=0.01)  # .269, and not .25


def test_two_experts_that_start_on_one_side_stay_there() -> None:
    means, _ = distilled(two_modes(), [0.8, 1.2])
    assert bool((means > 0.8).all())


def test_one_expert_has_the_mean_of_gaussian_data_and_their_blurred_variance() -> None:
    one = GaussianMixture(
        torch.tensor([[0.4]]).double(), torch.tensor([[STD]]).double(), torch.ones(1).double(), torch.zeros(1).long()
    )
    means, stds = distilled(one, [-0.5])
    assert float(means) == pytest.approx(0.4, abs=0.01)
    assert float(stds) == pytest.approx(BLURRED, abs=0.005)


def test_gates_learn_the_shares_of_the_modes() -> None:
    """And no gradient of theirs reaches the experts."""
    means = torch.tensor([[[-1.0], [1.0]]]).double().requires_grad_()
    factors = torch.full((1, 2, 1, 1), 0.2).double()
    logits = torch.zeros(1, 2).double().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    label = torch.zeros(4000, dtype=torch.long)
    data = two_modes().draw(label, torch.Generator().manual_seed(6))
    share = float((data > 0).double().mean())
    for _ in range(150):
        optimizer.zero_grad()
        experts = Experts(means, factors, logits.log_softmax(1))
        gate_error(experts, data[:, None]).mean().backward()
        optimizer.step()
    assert means.grad is None or not means.grad.any()
    assert float(logits.softmax(1)[0, 1]) == pytest.approx(share, abs=0.01)
