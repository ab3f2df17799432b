"""What figures need of a set of images, seen once: features and logits, and of a reference all that never changes.

Images go by in batches and are not kept. Sums are float64.
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

from fewstep.evaluation.features import FeatureNet
from fewstep.evaluation.images import EvaluationImages, Reference
from fewstep.evaluation.protocol import NEIGHBOURHOOD
from fewstep.system.files import atomic_write

ROWS = 1024  # of a matrix of distances, or of features in float64, at a time
WORTH_KEEPING = 2.0  # seconds; what a net saw of a reference faster than that is not written to a file

FEATURES = "features"

Images = Float[Tensor, "count features"]


class Features(NamedTuple):
    """What a net saw of some images, in their order, on the CPU."""

    features: Images
    logits: Float[Tensor, "count classes"]

    @classmethod
    def of(cls, net: FeatureNet, images: EvaluationImages) -> "Features":
        """`images`, in batches that suit the net, on its device."""
        parts = (net(part.to(net.device)) for part in images.split(net.batch_size))
        return cls.joined(cls(features.cpu(), logits.cpu()) for features, logits in parts)

    @classmethod
    def joined(cls, parts: Iterable["Features"]) -> "Features":
        """One after the other."""
        features, logits = zip(*parts, strict=True)
        return cls(torch.cat(features), torch.cat(logits))


class Moments(NamedTuple):
    """Mean and covariance (over n - 1) of features, summed in float64."""

    mean: Float[Tensor, "features"]
    covariance: Float[Tensor, "features features"]

    @classmethod
    def of(cls, features: Images) -> "Moments":
        """In two passes, a block of rows at a time."""
        blocks = features.split(ROWS)
        mean = torch.stack([block.double().sum(0) for block in blocks]).sum(0) / len(features)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for block in blocks:
            centred = block.double() - mean
            covariance.addmm_(centred.T, centred)
        return cls(mean, covariance / (len(features) - 1))


def frechet_distance(ours: Moments, real: Moments, root: Float[Tensor, "features features"]) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), with `root`, the square root of C' (Dowson & Landau 1982).

    C C' and root C root have the same eigenvalues; the second is symmetric, which is the easier problem by far.
    """
    values = torch.linalg.eigvalsh(root @ ours.covariance @ root)
    traces = ours.covariance.trace() + real.covariance.trace() - 2 * values.clamp(min=0).sqrt().sum()
    return float((ours.mean - real.mean).square().sum() + traces)


def square_root(covariance: Float[Tensor, "features features"]) -> Float[Tensor, "features features"]:
    """The symmetric one."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def radii(features: Images) -> Float[Tensor, "count"]:
    """The distance of each row to its NEIGHBOURHOOD-th nearest other."""
    return torch.cat(
        [
            torch.cdist(block, features).topk(NEIGHBOURHOOD + 1, largest=False).values[:, -1]
            for block in features.split(ROWS)
        ]
    )


def precision_and_recall(
    ours: Images, real: Float[Tensor, "reference features"], real_radii: Float[Tensor, "reference"]
) -> tuple[float, float]:
    """Share of ours inside a real ball, and of the real inside one of ours (Kynkaanniemi et al. 2019)."""
    our_radii = radii(ours)
    inside, covered = [], torch.zeros(len(real), dtype=torch.bool)
    for block, own in zip(ours.split(ROWS), our_radii.split(ROWS), strict=True):
        distance = torch.cdist(block, real)
        inside.append((distance <= real_radii).any(1))
        covered |= (distance <= own[:, None]).any(0)
    return torch.cat(inside).double().mean().item(), covered.double().mean().item()


@dataclass(frozen=True)
class ReferenceStatistics:
    """A reference as a net sees it, and all that figures need of it, worked out once and when first asked for."""

    features: Images
    labels: Int[Tensor, "count"]

    @classmethod
    def of(cls, net: FeatureNet, reference: Reference, kept_in: Path | None = None) -> "ReferenceStatistics":
        """What `net` sees of `reference`; read from the folder `kept_in`, and written there where it took long.

        A file's name is made of the hashes of net and reference, so what is there is of these; what cannot be read is
        made anew.
        """
        path = None if kept_in is None else kept_in / f"{net.digest[:16]}-{reference.digest[:16]}.safetensors"
        features = None if path is None else _read(path, (len(reference.images), net.num_features))
        if features is None:
            start = perf_counter()
            features = Features.of(net, reference.images).features.contiguous()
            if path is not None and perf_counter() - start > WORTH_KEEPING:
                with atomic_write(path) as temporary:
                    save_file({FEATURES: features}, temporary, {"net": net.name, "split": reference.split})
        return cls(features, reference.labels.cpu())

    @cached_property
    def moments(self) -> Moments:
        return Moments.of(self.features)

    @cached_property
    def root(self) -> Float[Tensor, "features features"]:
        """Of the covariance."""
        return square_root(self.moments.covariance)

    @cached_property
    def radii(self) -> Float[Tensor, "count"]:
        return radii(self.features)

    @cached_property
    def class_distances(self) -> dict[int, float]:
        """Mean distance between two images of a class, of each that has two."""
        return class_distances(self.features, self.labels)


def class_distances(features: Images, labels: Int[Tensor, "count"]) -> dict[int, float]:
    """Mean distance between two images of a class, of each that has two."""
    parts = {label: features[labels == label] for label in labels.unique().tolist()}
    return {label: torch.pdist(part).mean().item() for label, part in parts.items() if len(part) > 1}


def _read(path: Path, shape: tuple[int, int]) -> Images | None:
    """The features in a file of `Known.of`, None where there are none of that shape."""
    try:
        features = load_file(path).get(FEATURES)
    except (OSError, SafetensorError):
        return None
    return features if features is not None and tuple(features.shape) == shape else None
