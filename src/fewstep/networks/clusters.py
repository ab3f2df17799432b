"""Clusters of a network's features: prototypes that learn from balanced assignments to themselves.

Guided Diffusion from Self-Supervised Diffusion Features (Hu et al. 2023, 2312.08825) after SwAV (Caron et al. 2020).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Scores = Float[Tensor, "batch clusters"]

EPS = 0.05  # entropy of the assignment
ITERATIONS = 3
TEMPERATURE = 0.1  # of what is compared with it
PROJECTED = 128  # size of the features that prototypes are compared with


@torch.no_grad()
def sinkhorn(scores: Scores, eps: float = EPS, iterations: int = ITERATIONS) -> Scores:
    """The assignment Q ~ exp(scores / eps), scaled in turns until clusters are equally large and each row sums to 1.

    It tends to the Q that maximises <Q, scores> + eps H(Q) among those (Cuturi 2013); float64. Rows are scaled last, so
    that their sums are exact after any number of iterations, and the clusters' sizes nearly equal.
    """
    log_q = scores.double() / eps
    for _ in range(iterations):
        log_q = log_q.log_softmax(0)
        log_q = log_q.log_softmax(1)
    return log_q.exp()


def cluster_error(scores: Scores) -> Float[Tensor, "batch"]:
    """Cross-entropy of softmax(scores / 0.1) to the balanced assignment of the same scores, sg(sinkhorn(scores))."""
    return -(sinkhorn(scores).to(scores) * functional.log_softmax(scores / TEMPERATURE, dim=1)).sum(1)


class Prototypes(nn.Module):
    """Cosines of projected features to one vector for each cluster; the arg-max is a feature's cluster.

    Args:
        channels: of the features. clusters: their number, K.
    """

    def __init__(self, channels: int, clusters: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU(), nn.Linear(channels, PROJECTED)
        )
        self.prototypes = nn.Parameter(torch.randn(clusters, PROJECTED))

    def forward(self, features: Float[Tensor, "batch channels"]) -> Scores:
        return functional.normalize(self.head(features), dim=1) @ functional.normalize(self.prototypes, dim=1).T
