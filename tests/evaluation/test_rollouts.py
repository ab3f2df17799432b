"""Policies in closed loop: rows of known episodes, and models as policies."""

from dataclasses import replace
from math import log

import pytest
import torch

from fewstep.data.obstacles import NUM_WAYS, demonstrations
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.evaluation.rollouts import ModelPolicy, entropy_of, policy_row, seconds_for_one
from fewstep.networks import Denoiser, MixtureOfExperts, ResidualMLP

STATES = torch.tensor([[[0.1, -1.0, 1.0]]]).expand(2000, 1, 3)


def test_the_entropy_of_ways_alike_is_the_logarithm_of_their_number() -> None:
    found = entropy_of(torch.arange(800) % NUM_WAYS, NUM_WAYS)
    assert found is not None
    assert found[0] == pytest.approx(log(NUM_WAYS))
    assert entropy_of(torch.full((50,), 3), NUM_WAYS) == (0.0, [0.0, 0.0])
    assert entropy_of(torch.tensor([-1, -1, 2]), NUM_WAYS) is None


def test_the_interval_of_the_entropy_is_that_of_drawing_again() -> None:
    """Its half width is 1.96 deviations of the entropies of many sets of as many episodes."""
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1])
    generator = torch.Generator().manual_seed(0)
    sets = shares.multinomial(400 * 300, replacement=True, generator=generator).view(300, 400)
    found = [entropy_of(each, 4) for each in sets]
    entropies = torch.tensor([entropy for entropy, _ in filter(None, found)])
    halves = torch.tensor([(high - low) / 2 for _, (low, high) in filter(None, found)])
    assert float(halves.mean()) == pytest.approx(1.96 * float(entropies.std()), rel=0.15)


def test_the_row_of_the_expert() -> None:
    episodes = demonstrations(500, 0.1, 7)
    row = policy_row(episodes, NUM_WAYS, model="expert", seed=7)
    assert row.success == 1
    assert row.intervals["success"][0] > 0.99
    assert row.entropy == pytest.approx(log(NUM_WAYS), abs=0.02)
    assert row.most_entropy == log(NUM_WAYS)
    nobody = replace(episodes, success=~episodes.success, way=torch.full_like(episodes.way, -1))
    failed = policy_row(nobody, NUM_WAYS, model="m", seed=0)
    assert (failed.success, failed.entropy, set(failed.intervals)) == (0, None, {"success"})


def policy(network: torch.nn.Module, sampling: Sampling, steps: int, w: float) -> ModelPolicy:
    return ModelPolicy(Denoiser(network), sampling, CosineSchedule(), -1.5, 1.5, steps, w, seed=0)


def test_actions_of_a_mixture_are_draws_of_it() -> None:
    network = MixtureOfExperts(shape=(2,), num_classes=0, features=3, experts=4, width=8, num_blocks=1)
    torch.manual_seed(0)
    network.spread(0.5)
    made = policy(network, Sampling.uniform(1, sampler="policy", guidance="none"), 1, 0.0)
    actions = made(STATES, 0)
    means = network(STATES[:1, 0, :2], STATES[:1, 0, 0], STATES[:1], None)[0, :, 1:3].detach()
    torch.testing.assert_close(actions.mean(0), means.mean(0), rtol=0, atol=0.07)  # 4 deviations of the mean
    assert made.evaluations == 1
    assert torch.equal(actions, made(STATES, 0))
    assert not torch.equal(actions, made(STATES, 1))
    assert seconds_for_one(made, STATES) > 0


def test_a_teacher_is_evaluated_once_a_step_without_guidance_and_twice_with() -> None:
    network = ResidualMLP(shape=(2,), num_classes=0, features=3, width=8, num_blocks=1, embedding_dim=4)
    for steps, w, expected in ((4, 0.0, 4), (4, 1.0, 8)):
        made = policy(network, Sampling(), steps, w)
        before = made.denoiser.evaluated
        assert made(STATES[:1], 0).shape == (1, 2)
        assert made.evaluations == expected == made.denoiser.evaluated - before
