"""What there is to train an adapter on: two conditions, the two sides of an attribute, or images of a style."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.artifacts.model_file import ModelCard
from fewstep.control.adapting import Adapting, Concept, FromImages
from fewstep.control.attributes import ATTRIBUTES, outer_thirds
from fewstep.data.batch import Batch
from fewstep.data.batches import ImagesInMemory, from_uint8
from fewstep.diffusion.prediction import Condition
from fewstep.inference.model import Model
from fewstep.methods.training import Training
from fewstep.runs.build import data_of

NUM_SAMPLES = 2048  # of the model, at which a concept is learnt
MOST_IMAGES = 10_000  # of a data set, for an attribute


@dataclass(frozen=True)
class Lesson:
    """What an adapter is trained on.

    Args:
        kind, about: as the adapter's card says it. parts: the examples, see `Examples`.
        method: of a training -> the method.
    """

    kind: Literal["concept", "attribute", "style"]
    about: str
    parts: tuple[Batch, ...]
    method: Callable[[Training], Adapting]
    eta: float | None = None


def concept(
    model: Model, source: int | str, target: int | str, at: Sequence[int | str], *, eta: float, seed: int
) -> Lesson:
    """A slider from one condition to another, learnt at samples of the model for the conditions `at`.

    Args:
        source, target: classes or prompts. at: the conditions at which it is learnt; none: both.

    Raises:
        ValueError: see `Model.condition`; one condition twice, an eta that is not positive.
    """
    if source == target or not eta > 0:
        raise ValueError(
            f"a concept goes from one condition to another by eta > 0, got {source!r} to {target!r} by {eta}"
        )
    away, towards = model.condition([source]), model.condition([target])  # pyright: ignore[reportArgumentType]
    neutral = model.condition([*at] or [source, target])  # pyright: ignore[reportArgumentType]
    label = neutral[torch.arange(NUM_SAMPLES) % len(neutral)]
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    x = not_decoded(model).sample(label, w=model.default_w, seed=seed)

    def method(training: Training) -> Adapting:
        return Concept(
            name="concept", training=training, sampling=model.card.sampling, towards=towards, away=away, eta=eta
        )

    where = f" at {', '.join(map(str, at))}" if at else ""
    return Lesson("concept", f"{source} -> {target}{where}", (Batch(x, label),), method, eta)


def not_decoded(model: Model) -> Model:
    """The model of a latent space as one whose samples are its latents."""
    return replace(model, card=replace(model.card, data=replace(model.card.data, latent=None)))


def attribute(
    model: Model, name: str, images: Float[Tensor, "count *image"], label: Int[Tensor, "count"], source: str
) -> Lesson:
    """A slider along a measured attribute: the upper third of the images of each class against the lower.

    Args:
        images: in [-1, 1]. source: what they are, in words.

    Raises:
        ValueError: an unknown attribute, images that it is not of, or fewer than three of a class.
    """
    if name not in ATTRIBUTES:
        raise ValueError(f"--attribute must be one of {', '.join(ATTRIBUTES)}, got {name!r}")
    if images.ndim != 4:
        raise ValueError(f"attributes are of images, and {model.card.data.name} is of points {model.card.data.shape}")
    upper, lower = outer_thirds(ATTRIBUTES[name](images), label)
    parts = tuple(Batch(model.encode(images[side]), label[side]) for side in (upper, lower))
    about = f"{name} of {source}, {int(upper.sum())} images of the upper third against the lower"
    return Lesson("attribute", about, parts, from_images(model.card, (1.0, -1.0)))


def style(model: Model, images: Float[Tensor, "count *image"], label: Condition, source: str) -> Lesson:
    """The look of given images, each with its condition, at strength 1."""
    about = f"{len(images)} images of {source}"
    return Lesson("style", about, (Batch(model.encode(images), label),), from_images(model.card, (1.0,)))


def from_images(card: ModelCard, sides: tuple[float, ...]) -> Callable[[Training], Adapting]:
    """The method that denoises images of those sides."""
    return lambda training: FromImages(name="images", training=training, sampling=card.sampling, sides=sides)


def training_images(card: ModelCard) -> tuple[Float[Tensor, "count *image"], Int[Tensor, "count"]]:
    """The training images of a model's data set in [-1, 1], evenly spaced where there are many, and their classes.

    Raises:
        ValueError: the data set is not found, or has no images of its own with classes.
    """
    data = data_of(card.data.name, [], batch_size=1)
    if not isinstance(data, ImagesInMemory) or data.facts != card.data or card.data.latent or card.data.text:
        raise ValueError(
            f"the training set of {card.data.name} holds no images with this model's classes; give some with --examples"
        )
    count = len(data.labels)
    chosen = torch.arange(0, count, max(1, -(-count // MOST_IMAGES)))
    return from_uint8(data.images[chosen]), data.labels[chosen]
