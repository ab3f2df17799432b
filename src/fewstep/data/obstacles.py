"""A point that passes three obstacles on either side: the simulator, its scripted expert, and demonstrations.

The point starts at the bottom of [-1, 1]^2, moves by SPEED times the action in each step, and succeeds where it reaches
the top without touching an obstacle or a side wall. Obstacles are discs on the middle line; the side on which each is
passed is the way, one of NUM_WAYS that are equally right. A state is the position, the action before (at first 0), by
which a policy keeps to the way that it has chosen, and 1, for all zeros are none.
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fewstep.data.batch import Batch
from fewstep.data.control import Actions, ControlData, Episodes, Policy, Positions, Ways
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Condition
from fewstep.system.seeds import seed_for

HEIGHTS = (-0.6, 0.0, 0.6)  # of the obstacles' centres, at x = 0
RADIUS = 0.1
SIDE = 0.35  # distance from the middle at which the expert passes
SPEED = 0.05  # way of an action of length 1
MOST_STEPS = 100  # an expert needs 42 to 62
NUM_WAYS = 2 ** len(HEIGHTS)
STATE = 5  # numbers of a state


def states_of(position: Positions, before: Actions) -> Float[Tensor, "batch 1 5"]:
    """The conditions of a policy, of positions and of the actions before."""
    return torch.cat([position, before, torch.ones_like(position[:, :1])], dim=1)[:, None]


def starts(count: int, seed: int) -> Positions:
    """Positions at y = -1 with x uniform in [-0.1, 0.1]."""
    generator = torch.Generator().manual_seed(seed_for("obstacles", seed, "starts"))
    x = 0.2 * torch.rand(count, generator=generator) - 0.1
    return torch.stack([x, -torch.ones(count)], dim=1)


def touches(start: Positions, end: Positions) -> Bool[Tensor, "batch"]:
    """Whether the straight way from start to end meets an obstacle or a side wall."""
    centres = torch.tensor([[0.0, y] for y in HEIGHTS]).to(start)
    move, off = end - start, centres - start[:, None]
    along = (off * move[:, None]).sum(-1) / move.square().sum(-1, keepdim=True).clamp(min=1e-12)
    nearest = off - along.clamp(0, 1)[..., None] * move[:, None]
    return (nearest.square().sum(-1) < RADIUS**2).any(1) | (end[:, 0].abs() > 1)


def simulate(policy: Policy, start: Positions) -> Episodes:
    """Run a policy in closed loop, from all starts at once, for at most MOST_STEPS.

    A way is the sides of the obstacles as binary digits, the lowest first, 1 for the right.
    """
    position, paths, actions, steps = start, [start], [], []
    running = torch.ones(len(start), dtype=torch.bool)
    success, way = torch.zeros_like(running), torch.zeros(len(start), dtype=torch.long)
    for step in range(MOST_STEPS):
        action = policy(states_of(position, actions[-1] if actions else torch.zeros_like(position)), step)
        moved = position + SPEED * action
        collides = touches(position, moved)
        for number, height in enumerate(HEIGHTS):
            # The way is of the last crossing: a point may turn back below an obstacle and pass it again.
            crosses = running & (position[:, 1] < height) & (moved[:, 1] >= height)
            right = (moved[:, 0] > 0).long() << number
            way = torch.where(crosses, (way & ~(1 << number)) | right, way)
        steps.append(running)
        actions.append(action)
        position = torch.where(running[:, None], moved, position)
        paths.append(position)
        success = success | (running & ~collides & (moved[:, 1] >= 1))
        running = running & ~collides & (moved[:, 1] < 1)
        if not running.any():
            break
    way = torch.where(success, way, -1)
    return Episodes(torch.stack(paths), torch.stack(actions), torch.stack(steps), success, way)


def scripted_expert(way: Ways, noise: float, generator: torch.Generator) -> Policy:
    """Head for the side of the next obstacle on the way, after the last straight up, with normal noise on the action.

    Args:
        noise: standard deviation of each coordinate of an action.
    """
    sides = torch.stack([((way >> number) & 1) * 2.0 - 1 for number in range(len(HEIGHTS))], dim=1) * SIDE
    heights = torch.tensor(HEIGHTS)

    def act(state: Float[Tensor, "batch 1 5"], step: int) -> Actions:
        position = state[:, 0, :2]
        passed = (position[:, 1:] >= heights).sum(1)
        following = passed.clamp(max=len(HEIGHTS) - 1)
        goal = torch.stack([sides.gather(1, following[:, None])[:, 0], heights[following]], dim=1)
        over = passed == len(HEIGHTS)
        goal = torch.where(over[:, None], position + torch.tensor([0.0, 1.0]), goal)
        direction = functional.normalize(goal - position, dim=1)
        return direction + noise * torch.randn(len(position), 2, generator=generator)

    return act


@lru_cache(maxsize=4)
def demonstrations(count: int, noise: float, seed: int) -> Episodes:
    """Episodes of the scripted expert, each on a way of its own, all equally likely."""
    generator = torch.Generator().manual_seed(seed_for("obstacles", seed, "expert"))
    way = torch.randint(NUM_WAYS, (count,), generator=generator)
    return simulate(scripted_expert(way, noise, generator), starts(count, seed))


class ObstaclesData(ControlData):
    """States and actions of a scripted expert's demonstrations; those of every tenth one are held out.

    Args:
        num_demonstrations: episodes. noise: of the expert's actions. seed: of the demonstrations.
        num_reference: the most held-out actions that figures compare with.
        num_rollouts: episodes in which an evaluation runs each model in closed loop, see `evaluation.rollouts`.

    Raises:
        ValueError: too few demonstrations or rollouts, or noise that the expert does not master.
    """

    num_ways = NUM_WAYS
    facts = DataFacts(name="obstacles", shape=(2,), num_classes=0, low=-1.5, high=1.5, state=STATE)

    def __init__(
        self,
        *,
        num_demonstrations: int,
        noise: float,
        seed: int,
        num_reference: int,
        num_rollouts: int,
        batch_size: int,
        stream: str,
    ) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        if num_demonstrations < 20 or min(num_reference, num_rollouts) < 2 or not 0 < noise <= 0.2:
            raise ValueError(
                "dataset needs num_demonstrations of at least 20, num_reference and num_rollouts of at least 2 and "
                f"noise in (0, 0.2], got {num_demonstrations}, {num_reference}, {num_rollouts} and {noise}"
            )
        self.num_rollouts, self.noise = num_rollouts, noise
        episodes = demonstrations(num_demonstrations, noise, seed)
        held_out = torch.arange(num_demonstrations) % 10 == 0
        self._train = pairs_of(episodes.of(~held_out))
        x, label = pairs_of(episodes.of(held_out))
        index = torch.arange(min(num_reference, len(x))) * len(x) // min(num_reference, len(x))
        self._reference = Batch(x[index], label[index])

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed_for(self.stream, "pairs", step))
        index = torch.randint(len(self._train.x), (self.batch_size,), generator=generator)
        return Batch(self._train.x[index], self._train.label[index])

    def reference(self) -> Batch:
        return Batch(self._reference.x, torch.zeros(len(self._reference.x), dtype=torch.long))  # states are no classes

    def conditions(self, count: int) -> Condition:
        """Held-out states in turn."""
        return self._reference.label[torch.arange(count) % len(self._reference.label)]

    def rollouts(self, policy: Policy, seed: int) -> Episodes:
        return simulate(policy, starts(self.num_rollouts, seed))

    def expert(self, seed: int) -> Episodes:
        return demonstrations(self.num_rollouts, self.noise, seed)

    @property
    def discs(self) -> list[tuple[float, float, float]]:
        return [(0.0, height, RADIUS) for height in HEIGHTS]


def pairs_of(episodes: Episodes) -> Batch:
    """The actions of these episodes, and the state before each."""
    where, actions = episodes.running, episodes.actions
    before = torch.cat([torch.zeros_like(actions[:1]), actions[:-1]])
    return Batch(actions[where].clamp(-1.5, 1.5), states_of(episodes.paths[:-1][where], before[where]))
