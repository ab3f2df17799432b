"""Relational distillation: where each of its terms is least, and what the memory holds."""

from typing import Any

import pytest
import torch
from small_methods import LADDER, at_step, batch, module, small
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import normalize

from fewstep.methods.draws import Draws
from fewstep.methods.rdd import HEAD, Memory, batch_error, feature_error, memory_error
from fewstep.training.module import DistillationModule

SHARPER = 1 / 0.9


def maps(seed: int = 0, scale: float = 1.0) -> Tensor:
    """Random features of 6 examples at 4 places."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(6, 4, 8, generator=generator, dtype=torch.float64)


def memory_of(made: DistillationModule) -> Memory:
    memory = made.nets.trained[HEAD]
    assert isinstance(memory, Memory)
    return memory


def slope(error: Any, own: Tensor, goal: Tensor) -> Tensor:
    """The gradient of the mean error in the student's features."""
    own = own.clone().requires_grad_()
    error(own, goal).mean().backward()
    assert own.grad is not None
    return own.grad


# Where the terms are least --------------------------------------------------------------------------------------------


def test_relations_within_a_batch_are_no_error_of_the_same_features() -> None:
    goal = maps()
    assert float(batch_error(goal, goal).abs().max()) < 1e-12
    assert float(slope(batch_error, goal, goal).abs().max()) < 1e-12
    assert float(batch_error(3 * goal, goal).abs().max()) < 1e-12  # of directions, not lengths
    assert bool((batch_error(maps(1), goal) > 1e-3).all())


def test_relations_within_a_batch_are_those_of_a_double_loop() -> None:
    own, goal = maps(0), maps(1)
    expected = torch.zeros(6, dtype=torch.float64)
    for i in range(6):
        for place in range(4):
            rows = []
            for each in (goal, own):
                unit = normalize(each[:, place], dim=1)
                rows.append(torch.softmax(torch.stack([unit[i] @ unit[j] for j in range(6)]), dim=0))
            expected[i] += (rows[0] * (rows[0] / rows[1]).log()).sum() / 4
    torch.testing.assert_close(batch_error(own, goal), expected)


def test_the_least_error_over_channels_is_at_sharper_features() -> None:
    """At own = goal it is not zero, and its gradient leads on to own = goal / 0.9."""
    goal = maps()
    assert float(feature_error(SHARPER * goal, goal).abs().max()) < 1e-12
    assert float(slope(feature_error, SHARPER * goal, goal).abs().max()) < 1e-12
    assert bool((feature_error(goal, goal) > 1e-4).all())
    step = -slope(feature_error, goal, goal)
    centred = goal - goal.mean(-1, keepdim=True)
    assert bool(((step * centred).sum((1, 2)) > 0).all())


def test_the_memorys_error_is_zero_without_a_head_and_not_with_one() -> None:
    goal, memory = maps(), normalize(maps(1).flatten(0, 1), dim=1)
    assert float(memory_error(goal, goal, memory).abs().max()) < 1e-12
    made = module(small("rdd"))
    goal = torch.randn(5, 1, memory_of(made).queue.shape[1])
    found = memory_error(memory_of(made)(goal), goal, memory_of(made).contrasts(16))
    assert bool((found > 1e-3).all())


def test_the_head_is_two_layers_with_a_norm_and_a_rectifier() -> None:
    memory = memory_of(module(small("rdd")))
    width = memory.queue.shape[1]
    with torch.no_grad():
        for layer in memory.head:
            if isinstance(layer, nn.Linear):
                nn.init.eye_(layer.weight)
                layer.bias.zero_()
    own = torch.randn(7, 1, width)
    torch.testing.assert_close(memory(own), functional.layer_norm(own, (width,)).relu())


def test_the_memorys_error_is_of_directions() -> None:
    own, goal, memory = maps(), maps(1), normalize(maps(2).flatten(0, 1), dim=1)
    lengths = torch.linspace(0.5, 3, 24, dtype=torch.float64).view(6, 4, 1)
    torch.testing.assert_close(memory_error(lengths * own, goal / lengths, memory), memory_error(own, goal, memory))


def losses(made: DistillationModule, *, same: bool = False) -> dict[str, float]:
    """The loss of each role in a step, or that of a student that predicts its target."""
    data = batch()
    draws = Draws.begin(data.x, made.stream, 0)
    if not same:
        found = made.method.losses(data, made.nets, draws, step=0, phase=made.phase)
    else:
        with torch.no_grad():
            goal = made.student(data.x, torch.zeros(32), data.label, torch.ones(32))
        given = {"t": torch.ones(32), "w": torch.ones(32), "label": data.label, "nets": made.nets}
        found = made.method.compare(goal, goal, **given, draws=draws, step=0)  # pyright: ignore
    return {role: float(each.error.detach().mean()) for role, each in found.items()}


def test_a_student_that_predicts_its_target_has_what_softening_leaves() -> None:
    made = module(small("rdd"))
    memory, seen = memory_of(made), []
    features = memory.features
    memory.features = lambda *given: (seen.append(features(*given)), seen[-1])[1]  # pyright: ignore
    found = losses(made, same=True)
    own, goal = seen
    assert torch.equal(own, goal)  # of one x with one noise
    assert found["student"] == pytest.approx(float(feature_error(goal, goal).mean()), rel=1e-5)
    assert found[HEAD] > 0


def test_without_features_it_is_progressive_distillation() -> None:
    plain = losses(module(small("progressive")))
    assert losses(module(small("rdd", features=0.0, pixels=1.0))) == pytest.approx(plain)
    with_both, without = (losses(module(small("rdd", pixels=pixels))) for pixels in (1.0, 0.0))
    assert with_both["student"] - without["student"] == pytest.approx(plain["student"], rel=1e-4)


# The memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_the_queue_holds_exactly_the_newest_entries(steps: int) -> None:
    memory, first = memory_of(module(small("rdd", queue=10, contrasts=4, enqueued=4))), torch.empty(0)
    first = memory.queue.clone()
    for step in range(steps):  # the places of a step are all alike
        memory.enqueue(torch.eye(16)[step].expand(6, 3, 16), 4, step)
    newest = [step for step in range(steps) for _ in range(4)][-10:]
    kept = [row.argmax().item() for row in memory.queue if row.max() == 1]
    assert sorted(kept) == newest
    old = [row for row in memory.queue if row.max() < 1]
    assert all(any(torch.equal(row, each) for each in first) for row in old)
    assert len(old) == max(0, 10 - 4 * steps)


def test_contrasts_are_evenly_spaced() -> None:
    memory = memory_of(module(small("rdd")))
    memory.queue[:, 0] = torch.arange(64.0)
    assert memory.contrasts(16)[:, 0].tolist() == [*range(0, 64, 4)]
    assert memory.contrasts(48)[:, 0].tolist() == [*range(48)]


def test_a_step_puts_its_teachers_features_into_the_queue_and_a_trial_does_not() -> None:
    made = module(small("rdd"))
    queue = memory_of(made).queue
    before = queue.clone()
    assert made.evaluations_per_image(batch()) == 2 + 3 + 1 + 3  # target, student, features of both
    assert torch.equal(queue, before)
    for step in range(3):
        with at_step(step):
            made.training_step(batch(), step)
    changed = (queue != before).any(1)
    assert torch.equal(changed, torch.arange(64) < 24)
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(64))


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": 0.0}, "must not both be 0"),
        ({"features": -1.0}, "stage.features must be a number of at least 0"),
        ({"memory": 0.0}, "stage.memory must be a number above 0"),
        ({"queue": 10, "contrasts": 16}, "at most stage.queue"),
        ({"enqueued": 0}, "stage.enqueued must be a whole number of at least 1"),
        ({"ladder": [8, 3]}, "must halve"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small("rdd", **LADDER | changes)


def test_features_need_a_trained_teacher_and_the_head_a_learning_rate(make_mixture: Any) -> None:
    made = module(small("rdd", features=0.0, pixels=1.0))
    with pytest.raises(ValueError, match="this one is exact or clipped"):
        module(small("rdd"), made.student, make_mixture().denoise)
    with pytest.raises(ValueError, match=r"roles\.head\.learning_rate must be given"):
        small("rdd", {"roles": {}})
