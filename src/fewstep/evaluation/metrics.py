"""Quality figures: final ones equal to torch-fidelity's, running ones by torchmetrics, of the same features.

None of them changes the global random state, writes a file or starts a process.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from fewstep.distributed.collectives import all_gather_rows
from fewstep.evaluation.features import FeatureExtractor
from fewstep.evaluation.images import EvaluationImages
from fewstep.evaluation.intervals import (
    Interval,
    diversity_interval,
    frechet_influence,
    inception_influence,
    interval,
    kernel_influence,
    recall_interval,
    share_interval,
)
from fewstep.evaluation.protocol import INCEPTION_SPLITS, NEIGHBOURHOOD
from fewstep.evaluation.statistics import (
    ROWS,
    Features,
    Images,
    Moments,
    ReferenceStatistics,
    Spectrum,
    class_distances,
    frechet_distance,
    precision_and_recall,
)
from fewstep.evaluation.vendi import vendi_within_classes

KID_SUBSETS = 10
KID_SUBSET_SIZE = 1000  # or all images, if fewer; torch-fidelity draws them with a fixed seed


@dataclass(frozen=True)
class Figures:
    """The figures of a set of samples.

    Attributes:
        fid: Frechet distance of the features to the reference's; 0 means equal mean and covariance.
        inception_score: exp of the mutual information of image and class, at most the number of classes.
        precision: share of samples inside the reference's manifold.
        recall: share of the reference inside the samples' manifold.
        accuracy: share of samples classified as the class of their condition; None if the feature extractor does not
            classify this data.
        diversity: mean feature distance within a class, relative to the reference's; 1 is as diverse as the data; None
            if no class has two images in both.
        vendi: mean Vendi score within a class, so many different images at least 1; None where diversity is.
        kid: kernel distance of the features (Binkowski et al. 2018), the mean of KID_SUBSETS; None if not requested.
        intervals: of the figures that are not None, by name; of diversity, if its classes have three images or it
            has two classes.
    """

    fid: float
    inception_score: float
    precision: float
    recall: float
    accuracy: float | None
    diversity: float | None
    vendi: float | None = None
    kid: float | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)


def figures_of(
    sampled: Features,
    labels: Int[Tensor, "labels"],
    reference: ReferenceStatistics,
    num_classes: int | None,
    *,
    classes: Int[Tensor, "labels"] | None = None,
    kid: bool = False,
) -> Figures:
    """The figures of samples for `labels`, from their features and the reference's.

    They equal torch-fidelity's (a test compares), which recomputes the statistics of the reference in each call.

    Args:
        num_classes: of the data, if the logits are of its classes, else None.
        classes: the class of each label, where it is of a style too.

    Raises:
        ValueError: not one label per image, or fewer images than precision and recall need.
    """
    features, logits = sampled
    count = min(len(features), len(reference.features))
    if count <= NEIGHBOURHOOD or len(labels) != len(features):
        raise ValueError(
            f"figures need one label per image and at least {NEIGHBOURHOOD + 1} images, got {len(features)} "
            f"images, {len(labels)} labels and {len(reference.features)} reference images; raise num_images"
        )
    labels, moments = labels.cpu(), Moments.of(features)
    spectrum = Spectrum.of(moments, reference.root)
    fid = frechet_distance(moments, reference.moments, spectrum)
    score = isc_features_to_metric(logits, INCEPTION_SPLITS, shuffle=False)[KEY_METRIC_ISC_MEAN]
    precision, recall, alone = precision_and_recall(features, reference.features, reference.radii)
    wanted = labels if classes is None else classes.cpu()
    accuracy = None if num_classes is None else (logits.argmax(1) == wanted).double().mean().item()
    spread = diversity(class_distances(features, labels), reference.class_distances)
    worth, of_worth = vendi_within_classes(features, labels, reference.class_distances) or (None, None)
    distance, of_distance = kernel_distance(features, reference.features, labels) if kid else (None, None)
    influence = frechet_influence(features, moments, reference.moments, reference.root, spectrum)
    intervals = {
        "fid": interval(fid, influence, labels),
        "inception_score": interval(score, inception_influence(logits), labels, least=1.0),
        "precision": share_interval(precision, len(features)),
        "recall": recall_interval(recall, len(reference.features), alone),
        "accuracy": None if accuracy is None else share_interval(accuracy, len(features)),
        "diversity": None
        if spread is None
        else diversity_interval(spread, features, labels, reference.class_distances),
        "vendi": of_worth,
        "kid": of_distance,
    }
    known = {name: own for name, own in intervals.items() if own is not None}
    return Figures(fid, score, precision, recall, accuracy, spread, worth, distance, known)


def kernel_distance(
    features: Images, reference: Float[Tensor, "reference features"], labels: Int[Tensor, "count"]
) -> tuple[float, Interval]:
    """KID and its interval, to whose variance that between the subsets is added."""
    size = min(KID_SUBSET_SIZE, len(features), len(reference))
    subsets = {"kid_subsets": KID_SUBSETS, "kid_subset_size": size}
    found = kid_features_to_metric(features, reference, verbose=False, **subsets)
    distance, deviation = found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]
    influence = kernel_influence(features, reference)
    extra = deviation**2 / KID_SUBSETS
    return distance, interval(distance, influence, labels, extra=extra, least=-math.inf)


def diversity(samples: Mapping[int, float], reference: Mapping[int, float]) -> float | None:
    """The mean over classes of `class_distances`, relative to the reference's.

    Only classes that have a distance in both count; None if there are none.
    """
    both = [label for label in reference if label in samples]
    return sum(samples[label] for label in both) / sum(reference[label] for label in both) if both else None


class RunningFigures:
    """FID and inception score during training, equal to the final ones on the same images.

    Not an nn.Module, so that it stays out of the checkpoints of a LightningModule that has it.
    """

    def __init__(self, net: FeatureExtractor, reference: ReferenceStatistics) -> None:
        self.net, identity = net, nn.Identity()  # in place of torchmetrics' networks: it gets their outputs
        identity.num_features = net.num_features  # pyright: ignore[reportArgumentType]
        with warnings.catch_warnings():  # it warns that it keeps all logits in memory: a few thousand rows
            warnings.simplefilter("ignore", UserWarning)
            self.score = InceptionScore(identity, INCEPTION_SPLITS, sync_on_compute=False)
        self.distance = FrechetInceptionDistance(identity, reset_real_features=False, sync_on_compute=False)
        for features in reference.features.split(ROWS):
            self.distance.update(features, real=True)

    def update(self, images: EvaluationImages) -> None:
        """Add samples; every rank extracts the features of its own, which are gathered."""
        features, logits = (all_gather_rows(rows) for rows in Features.of(self.net, images))
        self.distance.update(features, real=False)
        self.score.update(logits)

    def compute(self) -> dict[str, float]:
        """`fid` and `inception_score` of the images since the last call; then reset."""
        # torchmetrics shuffles, though there is one split only, and warns of the standard deviation of one split.
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            figures = {"fid": self.distance.compute().item(), "inception_score": self.score.compute()[0].item()}
        self.distance.reset()
        self.score.reset()
        return figures
