"""95 % intervals of figures: how far each would move if the same model were evaluated again from other noise.

The reference and the number of images of each class are part of the protocol and stay as they are; the model does too,
so that the variation of training is not in an interval. A smooth figure T of n images has an influence psi_i for each
of them: T changes by eps psi_i / n where image i gets the weight 1 + eps. Its standard error is that of the mean of psi
(the infinitesimal jackknife: Jaeckel 1972; Efron 1982, chapter 6). This takes no resampling, no random number and no
second pass through a network.

FID, the inception score and the energy distance are biased by an amount that depends on n. An interval covers the
expectation at this n, not the limit of many images. Near the least value that a distance can have, where its influences
vanish and their sampling error remains, it is too wide.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from scipy.special import ndtri, stdtrit
from torch import Tensor

from fewstep.evaluation.statistics import ROWS, Images, Moments, Spectrum

LEVEL = 0.95

Influence = Float[Tensor, "count"]
Labels = Counts = Int[Tensor, "count"]
Interval = list[float]
"""[low, high]"""


def strata(labels: Labels) -> Labels:
    """Classes as 0, 1, ..., or one class of all images where a class has a single one."""
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    return classes if counts.min() > 1 else torch.zeros_like(classes)


def interval(
    figure: float, influence: Influence, labels: Labels | None = None, *, extra: float = 0.0, least: float = 0.0
) -> Interval:
    """figure +- t sqrt(s^2 / n + extra), with s^2 the variance of the influences within classes and t Student's.

    Args:
        labels: None for influences of one class.
        extra: variance that the influences do not have.
        least: what the figure cannot be below.

    Raises:
        ValueError: fewer than two influences.
    """
    if len(influence) < 2:
        raise ValueError(f"an interval needs at least two images, got {len(influence)}")
    classes = torch.zeros(len(influence), dtype=torch.long) if labels is None else strata(labels)
    counts = classes.bincount()
    psi = influence.double()
    psi = psi - (torch.zeros(len(counts)).double().index_add(0, classes, psi) / counts)[classes]
    freedom = len(psi) - len(counts)
    variance = psi.square().sum().item() / freedom / len(psi) + extra
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * variance**0.5
    return [max(figure - half, least), max(figure + half, least)]


def share_interval(share: float, count: int | float) -> Interval:
    """The interval of a share of `count` independent images (Wilson 1927), which has a width at 0 and 1 too."""
    square = float(ndtri((1 + LEVEL) / 2)) ** 2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = (square * (share * (1 - share) / count + square / (4 * count**2))) ** 0.5 / (1 + square / count)
    return [max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)]


def recall_interval(recall: float, count: int, lost: Counts) -> Interval:
    """The interval of the recall of `count` reference images, over the samples.

    The influence of a sample is what recall loses without it: `lost` is the number of reference images in its
    neighbourhood and in no other's. That the neighbourhoods of others then grow is left out, and to leave it out makes
    the interval rather too wide. It is never narrower than that of a share of `count` independent images.
    """
    deviation = lost.double() - lost.double().mean()
    variance = deviation.square().sum().item() / count**2
    return share_interval(
        recall, min(count, recall * (1 - recall) / variance) if variance > 0 and recall < 1 else count
    )


def frechet_influence(
    features: Images,
    samples: Moments,
    reference: Moments,
    root: Float[Tensor, "features features"],
    spectrum: Spectrum,
) -> Influence:
    """That of `frechet_distance`: 2 (m - m')^T y + y^T (1 - A) y, up to a constant, for y = x - m.

    A = C'^(1/2) (C'^(1/2) C C'^(1/2))^(-1/2) C'^(1/2) is the derivative of 2 tr (C C')^(1/2). With fewer images than
    features the inverse is that on the span of the samples, which contains every y.
    """
    values, vectors = spectrum
    positive = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    towards, scale = root @ vectors[:, positive], values[positive].rsqrt()
    blocks = []
    for block in features.split(ROWS):
        y = block.double() - samples.mean
        blocks.append(y.square().sum(1) + 2 * y @ (samples.mean - reference.mean) - (y @ towards).square() @ scale)
    return torch.cat(blocks)


def inception_influence(logits: Float[Tensor, "count classes"]) -> Influence:
    """That of the inception score I = exp E KL(p(y|x) || p(y)): I KL, up to a constant."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    divergence = (p * (log_p - p.mean(0).log())).sum(1)
    return divergence.mean().exp() * divergence


def diversity_interval(
    diversity: float, features: Images, labels: Labels, reference: Mapping[int, float]
) -> Interval | None:
    """The interval of the mean distance within classes over the reference's, for the classes of two images or more.

    A mean over pairs is a U-statistic, and this is its jackknife (Arvesen 1969), which takes three images of each
    class. With fewer in one, classes stand for images: their differences then count as noise. None for a single pair.
    """
    classes = {label: features[labels == label].double() for label in reference}
    classes = {label: rows for label, rows in classes.items() if len(rows) > 1}
    scale, total = sum(reference[label] for label in classes), sum(map(len, classes.values()))
    means = {label: mean_distances(rows, rows) * len(rows) / (len(rows) - 1) for label, rows in classes.items()}
    if min(map(len, classes.values())) < 3:
        of_classes = torch.stack([each.mean() for each in means.values()]) * len(means) / scale
        return interval(diversity, of_classes) if len(means) > 1 else None
    parts = [2 * each * total * (len(each) - 1) / (len(each) * (len(each) - 2) * scale) for each in means.values()]
    own = [torch.full((len(each),), label) for label, each in means.items()]
    return interval(diversity, torch.cat(parts), torch.cat(own))


def kernel_influence(features: Images, reference: Float[Tensor, "reference features"]) -> Influence:
    """That of KID, the unbiased MMD^2 of k(x, y) = (x^T y / features + 1)^3: 2 (E k(x, X) - E k(x, Y))."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    ours, real = features.double(), reference.double()
    alone = (ours.square().sum(1) / ours.shape[1] + 1) ** 3
    sums = torch.cat([kernel(block, ours).sum(1) for block in ours.split(ROWS)]) - alone
    return 2 * (sums / (len(ours) - 1) - torch.cat([kernel(block, real).mean(1) for block in ours.split(ROWS)]))


def rms_influence(squares: Float[Tensor, "count"]) -> Influence:
    """That of the root of the mean of `squares`: squares / (2 root), up to a constant; 0 where all are."""
    return squares / (2 * squares.mean().sqrt()).clamp(min=torch.finfo(squares.dtype).tiny)


def mean_distances(x: Images, y: Float[Tensor, "others features"]) -> Float[Tensor, "count"]:
    """The mean distance of each row of x to all of y."""
    return torch.cat([torch.cdist(block, y).mean(1) for block in x.split(ROWS)])
