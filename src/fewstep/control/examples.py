"""The examples that an adapter is trained at, kept in memory."""

from collections.abc import Sequence

import torch

from fewstep.data.batch import Batch
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.system.seeds import seed_for


class Examples(Data):
    """Batches of examples drawn with replacement, the same number of each part, one part after the other.

    Args:
        parts: of the examples: one, or one for each side of a slider.
        facts: of the examples. batch_size, stream: see `Data`.

    Raises:
        ValueError: a batch that does not divide into the parts.
    """

    def __init__(self, parts: Sequence[Batch], facts: DataFacts, *, batch_size: int, stream: str) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        if batch_size % len(parts):
            raise ValueError(
                f"the batch size must be divisible by {len(parts)}, the sides of the slider, got {batch_size}"
            )
        self.parts, self.facts = parts, facts

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed_for(self.stream, "examples", step))
        drawn = []
        for x, label in self.parts:
            index = torch.randint(len(x), (self.batch_size // len(self.parts),), generator=generator)
            drawn.append((x[index], label[index]))
        return Batch(torch.cat([x for x, _ in drawn]), torch.cat([label for _, label in drawn]))

    def reference(self) -> Batch:
        raise ValueError(f"an adapter is trained at examples of {self.facts.name} and judged by no reference")
