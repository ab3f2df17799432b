"""Quality figures: final ones through torch-fidelity, running ones through torchmetrics, same features.

None of them moves the global random state, writes a file or starts a process.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from fewstep.quality.features import FeatureNet
from fewstep.quality.images import Judged, Reference
from fewstep.quality.protocol import INCEPTION_SPLITS, NEIGHBOURHOOD

EXTRACTOR = "fewstep"
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


class RegisteredExtractor(FeatureExtractorBase):
    """A FeatureNet as torch-fidelity knows it; `extracted` keeps what it saw, in order."""

    def __init__(
        self, name: str, features_list: list[str], feature_net: FeatureNet, extracted: list[Any], **_: Any
    ) -> None:
        super().__init__(name, features_list)
        self.feature_net = feature_net
        self.extracted = extracted

    @staticmethod
    def get_provided_features_list() -> tuple[str, str]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, input: Judged) -> tuple[Tensor, ...]:
        features, logits = self.feature_net(input)
        self.extracted.append((features.cpu(), logits.cpu()))
        return tuple({"features": features, "logits": logits}[name] for name in self.features_list)


register_feature_extractor(EXTRACTOR, RegisteredExtractor)


class _Tensors(Dataset[Tensor]):
    """One tensor per item, as torch-fidelity asks."""

    def __init__(self, tensors: Judged) -> None:
        self.tensors = tensors.cpu()

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> Tensor:
        return self.tensors[index]


def final_figures(
    net: FeatureNet, *, images: Judged, labels: Int[Tensor, "labels"], reference: Reference, kid: bool = False
) -> Figures:
    """Judge `images`, made for `labels`, against `reference`, on the net's device; `kid` too if asked for.

    Raises:
        ValueError: not one label per image, or no more images than the neighbourhood of precision and recall.
    """
    count = min(len(images), len(reference.images))
    if count <= NEIGHBOURHOOD or len(labels) != len(images):
        raise ValueError(
            f"figures need one label per image and at least {NEIGHBOURHOOD + 1} images, got {len(images)} "
            f"images, {len(labels)} labels and {len(reference.images)} reference images; raise num_images"
        )
    extracted: list[tuple[Tensor, Tensor]] = []
    with torch.random.fork_rng(devices=()):  # a DataLoader draws a seed, even without workers
        scores = calculate_metrics(
            input1=_Tensors(images),
            input2=_Tensors(reference.images),
            fid=True,
            isc=True,
            prc=True,
            kid=kid,
            kid_subsets=KID_SUBSETS,
            kid_subset_size=min(KID_SUBSET_SIZE, count),
            feature_extractor=EXTRACTOR,
            feature_net=net,
            extracted=extracted,
            isc_splits=INCEPTION_SPLITS,
            samples_shuffle=False,
            prc_neighborhood=NEIGHBOURHOOD,
            batch_size=net.batch_size,
            cuda=net.device.type == "cuda",
            cache=False,
            save_cpu_ram=True,  # no worker processes
            verbose=False,
        )
    features, logits = (torch.cat(parts) for parts in zip(*extracted, strict=True))
    return Figures(
        fid=scores["frechet_inception_distance"],
        inception_score=scores["inception_score_mean"],
        precision=scores["precision"],
        recall=scores["recall"],
        accuracy=None if net.num_classes is None else accuracy(logits[: len(images)], labels.cpu()),
        diversity=diversity(
            features=features[: len(images)],
            labels=labels.cpu(),
            reference_features=features[len(images) :],
            reference_labels=reference.labels.cpu(),
        ),
        kid=scores["kernel_inception_distance_mean"] if kid else None,
    )


def accuracy(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]) -> float:
    """Share of images whose largest logit is that of the wanted class."""
    return (logits.argmax(1) == labels).double().mean().item()


def diversity(
    *,
    features: Float[Tensor, "batch features"],
    labels: Int[Tensor, "batch"],
    reference_features: Float[Tensor, "reference features"],
    reference_labels: Int[Tensor, "reference"],
) -> float | None:
    """Mean over classes of the mean distance between two samples of one class, relative to the reference's.

    Classes with fewer than two samples here or in the reference have no distance and are left out of both; None if
    that leaves no class.
    """
    both = {
        label: (features[labels == label], reference_features[reference_labels == label])
        for label in reference_labels.unique().tolist()
    }
    pairs = [(a, b) for a, b in both.values() if min(len(a), len(b)) > 1]
    if not pairs:
        return None
    ours, real = (sum(torch.pdist(part).mean().item() for part in parts) for parts in zip(*pairs, strict=True))
    return ours / real


class _View(nn.Module):
    """Features (0) or logits (1) of a FeatureNet alone, as torchmetrics asks."""

    def __init__(self, net: FeatureNet, index: int) -> None:
        super().__init__()
        self.net, self.index, self.num_features = net, index, net.num_features

    def forward(self, images: Judged) -> Tensor:
        return self.net(images)[self.index]


class RunningFigures:
    """FID and inception score during training, equal to the final ones on the same images.

    Each process judges the images that it was given; nothing is reduced over processes. Not an nn.Module on
    purpose: held by a LightningModule it stays out of checkpoints and averages.
    """

    def __init__(self, net: FeatureNet, reference: Reference) -> None:
        self.net = net
        with warnings.catch_warnings():  # it warns that it keeps all logits in memory: a few thousand rows
            warnings.simplefilter("ignore", UserWarning)
            self.score = InceptionScore(_View(net, 1), INCEPTION_SPLITS, sync_on_compute=False)
        self.distance = FrechetInceptionDistance(_View(net, 0), reset_real_features=False, sync_on_compute=False)
        self._add(reference.images, real=True)

    def _add(self, images: Judged, *, real: bool) -> None:
        self.distance.to(self.net.device)
        self.score.to(self.net.device)
        for batch in images.split(self.net.batch_size):
            batch = batch.to(self.net.device)
            self.distance.update(batch, real=real)
            if not real:
                self.score.update(batch)

    def update(self, images: Judged) -> None:
        """Add generated images."""
        self._add(images, real=False)

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
