"""The Vendi score: how many different images a set is worth (Friedman & Dieng 2023)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.evaluation.intervals import Influence, Interval, interval
from fewstep.evaluation.statistics import Images

VENDI_IMAGES = 100  # of a class, its first: the score grows with their number, and its cost with the third power


class Vendi(NamedTuple):
    """A Vendi score and the influence of each of its images, up to a constant."""

    score: float
    influence: Influence


def vendi(kernel: Float[Tensor, "count count"]) -> Vendi:
    """exp(-sum_k l_k log l_k) of the eigenvalues l_k of K / n: n for n images that share nothing, 1 for equal ones.

    With weights p the matrix is K_ij sqrt(p_i p_j), whose eigenvalues move by dl_k = l_k u_ki^2 dp_i / p_i. So the
    influence of image i is -n V sum_k u_ki^2 l_k log l_k.

    Args:
        kernel: similarities K, symmetric, positive semi-definite, with ones on the diagonal.
    """
    values, vectors = torch.linalg.eigh(kernel / len(kernel))
    entropies = -torch.special.xlogy(values.clamp(min=0), values.clamp(min=0))
    score = entropies.sum().exp()
    return Vendi(score.item(), len(kernel) * score * vectors.square() @ entropies)


def gaussian_kernel(features: Images, scale: float) -> Float[Tensor, "count count"]:
    """exp(-|x - y|^2 / (2 scale^2)), which unlike the cosine does not ask where the origin of the features is."""
    rows = features.double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")  # exactly 0 for equal images
    return (-0.5 * (distances / scale).square()).exp()


def vendi_within_classes(
    features: Images, labels: Int[Tensor, "count"], scales: Mapping[int, float]
) -> tuple[float, Interval] | None:
    """The mean over classes of the Vendi score of each one's first VENDI_IMAGES images, and its interval.

    Args:
        scales: the kernel's of each class: the mean distance of two images of it in the reference. Classes without one
            or with fewer than two images are left out, as are scales of 0; None if no class is left.
    """
    places = [(labels == label).nonzero()[:VENDI_IMAGES, 0] for label in scales]
    own = [(rows, scale) for rows, scale in zip(places, scales.values(), strict=True) if len(rows) > 1 and scale > 0]
    if not own:
        return None
    classes = [vendi(gaussian_kernel(features[rows], scale)) for rows, scale in own]
    total = sum(len(rows) for rows, _ in own)
    score = sum(each.score for each in classes) / len(classes)
    parts = [each.influence * total / (len(each.influence) * len(classes)) for each in classes]
    own_labels = [torch.full_like(rows, number) for number, (rows, _) in enumerate(own)]
    return score, interval(score, torch.cat(parts), torch.cat(own_labels), least=1.0)
