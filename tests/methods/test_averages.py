"""Averages of the student's weights, and why Lightning's WeightAveraging is none of them."""

import pytest
import torch
from small_methods import network, weights_of
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fewstep.networks.ema import Average, DecayRule, bias_corrected, constant, ramped


def trajectory(count: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    start = [*network().parameters()]
    return [
        [weight.detach() + torch.randn(weight.shape, generator=generator) for weight in start] for _ in range(count)
    ]


@pytest.mark.parametrize("rule", [constant(0.0), constant(0.9), ramped(0.9), ramped(0.1), bias_corrected(0.5)])
def test_an_update_is_the_formula(rule: DecayRule) -> None:
    average = Average(network(), rule)
    expected = [weight.double() for weight in average.network.parameters()]
    for updates, weights in enumerate(trajectory(6)):
        average.update(weights, updates)
        decay = rule(updates)
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    for weight, wanted in zip(average.network.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_ramped_decay_rises_to_its_limit() -> None:
    rule = ramped(0.5)
    assert [rule(k) for k in range(12)] == pytest.approx([min(0.5, (1 + k) / (10 + k)) for k in range(12)])
    assert rule(0) == 0.1
    assert rule(10_000) == 0.5


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.99])
def test_the_corrected_average_is_that_of_the_weights_seen_and_of_nothing_else(decay: float) -> None:
    """sum_j decay^(k-j) w_j / sum_j decay^(k-j) after the weights w_0, ..., w_k; what was there before counts for 0."""
    rule = bias_corrected(decay)
    assert rule(0) == 0
    average, seen = Average(network(), rule), trajectory(8)
    for updates, weights in enumerate(seen):
        average.update(weights, updates)
        if not updates:
            assert all(torch.equal(a, b) for a, b in zip(average.network.parameters(), weights, strict=True))
    share = torch.tensor([decay ** (7 - j) for j in range(8)], dtype=torch.float64)
    for number, weight in enumerate(average.network.parameters()):
        stack = torch.stack([weights[number].double() for weights in seen])
        expected = torch.tensordot(share / share.sum(), stack, dims=1)
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert rule(10_000) == pytest.approx(decay)


def test_an_average_starts_as_a_frozen_copy_and_calls_without_gradient() -> None:
    student = network()
    average = Average(student, constant(0.5))
    assert all(torch.equal(value, dict(weights_of(student))[name]) for name, value in weights_of(average.network))
    assert not any(weight.requires_grad for weight in average.parameters())
    assert all(weight.requires_grad for weight in student.parameters())
    z, log_snr = torch.randn(4, 2, requires_grad=True), torch.zeros(4)
    made = average(z, log_snr, torch.zeros(4, dtype=torch.long))
    assert not made.v.requires_grad
    assert torch.equal(made.v, student(z, log_snr, torch.zeros(4, dtype=torch.long)).v)


class Watched(Tensor):
    """A tensor that counts how often Python needs its truth, which on a GPU waits for the device."""

    count = 0

    def __bool__(self) -> bool:
        Watched.count += 1
        return super().__bool__()


def test_torchs_averaged_model_reads_its_counter_every_update_and_averages_a_teacher() -> None:
    """What Lightning's WeightAveraging is made of. If this fails, torch has changed: reconsider our own average."""
    both = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": nn.Linear(2, 2)})
    averaged = AveragedModel(both, avg_fn=lambda average, current, _: torch.lerp(average, current, 0.1))
    assert {key.split(".")[1] for key in averaged.state_dict() if "." in key} == {"student", "teacher"}
    averaged.n_averaged = averaged.n_averaged.as_subclass(Watched)
    Watched.count = 0
    for _ in range(3):
        averaged.update_parameters(both)
    assert Watched.count >= 3
