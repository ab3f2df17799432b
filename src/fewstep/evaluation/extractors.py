"""Which feature extractor judges a data set: trainer.features."""

import warnings
from pathlib import Path

import torch

from fewstep.data.batches import Data, ImagesInMemory
from fewstep.data.facts import DataFacts
from fewstep.data.labels import Relabelled
from fewstep.data.latents import LatentsData
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.evaluation.features import (
    INCEPTION_WEIGHTS,
    DigitsFeatures,
    FeatureExtractor,
    InceptionFeatures,
    MixtureFeatures,
    PatchesFeatures,
    PointFeatures,
)
from fewstep.evaluation.own_features import OwnFeatures

AUTO, OWN, PATCHES = "auto", "own", "patches"
FILES = (".safetensors", ".pth")  # of an extractor trained here; of Inception
DIGITS, CROPS = ("digits", "digits_styled"), ("patches", "patches_sr")  # data sets whose classifiers are packaged
CAPTIONED = ("text_pixels", "text_latents")  # small images, unlike those of text
PUBLISHED = ("cifar10", "imagenet64")  # data sets whose figures are compared with published ones, of Inception


def inception_file() -> Path:
    """Where Inception's weights are looked for: in the torch hub's folder of checkpoints, as by torch-fidelity."""
    return Path(torch.hub.get_dir(), "checkpoints", INCEPTION_WEIGHTS)


def build_feature_extractor(
    facts: DataFacts,
    *,
    mixture: GaussianMixture | None = None,
    choice: str = AUTO,
    data: Data | None = None,
    folder: Path | None = None,
) -> FeatureExtractor:
    """The feature extractor of a data set.

    Points use their `mixture`, or themselves where states are the conditions; digits and patches their own
    classifiers. All other images use Inception where its weight file is there; else images of one's own use an
    extractor that is trained on them, latents that which was kept with them, and the others are refused.

    Args:
        facts: of what is judged. choice: trainer.features: auto, own, patches or a file; each but auto has figures
            under a protocol of its own.
        data: the data set, of which an extractor may be trained. folder: where it is kept.

    Raises:
        ValueError: points without a mixture, no usable file, or a choice that is none.
    """
    file = Path(choice)
    if choice not in (AUTO, OWN, PATCHES) and file.suffix not in FILES:
        raise ValueError(
            f"trainer.features must be {AUTO}, {OWN}, {PATCHES} or a file ({' or '.join(FILES)}), got {choice!r}"
        )
    if not facts.is_image:
        if facts.state is not None:
            return PointFeatures(facts.shape[0])
        if mixture is None:
            raise ValueError(
                f"points are evaluated by their exact mixture, and {facts.name} came without one; pass mixture="
            )
        return MixtureFeatures(mixture)
    if file.suffix in FILES:
        return OwnFeatures.read(file, facts) if file.suffix == FILES[0] else InceptionFeatures(file)
    images = None if data is None else images_to_train_on(data, choice)
    if choice == OWN and images is None:
        raise ValueError(
            f"trainer.features=own needs images of pixels to train on, and the {facts.name} data here have none; of "
            "latents leave trainer.features=auto, for which `fewstep latents` keeps an extractor with them"
        )
    if images is not None:
        return OwnFeatures.of(images, facts, folder)
    if choice == AUTO and isinstance(data, LatentsData) and data.features and not have_others(facts.name):
        return kept_with(data, data.features, facts)
    if facts.name in DIGITS:
        return DigitsFeatures()
    if facts.name in CROPS:
        return PatchesFeatures()
    if choice == PATCHES:
        warnings.warn(
            f"figures of {facts.name} come from the small patches classifier, as trainer.features says, not from "
            "Inception: they show that everything runs, and compare with no published figure",
            stacklevel=2,
        )
        return PatchesFeatures(replaces_inception=True)
    return InceptionFeatures(inception_file())


def kept_with(latents: LatentsData, file: Path, facts: DataFacts) -> OwnFeatures:
    """The extractor that `fewstep latents` kept with latents.

    Raises:
        ValueError: it is damaged, or was trained on other images than those of the latents.
    """
    again = "give the same `fewstep latents` command again, which makes another"
    extractor = OwnFeatures.read(file, facts, again)
    if extractor.card.source != latents.source_sha256:
        raise ValueError(f"{file} must be an extractor of the images of these latents, and is of others; {again}")
    return extractor


def images_to_train_on(data: Data, choice: str) -> ImagesInMemory | None:
    """The images that an extractor is trained on by that choice; None where another one judges them."""
    return pixels_of(data) if choice == OWN or (choice == AUTO and not have_others(data.facts.name)) else None


def have_others(name: str) -> bool:
    """Whether images of that name are judged by another extractor than one that is trained on them."""
    return name in (*DIGITS, *CROPS, *PUBLISHED) or inception_file().is_file()


def pixels_of(data: Data | None) -> ImagesInMemory | None:
    """The images of a data set with their own labels, if they are pixels; of captioned ones without labels."""
    if data is not None and data.facts.name in CAPTIONED:
        from fewstep.data.make_encoder import ShardImages  # transformers takes a second to import
        from fewstep.data.text import TextData

        assert isinstance(data, TextData), "they are named so"
        return ShardImages(data)
    source = data.source if isinstance(data, Relabelled) else data
    return source if isinstance(source, ImagesInMemory) and source.facts.latent is None else None
