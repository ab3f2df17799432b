"""Points sampled from a Gaussian mixture, whose guided denoiser has a closed form; every batch is new."""

from math import pi

import torch
from jaxtyping import Int
from torch import Tensor

from fewstep.data.batch import Batch
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.data.open_styles import check_share, without_style
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.styles import Styles
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


def styled_mixture(styles: Styles, *, dim: int, std: float) -> GaussianMixture:
    """x = class + style + noise: one Gaussian a pair, around the sum of a point of each; float64.

    Classes lie on a circle of radius 0.8, styles on one of radius 0.3, turned by a quarter; other dimensions have mean
    zero.

    Raises:
        ValueError: fewer than two dimensions, or a std that is not positive.
    """
    if dim < 2:
        raise ValueError(f"dataset.dim must be at least 2, got {dim}")
    pairs = torch.arange(styles.num_pairs)
    of_class = 2 * pi * styles.class_of(pairs).double() / styles.num_classes
    of_style = 2 * pi * (styles.style_of(pairs).double() / styles.num_styles + 0.25)
    means = torch.zeros(styles.num_pairs, dim, dtype=torch.float64)
    means[:, 0] = 0.8 * of_class.cos() + 0.3 * of_style.cos()
    means[:, 1] = 0.8 * of_class.sin() + 0.3 * of_style.sin()
    weights = torch.full((styles.num_pairs,), 1 / styles.num_pairs, dtype=torch.float64)
    return GaussianMixture(means, torch.full_like(means, std), weights, pairs, styles)


class FromMixture(Data):
    """Samples of a mixture, of all its conditions alike; `exact` is the mixture itself.

    Args:
        facts: of the samples. num_reference: points in the reference.
    """

    def __init__(
        self, exact: GaussianMixture, facts: DataFacts, *, num_reference: int, batch_size: int, stream: str
    ) -> None:
        super().__init__(batch_size=batch_size, stream=stream)
        self.exact = self._mixture = exact
        self.facts, self.num_reference = facts, num_reference

    def _draw(self, count: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        label = torch.randint(self.facts.num_conditions, (count,), generator=generator)
        return Batch(self._mixture.draw(label, generator).float(), label)

    def batch(self, step: int) -> Batch:
        return self._draw(self.batch_size, seed_for(self.stream, "mixture", step))

    def reference(self) -> Batch:
        return self._draw(self.num_reference, seed_for("mixture", "reference"))


class MixtureData(FromMixture):
    """Samples of `ring_mixture`.

    Args:
        num_reference: points in the reference.
    """

    def __init__(
        self, *, num_classes: int, dim: int, std: float, num_reference: int, batch_size: int, stream: str
    ) -> None:
        exact = ring_mixture(num_classes=num_classes, dim=dim, std=std)
        facts = DataFacts(name="mixture", shape=(dim,), num_classes=num_classes, low=-1.5, high=1.5)
        super().__init__(exact, facts, num_reference=num_reference, batch_size=batch_size, stream=stream)


class MixtureStyledData(FromMixture):
    """Samples of `styled_mixture`, whose labels are of a class and a style.

    Args:
        any_style: share of the training labels that lose their style, drawn by (stream, step).
        num_reference: points in the reference.

    Raises:
        ValueError: a share outside (0, 1), or see `Styles` and `styled_mixture`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_styles: int,
        dim: int,
        std: float,
        any_style: float,
        num_reference: int,
        batch_size: int,
        stream: str,
    ) -> None:
        self.styles, self.any_style = Styles(num_classes, num_styles), check_share(any_style)
        facts = DataFacts(
            name="mixture_styled",
            shape=(dim,),
            num_classes=self.styles.num_labels,
            low=-1.5,
            high=1.5,
            styles=self.styles,
        )
        exact = styled_mixture(self.styles, dim=dim, std=std)
        super().__init__(exact, facts, num_reference=num_reference, batch_size=batch_size, stream=stream)

    def batch(self, step: int) -> Batch:
        x, label = super().batch(step)
        is_open = without_style(len(label), self.any_style, self.stream, step)
        return Batch(x, self.styles.of_any_style(label).where(is_open, label))

    def measured_styles(self, images: Tensor, label: Int[Tensor, "count"]) -> Int[Tensor, "count"]:
        return self._mixture.style_log_probability(images.double(), label).argmax(1)
