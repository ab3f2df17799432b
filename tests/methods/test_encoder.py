"""The reversed chain: from data towards noise."""

from typing import Any

import pytest
import torch
from small_methods import Perfect, batch, loss, module, small

from fewstep.methods import Encoder, GuidanceRange
from fewstep.methods.draws import Draws
from fewstep.networks import Denoiser, Frozen
from fewstep.training.module import DistillationModule


def rung(student: int, teacher: int, **own: Any) -> DistillationModule:
    kind = own.pop("kind", "v")
    method = small("encoder", {"ema_decay": 0.0}, ladder=[2 * student, student], few_steps=1)
    made = Denoiser(Perfect(own.pop("student_steps", student), "encoder", kind, **own), kind)
    return module(method, made, Frozen(Denoiser(Perfect(teacher, "encoder"))), stream="0/rung")


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8, 64])
def test_a_perfect_rung_has_no_error_and_one_of_another_length_has(num_steps: int) -> None:
    given = batch(256, torch.float64)
    assert loss(rung(num_steps, 2 * num_steps), given) < 1e-15
    assert loss(rung(num_steps, 2 * num_steps, student_steps=2 * num_steps + 1), given) > 1e-9


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_the_encoder_times_begin_at_the_data_and_end_at_the_noise(num_steps: int) -> None:
    method = small("encoder", ladder=[2 * num_steps, num_steps], few_steps=1)
    assert isinstance(method, Encoder)
    (phase,) = method.phases()
    t = method.draw_times(Draws.begin(torch.zeros(400, 2), "0/rung", 0), phase)
    mid, end = method.hops(t, phase)
    assert set(t.tolist()) == {i / num_steps for i in range(num_steps)}
    assert sorted(method.times(phase).tolist()) == pytest.approx(sorted(set(t.tolist())))
    torch.testing.assert_close(mid - t, torch.full_like(t, 0.5 / num_steps))
    torch.testing.assert_close(end - t, torch.full_like(t, 1 / num_steps))


def test_an_encoder_of_a_network_that_predicts_x_is_refused() -> None:
    with pytest.raises(ValueError, match=r", and this parent predicts x; use one that predicts v or eps$"):
        rung(2, 4, kind="x")


def test_its_w_lies_in_its_parents_range() -> None:
    method = small("encoder", w_min=1.0, w_max=2.0)
    assert method.guidance(GuidanceRange(0.0, 4.0)) == GuidanceRange(1.0, 2.0)
    with pytest.raises(ValueError, match=r"must lie in the parent's range \[0, 1.5\], got 1 and 2"):
        method.guidance(GuidanceRange(0.0, 1.5))
    with pytest.raises(ValueError, match="0 <= w_min <= w_max"):
        small("encoder", w_min=2.0, w_max=1.0)


@pytest.mark.parametrize("change", [{"sampler": "stochastic"}, {"variant": "two_student"}])
def test_it_is_deterministic_and_has_a_w_input(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"an encoder is deterministic and has a w input, got stage\.sampler="):
        small("encoder", **change)


def test_its_card_says_encode_and_it_continues_its_own_chain() -> None:
    method = small("encoder")
    assert {phase.sampling.direction for phase in method.phases()} == {"encode"}
    parent = method.parent()
    assert parent is not None
    assert parent.guidance == ("input",)
    assert parent.continues is not None
    assert (parent.continues.direction, len(parent.continues.times or ())) == ("encode", 8)
