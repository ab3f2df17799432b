"""Features of sets of images, the statistics that figures need of them, and a cache of those of the reference.

Features are extracted in batches. Sums are float64.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.evaluation.features import FeatureExtractor
from fewstep.evaluation.images import EvaluationImages, Reference
from fewstep.evaluation.protocol import NEIGHBOURHOOD
from fewstep.system.files import atomic_write

ROWS = 1024  # of a matrix of distances, or of features in float64, at a time
MIN_CACHED_SECONDS = 2.0  # features extracted faster are not cached

FEATURES = "features"

Images = Float[Tensor, "count features"]


class Features(NamedTuple):
    """Features and logits of images, in order, on the CPU."""

    features: Images
    logits: Float[Tensor, "count classes"]

    @classmethod
    def of(cls, net: FeatureExtractor, images: EvaluationImages) -> "Features":
        """Extract those of `images`, in batches of the extractor's size on its device."""
        batches = (net(batch.to(net.device)) for batch in images.split(net.batch_size))
        return cls.concatenated(cls(features.cpu(), logits.cpu()) for features, logits in batches)

    @classmethod
    def concatenated(cls, batches: Iterable["Features"]) -> "Features":
        features, logits = zip(*batches, strict=True)
        return cls(torch.cat(features), torch.cat(logits))


class Moments(NamedTuple):
    """Mean and covariance (over n - 1) of features, summed in float64."""

    mean: Float[Tensor, "features"]
    covariance: Float[Tensor, "features features"]

    @classmethod
    def of(cls, features: Images) -> "Moments":
        """Compute them in two passes over blocks of rows."""
        blocks = features.split(ROWS)
        mean = torch.stack([block.double().sum(0) for block in blocks]).sum(0) / len(features)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for block in blocks:
            centred = block.double() - mean
            covariance.addmm_(centred.T, centred)
        return cls(mean, covariance / (len(features) - 1))


class Spectrum(NamedTuple):
    """Eigenvalues, rising, and eigenvectors of C'^(1/2) C C'^(1/2), for the covariances C and C' of two sets.

    C C' has the same eigenvalues, and is not symmetric.
    """

    values: Float[Tensor, "features"]
    vectors: Float[Tensor, "features features"]

    @classmethod
    def of(cls, samples: Moments, root: Float[Tensor, "features features"]) -> "Spectrum":
        """With `root` the square root of C'."""
        return cls(*torch.linalg.eigh(root @ samples.covariance @ root))


def frechet_distance(samples: Moments, reference: Moments, spectrum: Spectrum) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) (Dowson & Landau 1982); C' is the reference's."""
    values = spectrum.values
    traces = samples.covariance.trace() + reference.covariance.trace() - 2 * values.clamp(min=0).sqrt().sum()
    return float((samples.mean - reference.mean).square().sum() + traces)


def square_root(covariance: Float[Tensor, "features features"]) -> Float[Tensor, "features features"]:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def radii(features: Images) -> Float[Tensor, "count"]:
    """The distance of each row to its NEIGHBOURHOOD-th nearest neighbour."""
    distances = (torch.cdist(block, features) for block in features.split(ROWS))
    return torch.cat([each.topk(NEIGHBOURHOOD + 1, largest=False).values[:, -1] for each in distances])


class Manifolds(NamedTuple):
    """Precision and recall, and the number of reference features that each sample alone covers."""

    precision: float
    recall: float
    alone: Int[Tensor, "count"]


def precision_and_recall(
    samples: Images, reference: Float[Tensor, "reference features"], reference_radii: Float[Tensor, "reference"]
) -> Manifolds:
    """Share of samples within the radius of a reference feature, and the converse (Kynkaanniemi et al. 2019)."""
    inside, start = [], 0
    times_covered, covering = torch.zeros(
        2, len(reference), dtype=torch.long
    )  # how often, and the last sample to do so
    for block, block_radii in zip(samples.split(ROWS), radii(samples).split(ROWS), strict=True):
        distance = torch.cdist(block, reference)
        inside.append((distance <= reference_radii).any(1))
        covers = distance <= block_radii[:, None]
        times_covered += covers.sum(0)
        covering = torch.where(covers.any(0), start + covers.int().argmax(0), covering)
        start += len(block)
    alone = covering[times_covered == 1].bincount(minlength=len(samples))
    covered = (times_covered > 0).double().mean().item()
    return Manifolds(torch.cat(inside).double().mean().item(), covered, alone)


@dataclass(frozen=True)
class ReferenceStatistics:
    """Features of a reference and the statistics that figures need, each computed when first used."""

    features: Images
    labels: Int[Tensor, "count"]

    @classmethod
    def of(cls, net: FeatureExtractor, reference: Reference, cache: Path | None = None) -> "ReferenceStatistics":
        """Extract the features of `reference`, or read them from the folder `cache`; slow ones are written there.

        The name of a cache file consists of the digests of `net` and `reference`. A damaged file is replaced.
        """
        path = None if cache is None else cache / f"{net.digest[:16]}-{reference.digest[:16]}.safetensors"
        features = None if path is None else read_features(path, (len(reference.images), net.num_features))
        if features is None:
            start = perf_counter()
            features = Features.of(net, reference.images).features.contiguous()
            if path is not None and perf_counter() - start > MIN_CACHED_SECONDS:
                with atomic_write(path) as temporary:
                    save_file({FEATURES: features}, temporary, {"net": net.name, "split": reference.split})
        return cls(features, reference.labels.cpu())

    @cached_property
    def moments(self) -> Moments:
        return Moments.of(self.features)

    @cached_property
    def root(self) -> Float[Tensor, "features features"]:
        """The square root of the covariance."""
        return square_root(self.moments.covariance)

    @cached_property
    def radii(self) -> Float[Tensor, "count"]:
        return radii(self.features)

    @cached_property
    def class_distances(self) -> dict[int, float]:
        """See the function of that name."""
        return class_distances(self.features, self.labels)


def class_distances(features: Images, labels: Int[Tensor, "count"]) -> dict[int, float]:
    """Mean distance between two images of a class, for each class with at least two images."""
    classes = {label: features[labels == label] for label in labels.unique().tolist()}
    return {label: torch.pdist(rows).mean().item() for label, rows in classes.items() if len(rows) > 1}


def read_features(path: Path, shape: tuple[int, int]) -> Images | None:
    """The features in a cache file; None if it is missing or damaged, or they are of another shape."""
    try:
        features = load_file(path).get(FEATURES)
    except (OSError, SafetensorError):
        return None
    return features if features is not None and tuple(features.shape) == shape else None
