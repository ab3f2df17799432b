"""Control tasks: data sets of actions given states, with a simulator that runs a policy in closed loop."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.data.batches import Data

Positions = Float[Tensor, "batch 2"]
Actions = Float[Tensor, "batch dim"]
Ways = Int[Tensor, "batch"]
Policy = Callable[[Float[Tensor, "batch 1 state"], int], Actions]
"""(states as conditions, number of the step) -> actions."""


@dataclass(frozen=True)
class Episodes:
    """What came of a policy from several starts.

    Attributes:
        paths: positions, which stay where an episode has ended. actions: those of the steps between them.
        running: whether a step was still taken. success: whether the task was done.
        way: in which of the right ways; -1 where it was not done.
    """

    paths: Float[Tensor, "positions batch 2"]
    actions: Float[Tensor, "steps batch dim"]
    running: Bool[Tensor, "steps batch"]
    success: Bool[Tensor, "batch"]
    way: Ways

    def of(self, chosen: Bool[Tensor, "batch"]) -> "Episodes":
        """Some of the episodes."""
        paths, actions, running = (each[:, chosen] for each in (self.paths, self.actions, self.running))
        return Episodes(paths, actions, running, self.success[chosen], self.way[chosen])


class ControlData(Data):
    """Actions given states, and the task that they are for.

    Attributes:
        num_ways: right ways of the task. num_rollouts: episodes of each model in an evaluation.
    """

    num_ways: ClassVar[int]
    num_rollouts: int

    @abstractmethod
    def rollouts(self, policy: Policy, seed: int) -> Episodes:
        """`num_rollouts` episodes of a policy, whose starts are a function of the seed."""

    @abstractmethod
    def expert(self, seed: int) -> Episodes:
        """As many of what made the data, from the same starts."""

    @property
    @abstractmethod
    def discs(self) -> list[tuple[float, float, float]]:
        """The obstacles, (x, y, radius) in [-1, 1]^2, for pictures."""
