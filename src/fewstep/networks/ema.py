"""Exponential moving averages of a network's weights, each with a rule for its decay."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fewstep.diffusion.prediction import Condition, Prediction, Weights
from fewstep.diffusion.schedule import Batch, Images
from fewstep.networks.adapter import trained_parameters
from fewstep.networks.denoiser import Denoiser
from fewstep.networks.inputs import Scalars

DecayRule = Callable[[int], float]
"""Number of updates so far -> decay of the next one."""


def constant(decay: float) -> DecayRule:
    """The same decay at every update."""
    return lambda updates: decay


def ramped(decay: float) -> DecayRule:
    """min(decay, (1 + k) / (10 + k)) at update k: a young average follows quickly."""
    return lambda updates: min(decay, (1 + updates) / (10 + updates))


def bias_corrected(decay: float) -> DecayRule:
    """1 - (1 - decay) / (1 - decay^(k+1)) at update k: the mean of all weights so far, as if it began at none (TRACT).

    The first update copies the weights; later ones approach `decay`.
    """
    return lambda updates: 1 - (1 - decay) / (1 - decay ** (updates + 1))


class Average(nn.Module):
    """An average of a network's trained weights; as a Denoise it is frozen and in eval mode.

    Lightning's WeightAveraging is not used: torch's AveragedModel reads its counter on the host every step.

    Args:
        student: what is averaged; the average starts as its copy.
        rule: decay of each update; see `ramped` and `bias_corrected`.
    """

    def __init__(self, student: Denoiser, rule: DecayRule) -> None:
        super().__init__()
        self.network = deepcopy(student).requires_grad_(False).eval()
        self.rule = rule
        self.list_weights()

    def list_weights(self) -> None:
        """Find the averaged weights again, once they have been sharded: walking the modules each step takes longer."""
        self._weights: list[Tensor] = [*trained_parameters(self.network)]

    def update(self, weights: Sequence[Tensor], updates: int) -> None:
        """average <- decay * average + (1 - decay) * weights.

        Args:
            weights: the student's trained ones. updates: how many there were before.
        """
        get_ema_multi_avg_fn(self.rule(updates))(self._weights, [*weights], 0)

    @torch.no_grad()
    def forward(
        self, z: Images, log_snr: Batch, label: Condition, w: Weights | None = None, *, extra: Scalars | None = None
    ) -> Prediction:
        return self.network(z, log_snr, label, w, extra=extra)
