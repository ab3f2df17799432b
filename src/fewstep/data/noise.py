"""Batches of noise and conditions, for methods that train without data."""

import torch

from fewstep.data.batch import Batch
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.system.seeds import seed_for


class WithoutData(Data):
    """Batches of what a model's card says alone.

    Args:
        facts: of the model's samples.
    """

    def __init__(self, facts: DataFacts, *, batch_size: int, stream: str) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        self.facts = facts

    def reference(self) -> Batch:
        raise ValueError(f"there are no examples of {self.facts.name}: this run trains without data")


class NoiseData(WithoutData):
    """Batches of standard normal noise and uniformly drawn classes, of the shapes in a model's card.

    Raises:
        ValueError: the conditions are prompts or degraded images, which only a data set has.
    """

    def __init__(self, facts: DataFacts, *, batch_size: int, stream: str) -> None:
        super().__init__(facts, batch_size=batch_size, stream=stream)
        require_classes(facts)

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed_for(self.stream, "noise", step))
        label = torch.randint(self.facts.num_classes, (self.batch_size,), generator=generator)
        return Batch(torch.randn(self.batch_size, *self.facts.shape, generator=generator), label)


def require_classes(facts: DataFacts) -> None:
    """Refuse conditions that cannot be drawn.

    Raises:
        ValueError: they are no classes.
    """
    if not facts.num_classes:
        kind, method = "states" if facts.text is None else "prompts", "lcm"
        if facts.degraded is not None:
            kind, method = "degraded images", "noise_aware_judge"
        raise ValueError(
            f"training without data draws classes, and {facts.name} has {kind}, which nobody can draw; use a method "
            f"that trains on data, like stage={method}"
        )
