"""The obstacles: what touches them, that the expert always succeeds, and what demonstrations hold."""

import pytest
import torch
from torch import Tensor

from fewstep.data.obstacles import (
    NUM_WAYS,
    RADIUS,
    SIDE,
    SPEED,
    STATE,
    ObstaclesData,
    demonstrations,
    scripted_expert,
    simulate,
    starts,
    touches,
)

SETTINGS = {"num_demonstrations": 200, "noise": 0.1, "seed": 0, "num_reference": 300, "num_rollouts": 50}


def data(batch_size: int = 8, **changes: float) -> ObstaclesData:
    return ObstaclesData(**SETTINGS | changes, batch_size=batch_size, stream="s")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_expert_always_succeeds_on_the_way_that_it_is_given(seed: int) -> None:
    """With the most noise that a data set takes."""
    way = torch.arange(400) % NUM_WAYS
    episodes = simulate(scripted_expert(way, 0.2, torch.Generator().manual_seed(seed)), starts(400, seed))
    assert bool(episodes.success.all())
    assert torch.equal(episodes.way, way)
    assert float(episodes.paths[..., 0].abs().max()) < 2 * SIDE


def test_a_way_through_an_obstacle_or_a_wall_touches() -> None:
    start = torch.tensor([[-0.3, 0.0], [-0.3, 0.11], [0.9, 0.3], [0.0, -0.2], [0.0, -0.2]])
    end = torch.tensor([[0.3, 0.0], [0.3, 0.11], [1.01, 0.3], [0.0, -0.11], [0.0, -0.09]])
    assert touches(start, end).tolist() == [True, False, True, False, True]
    assert RADIUS == 0.1


def test_straight_ahead_fails_at_the_first_obstacle_and_standing_still_never_ends() -> None:
    def ahead(state: Tensor, step: int) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(state), 2)

    begin = torch.tensor([[0.0, -1.0], [0.5, -1.0]])
    episodes = simulate(ahead, begin)
    assert episodes.success.tolist() == [False, True]
    assert episodes.way.tolist() == [-1, NUM_WAYS - 1]
    steps = int(episodes.running[:, 0].sum())  # to the first obstacle's edge at y = -0.7, and then not one more
    assert steps in (6, 7)
    assert torch.equal(episodes.paths[steps, 0], episodes.paths[-1, 0])
    still = simulate(lambda state, step: torch.zeros(len(state), 2), begin)
    assert not still.success.any()
    assert len(still.actions) == 100


def test_demonstrations_take_all_ways_equally_and_are_those_of_their_seed() -> None:
    episodes = demonstrations(2000, 0.1, 3)
    counts = episodes.way.bincount(minlength=NUM_WAYS)
    assert float(((counts - 250).square() / 250).sum()) < 24.3  # chi squared of 7 degrees of freedom, 0.1 %
    again = demonstrations.__wrapped__(2000, 0.1, 3)
    assert torch.equal(again.actions, episodes.actions)
    assert not torch.equal(demonstrations(2000, 0.1, 4).way, episodes.way)


def test_examples_are_the_state_and_the_action_that_follows_it() -> None:
    """Held-out episodes are not trained on, and batches are functions of the step."""
    given = data()
    x, label = given.batch(3)
    assert (x.shape, label.shape) == ((8, 2), (8, 1, STATE))
    assert torch.equal(x, given.batch(3).x)
    assert not torch.equal(x, given.batch(4).x)
    episodes = demonstrations(200, 0.1, 0)
    moves = episodes.paths[1:] - episodes.paths[:-1]
    for action, state in zip(x, label[:, 0], strict=True):
        step, episode = (episodes.paths[:-1] == state[:2]).all(-1).nonzero()[0].tolist()
        assert episode % 10
        torch.testing.assert_close(moves[step, episode], SPEED * action, rtol=0, atol=1e-6)
        before = episodes.actions[step - 1, episode] if step else torch.zeros(2)
        assert state[2:].tolist() == [*before.tolist(), 1]
    held_out = given.conditions(300)[:, 0, :2]
    assert all(int((episodes.paths == each).all(-1).nonzero()[0, 1]) % 10 == 0 for each in held_out[::50])


@pytest.mark.parametrize(
    ("changes", "words"), [({"noise": 0.5}, "noise in"), ({"num_demonstrations": 5}, "5"), ({"num_rollouts": 0}, "0")]
)
def test_what_cannot_be_is_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        data(**changes)
