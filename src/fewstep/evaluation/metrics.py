"""Quality figures: final ones as torch-fidelity's, running ones through torchmetrics, same features.

None of them moves the global random state, writes a file or starts a process.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from fewstep.distributed.collectives import all_gather_rows
from fewstep.evaluation.features import FeatureNet
from fewstep.evaluation.images import EvaluationImages, Reference
from fewstep.evaluation.protocol import INCEPTION_SPLITS, NEIGHBOURHOOD
from fewstep.evaluation.statistics import (
    ROWS,
    Features,
    Moments,
    ReferenceStatistics,
    class_distances,
    frechet_distance,
    precision_and_recall,
)

KID_SUBSETS = 10
KID_SUBSET_SIZE = 1000  # as many images as there are, if fewer; torch-fidelity draws them with a fixed seed


@dataclass(frozen=True)
class Figures:
    """What one set of samples scored.

    Attributes:
        fid: Frechet distance of the features to the reference's; 0 is the same mean and covariance.
        inception_score: exp of the mutual information of image and class, at most the number of classes.
        precision: share of samples inside the reference's manifold.
        recall: share of the reference inside the samples' manifold.
        accuracy: share of samples that the feature net takes for the wanted class; None if it knows no class
            of this data.
        diversity: mean feature distance within a class over the reference's; 1 is as diverse as the data; None if no
            class has two images here and there.
        kid: kernel distance of the features (Binkowski et al. 2018), the mean of KID_SUBSETS; None if not asked for.
    """

    fid: float
    inception_score: float
    precision: float
    recall: float
    accuracy: float | None
    diversity: float | None
    kid: float | None = None


def final_figures(
    net: FeatureNet, *, images: EvaluationImages, labels: Int[Tensor, "labels"], reference: Reference, kid: bool = False
) -> Figures:
    """Judge `images`, made for `labels`, against `reference`, on the net's device; `kid` too if asked for.

    Raises:
        ValueError: see `figures_of`.
    """
    return figures_of(
        Features.of(net, images), labels, ReferenceStatistics.of(net, reference), net.num_classes, kid=kid
    )


def figures_of(
    seen: Features,
    labels: Int[Tensor, "labels"],
    known: ReferenceStatistics,
    num_classes: int | None,
    *,
    kid: bool = False,
) -> Figures:
    """The figures of samples made for `labels`, of what a net saw of them and of the reference.

    They are torch-fidelity's, which a test compares; what it works out anew for each call is here worked out once.

    Args:
        num_classes: of the data, that the net's logits stand for, None if they mean something else.

    Raises:
        ValueError: not one label per image, or no more images than the neighbourhood of precision and recall.
    """
    features, logits = seen
    count = min(len(features), len(known.features))
    if count <= NEIGHBOURHOOD or len(labels) != len(features):
        raise ValueError(
            f"figures need one label per image and at least {NEIGHBOURHOOD + 1} images, got {len(features)} "
            f"images, {len(labels)} labels and {len(known.features)} reference images; raise num_images"
        )
    precision, recall = precision_and_recall(features, known.features, known.radii)
    distances = (
        kid_features_to_metric(
            features,
            known.features,
            kid_subsets=KID_SUBSETS,
            kid_subset_size=min(KID_SUBSET_SIZE, count),
            verbose=False,
        )
        if kid
        else {}
    )
    return Figures(
        fid=frechet_distance(Moments.of(features), known.moments, known.root),
        inception_score=isc_features_to_metric(logits, INCEPTION_SPLITS, shuffle=False)[KEY_METRIC_ISC_MEAN],
        precision=precision,
        recall=recall,
        accuracy=None if num_classes is None else accuracy(logits, labels.cpu()),
        diversity=diversity(class_distances(features, labels.cpu()), known.class_distances),
        kid=distances.get(KEY_METRIC_KID_MEAN),
    )


def accuracy(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]) -> float:
    """Share of images whose largest logit is that of the wanted class."""
    return (logits.argmax(1) == labels).double().mean().item()


def diversity(ours: Mapping[int, float], real: Mapping[int, float]) -> float | None:
    """Mean over classes of the mean distance between two samples of one class, relative to the reference's.

    Classes that have no distance (`class_distances`) here or in the reference are left out of both; None if that
    leaves no class.
    """
    both = [label for label in real if label in ours]
    return sum(ours[label] for label in both) / sum(real[label] for label in both) if both else None


class _Given(nn.Identity):
    """In the place of the network that torchmetrics asks: what comes is what a FeatureNet gave already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class RunningFigures:
    """FID and inception score during training, equal to the final ones on the same images.

    Not an nn.Module on purpose: held by a LightningModule it stays out of checkpoints and averages.
    """

    def __init__(self, net: FeatureNet, known: ReferenceStatistics) -> None:
        self.net = net
        with warnings.catch_warnings():  # it warns that it keeps all logits in memory: a few thousand rows
            warnings.simplefilter("ignore", UserWarning)
            self.score = InceptionScore(_Given(net.num_features), INCEPTION_SPLITS, sync_on_compute=False)
        given = _Given(net.num_features)
        self.distance = FrechetInceptionDistance(given, reset_real_features=False, sync_on_compute=False)
        for features in known.features.split(ROWS):
            self.distance.update(features, real=True)

    def update(self, images: EvaluationImages) -> None:
        """Add generated images: each process looks at its own, and all have what all of them saw."""
        features, logits = (all_gather_rows(part) for part in Features.of(self.net, images))
        self.distance.update(features, real=False)
        self.score.update(logits)

    def compute(self) -> dict[str, float]:
        """`fid` and `inception_score` of the images since the last call; starts anew."""
        # torchmetrics shuffles, though one split needs no order, and warns of one split's standard deviation.
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            figures = {
                "fid": self.distance.compute().item(),
                "inception_score": self.score.compute()[0].item(),
            }
        self.distance.reset()
        self.score.reset()
        return figures
