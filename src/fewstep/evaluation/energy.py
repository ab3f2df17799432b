"""The energy distance of samples to exact ones, beside that of two exact sets."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.evaluation.intervals import Interval, interval, mean_distances, strata

Points = Float[Tensor, "count dim"]


class Energy(NamedTuple):
    """An energy distance, its interval over both sets, and the expected distance of two exact sets of as many."""

    distance: float
    interval: Interval
    floor: float


def energy_distance(samples: Points, exact: Points, labels: Int[Tensor, "count"]) -> Energy:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets, not its root (Szekely & Rizzo 2013); point i is of `labels[i]`.

    The means are over all pairs, those of a point with itself too, so that the distance is 0 for equal sets and above
    0 for others. Of two independent exact sets all terms cancel in expectation but those that a point with itself
    lacks: 2 / n times the mean distance of two points of one class, which the exact set's own pairs estimate.
    """
    x, y = samples.double(), exact.double()
    x_y, x_x, y_x, y_y = (mean_distances(*pair) for pair in ((x, y), (x, x), (y, x), (y, y)))
    distance = max((2 * x_y.mean() - x_x.mean() - y_y.mean()).item(), 0.0)
    classes = strata(labels)
    # Twice the influences, for the variances of two sets add up: n images each, but interval() counts 2 n.
    influence = 4 * torch.cat([x_y - x_x, y_x - y_y])
    of_classes = [y[classes == each] for each in classes.unique()]
    within = [mean_distances(own, own).sum() / (1 - 1 / len(own)) for own in of_classes]
    floor = 2 * torch.stack(within).sum().item() / len(y) ** 2
    return Energy(distance, interval(distance, influence, torch.cat([classes, classes + len(within)])), floor)
