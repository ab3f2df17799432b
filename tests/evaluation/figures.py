"""The figures of images against a reference, as an evaluation computes them."""

from torch import Tensor

from fewstep.evaluation.features import FeatureExtractor
from fewstep.evaluation.images import Reference
from fewstep.evaluation.metrics import Figures, figures_of
from fewstep.evaluation.statistics import Features, ReferenceStatistics


def final_figures(
    net: FeatureExtractor, *, images: Tensor, labels: Tensor, reference: Reference, kid: bool = False
) -> Figures:
    known = ReferenceStatistics.of(net, reference)
    return figures_of(Features.of(net, images), labels, known, net.num_classes, kid=kid)
