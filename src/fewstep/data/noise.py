"""Batches of noise and conditions, for methods that train without data."""

import torch

from fewstep.data.batch import Batch
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.system.seeds import seed_for


class NoiseData(Data):
    """Batches of standard normal noise and uniformly drawn classes, of the shapes in a model's card.

    Args:
        facts: of the model's samples.

    Raises:
        ValueError: the conditions are prompts or states, which only a data set has.
    """

    def __init__(self, facts: DataFacts, *, batch_size: int, stream: str) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        require_classes(facts)
        self.facts = facts

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed_for(self.stream, "noise", step))
        label = torch.randint(self.facts.num_classes, (self.batch_size,), generator=generator)
        return Batch(torch.randn(self.batch_size, *self.facts.shape, generator=generator), label)

    def reference(self) -> Batch:
        raise ValueError(f"there are no examples of {self.facts.name}: this run trains without data")


def require_classes(facts: DataFacts) -> None:
    """Refuse conditions that cannot be drawn.

    Raises:
        ValueError: they are prompts or states.
    """
    if facts.embedding is not None:
        kind = "prompts" if facts.text else "states"
        raise ValueError(
            f"training without data draws classes, and {facts.name} has {kind}, which nobody can draw; use a "
            "method that trains on data, like stage=lcm"
        )
