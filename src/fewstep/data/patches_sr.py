"""Super-resolution on the crops of photographs: the condition of each crop is its degraded image, enlarged again."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.batches import check_examples, from_uint8
from fewstep.data.degradation import degrade, draw_degradation, enlarge
from fewstep.data.facts import DataFacts, DegradedFacts
from fewstep.data.patches import load_patches
from fewstep.data.split import SplitImages
from fewstep.diffusion.prediction import Condition

HELD_OUT = "held out"  # the stream of the held-out images' degradations, the same for every run


class PatchesSRData(SplitImages):
    """The crops of `patches` as originals, and as conditions what is left of them.

    The degradation of the n-th training example depends on (stream, n) alone, that of a held-out one on its place.

    Args:
        size: of an original, 32 or 64 pixels.
        scale, blur, noise, jpeg: see `DegradedFacts`.
        num_reference: held-out originals, evenly spaced.

    Raises:
        ValueError: a size or a degradation that there is not, or a size that is no multiple of the scale.
    """

    def __init__(
        self,
        *,
        size: int,
        scale: int,
        blur: float,
        noise: float,
        jpeg: int | None,
        num_reference: int,
        batch_size: int,
        stream: str,
    ) -> None:
        train, held_out = load_patches(size)
        self.degraded = DegradedFacts(scale, blur, noise, jpeg)
        facts = DataFacts("patches_sr", (3, size, size), 0, low=-1.0, high=1.0, degraded=self.degraded)
        super().__init__(
            facts=facts,
            train=train,
            held_out=held_out,
            batch_size=batch_size,
            stream=stream,
            num_reference=num_reference,
        )
        self.conditions(1)  # refuses a size that is no multiple of the scale

    def selected(self, step: int, select: Callable[[Tensor], Tensor] = lambda batch: batch) -> Batch:
        images, _ = self.pixels(step, select)
        x = from_uint8(images)
        return Batch(
            x, self.condition_of(x, self.stream, select(step * self.batch_size + torch.arange(self.batch_size)))
        )

    def condition_of(self, x: Tensor, stream: str, numbers: Int[Tensor, "batch"]) -> Tensor:
        """The degraded images of x, enlarged to its size; each degradation by (stream, its number)."""
        shape, scale = self.facts.shape, self.degraded.scale
        drawn = [draw_degradation(self.degraded, shape, stream, number) for number in numbers.tolist()]
        return enlarge(degrade(x, scale, drawn), scale)

    def reference(self) -> Batch:
        x, photographs = super().reference()
        return Batch(x, torch.zeros_like(photographs))  # there are no classes

    def conditions(self, count: int) -> Condition:
        """The degraded images of the reference in turn."""
        x = self.reference().x[: min(count, self.num_reference)]
        return self.condition_of(x, HELD_OUT, torch.arange(len(x)))[torch.arange(count) % len(x)]

    def check(self) -> list[str]:
        return [
            f"{self.facts.name}: {len(self.labels):,} images to train on, {len(self.held_out.labels):,} held out",
            *check_examples(self.facts, "a training batch", self.preview()),
            *check_examples(self.facts, "its conditions", Batch(self.preview().label, self.preview().label)),
            *check_examples(self.facts, "reference", self.reference()),
        ]
