"""Points sampled from a Gaussian mixture, whose guided denoiser has a closed form; every batch is new."""

from math import pi

import torch

from fewstep.data.batch import Batch
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.system.seeds import seed_for


def ring_mixture(*, num_classes: int, dim: int, std: float) -> GaussianMixture:
    """Two Gaussians per class, on circles of radius 0.8 and of 0.4, the inner ring turned by half a class; float64.

    Dimensions past the second have mean zero.

    Raises:
        ValueError: fewer than two dimensions, fewer than one class, or a std that is not positive.
    """
    if dim < 2 or num_classes < 1:
        raise ValueError(f"dataset.dim must be at least 2 and dataset.num_classes at least 1, got {dim}, {num_classes}")
    classes = torch.arange(num_classes).repeat(2)
    outer = torch.arange(2 * num_classes) < num_classes
    phi = 2 * pi * (classes.double() + torch.where(outer, 0.0, 0.5)) / num_classes
    radius = torch.where(outer, 0.8, 0.4).double()
    means = torch.zeros(2 * num_classes, dim, dtype=torch.float64)
    means[:, 0], means[:, 1] = radius * phi.cos(), radius * phi.sin()
    weights = torch.where(outer, 0.6, 0.4).double() / num_classes
    return GaussianMixture(means, torch.full_like(means, std), weights, classes)


class MixtureData(Data):
    """Samples of `ring_mixture`; `exact` is the mixture itself.

    Args:
        num_reference: points in the reference.
    """

    def __init__(
        self, *, num_classes: int, dim: int, std: float, num_reference: int, batch_size: int, stream: str
    ) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        self.exact = self._mixture = ring_mixture(num_classes=num_classes, dim=dim, std=std)
        self.num_reference = num_reference
        self.facts = DataFacts(name="mixture", shape=(dim,), num_classes=num_classes, low=-1.5, high=1.5)

    def _draw(self, count: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        label = torch.randint(self.facts.num_classes, (count,), generator=generator)
        return Batch(self._mixture.draw(label, generator).float(), label)

    def batch(self, step: int) -> Batch:
        return self._draw(self.batch_size, seed_for(self.stream, "mixture", step))

    def reference(self) -> Batch:
        return self._draw(self.num_reference, seed_for("mixture", "reference"))
