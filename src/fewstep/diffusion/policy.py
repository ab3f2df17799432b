"""Policies: what a network says once, at the start of a segment, and a denoiser at every later z of it.

A policy is a Gaussian mixture over the data x at each location, given z at its source (pi-Flow: Chen et al. 2025). At
another z and a time t below, by Bayes' rule,

    q(x) ~ q_source(x) p(z | x) / p(z_source | x)

which is a mixture again: the quotient is a Gaussian in x of precision snr_t - snr_source, so no network is needed.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.flow_map import log_snr_of
from fewstep.diffusion.prediction import Prediction, interpret
from fewstep.diffusion.sampler import ddim_step
from fewstep.diffusion.schedule import Batch, Images, alpha, angle, expand, sigma

SUBSTEPS = 8  # of a segment, with two evaluations of the policy each; pi-Flow has 128 simple ones of the whole time
Components = Float[Tensor, "batch components *shape"]
PerLocation = Float[Tensor, "batch components 1 *locations"]


class PolicyBase(ABC):
    """What is said once at a source (z, log-SNR) and gives a prediction at every later z.

    Attributes:
        substeps: of the way along it, where nobody says how many.
    """

    substeps: ClassVar[int] = SUBSTEPS
    z: Images
    log_snr: Batch

    @abstractmethod
    def at(self, z: Images, log_snr: Batch) -> Prediction:
        """The prediction at a z whose log-SNR is not below the source's."""

    def follow(self, log_snr_end: Batch, start: tuple[Images, Batch] | None = None, steps: int | None = None) -> Images:
        """z at the end of the way along the policy, from its source or from a later start (z, log-SNR).

        `steps` steps (`substeps` where None) of equal angle h by the midpoint rule, z - 2 sin(h / 2) v at the middle
        of a DDIM step: exact where x and eps stay the same, else of second order.
        """
        z, log_snr = start or (self.z, self.log_snr)
        steps = steps or self.substeps
        phi = angle(log_snr.double())
        half = (phi - angle(log_snr_end.double())) / (2 * steps)
        for step in range(steps):
            at, middle = (log_snr_of(phi - (2 * step + number) * half) for number in (0, 1))
            halfway = self.at(ddim_step(self.at(z, at), middle), middle)
            z = z - expand(2 * torch.sin(half), z) * halfway.v
        return z


@dataclass(frozen=True)
class Policy(PolicyBase):
    """q_source: at each location sum_k weight_k N(x; mean_k, std_k^2).

    A location is all of an example but its first axis: a pixel with its channels, or a whole point.

    Args:
        z, log_snr: the source.
        means: of the components. stds: of each, the same for all channels. log_weights: up to a constant.
    """

    z: Images
    log_snr: Batch
    means: Components
    stds: PerLocation
    log_weights: PerLocation

    def detach(self) -> "Policy":
        """The same policy as a constant."""
        return Policy(self.z, self.log_snr, self.means.detach(), self.stds.detach(), self.log_weights.detach())

    def at(self, z: Images, log_snr: Batch) -> Prediction:
        """The prediction E[x] of q at z, whose log-SNR is not below the source's.

        With u the x that the quotient observes, of precision D, and c_k = D / (1 + std_k^2 D), the precision with which
        component k foresees u, the component's posterior mean and weight are

            mean_k + std_k^2 c_k (u - mean_k),   weight_k c_k^(channels / 2) exp(-c_k |u - mean_k|^2 / 2)
        """
        precision = (log_snr.double().exp() - self.log_snr.double().exp()).clamp(min=1e-12)  # 0 at the source, as u is
        now, before = (alpha(each) / sigma(each).square() / precision for each in (log_snr, self.log_snr))
        off = (expand(now, z) * z - expand(before, z) * self.z)[:, None] - self.means
        variances, precision = self.stds.square(), expand(precision, self.stds)
        spread = 1 + precision * variances
        seen = precision / spread
        square = off.square().sum(2, keepdim=True)
        log_weights = self.log_weights - 0.5 * (off.shape[2] * spread.log() + seen * square)
        x = (log_weights.softmax(1) * torch.addcmul(self.means, variances * seen, off)).sum(1)
        return interpret("x", x, z=z, log_snr=log_snr)
