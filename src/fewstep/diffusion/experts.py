"""Mixtures of Gaussian experts: what one evaluation of a network says of all data x given the condition.

q(x) = sum_k gate_k q_k(x) with q_k = N(mean_k, L_k L_k^T). An expert's responsibility for x is
r_k(x) = gate_k q_k(x) / q(x). Examples are flat here: dim is the number of their values.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import log, pi
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.policy import PolicyBase
from fewstep.diffusion.prediction import Prediction, interpret
from fewstep.diffusion.schedule import Batch, Images, alpha, sigma

Points = Float[Tensor, "*points batch dim"]
PerExpert = Float[Tensor, "*points batch experts"]


@dataclass(frozen=True)
class Experts:
    """The mixture of each example of a batch.

    Args:
        means: of the experts. factors: lower triangular L with a positive diagonal. log_gates: of probabilities.
    """

    means: Float[Tensor, "batch experts dim"]
    factors: Float[Tensor, "batch experts dim dim"]
    log_gates: Float[Tensor, "batch experts"]

    def detach(self) -> "Experts":
        """The same mixture as a constant."""
        return Experts(self.means.detach(), self.factors.detach(), self.log_gates.detach())

    @property
    def log_determinants(self) -> Float[Tensor, "batch experts"]:
        """log det L of each expert: half that of its covariance."""
        return self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @cached_property
    def _inverses(self) -> Float[Tensor, "batch experts dim dim"]:
        unit = torch.eye(self.means.shape[-1], dtype=self.means.dtype, device=self.means.device)
        return torch.linalg.solve_triangular(self.factors, unit.expand_as(self.factors), upper=False)

    def log_joint(self, x: Points) -> PerExpert:
        """log gate_k q_k(x)."""
        white = torch.einsum("bkij,...bkj->...bki", self._inverses, x[..., None, :] - self.means)
        normaliser = self.log_determinants + 0.5 * x.shape[-1] * log(2 * pi)
        return self.log_gates - 0.5 * white.square().sum(-1) - normaliser

    def log_density(self, x: Points) -> Float[Tensor, "*points batch"]:
        """log q(x)."""
        return self.log_joint(x).logsumexp(-1)

    def log_responsibilities(self, x: Points) -> PerExpert:
        """log r_k(x)."""
        return self.log_joint(x).log_softmax(-1)

    def entropies(self) -> Float[Tensor, "batch experts"]:
        """H(q_k) of each expert."""
        return self.log_determinants + 0.5 * self.means.shape[-1] * (1 + log(2 * pi))

    def of_each(self, eps: Float[Tensor, "samples experts batch dim"]) -> Float[Tensor, "samples experts batch dim"]:
        """Samples of every expert, mean_k + L_k eps, differentiable in both."""
        return self.means.movedim(1, 0) + torch.einsum("bkij,nkbj->nkbi", self.factors, eps)

    def draw(self, uniform: Float[Tensor, "batch"], eps: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """A sample of each mixture: the expert in whose part of [0, 1) `uniform` falls, at mean + L eps."""
        chosen = (self.log_gates.exp().cumsum(-1) <= uniform[:, None]).sum(-1).clamp(max=self.means.shape[1] - 1)
        each = torch.arange(len(chosen), device=chosen.device)
        return self.means[each, chosen] + torch.einsum("bij,bj->bi", self.factors[each, chosen], eps)


def expert_error(experts: Experts, x: Points, score: Points) -> Float[Tensor, "batch"]:
    """What the experts minimise: -sum_k gate_k ( E_k [ score(x) . x + log r_k(x) ] + H(q_k) ) (VDD).

    The gates before the bracket, the score and the parameters of r_k are constants; x moves with its expert. The
    gradient is that of KL(q || p), for d log r_k / dx adds to the entropy of one expert what makes it that of all.

    Args:
        x: (samples, experts, batch, dim), of `Experts.of_each`. score: of the teacher's density p there.
    """
    constant = experts.detach()
    own = constant.log_responsibilities(x).diagonal(dim1=1, dim2=-1)  # of the expert that made x: samples, batch, k
    gain = (score.detach() * x).sum(-1).movedim(1, -1)
    value = (gain + own).mean(0) + experts.entropies()
    return -(constant.log_gates.exp() * value).sum(-1)


def gate_error(experts: Experts, x: Points) -> Float[Tensor, "*points batch"]:
    """The cross-entropy of the gates to the experts' responsibilities for data x, which are constants (VDD)."""
    responsibilities = experts.detach().log_responsibilities(x).exp()
    return -(responsibilities * experts.log_gates).sum(-1)


@dataclass(frozen=True)
class ExpertPolicy(PolicyBase):
    """The mixture as a policy from pure noise: the flow of its exact denoiser takes z to a sample of it.

    Args:
        z, log_snr: the source, which says nothing of x. experts: of the same batch.
    """

    substeps: ClassVar[int] = 64  # no network is evaluated in them

    z: Images
    log_snr: Batch
    experts: Experts

    def at(self, z: Images, log_snr: Batch) -> Prediction:
        """E[x | z] where z = alpha x + sigma eps and x is of the mixture (Bishop 2006, section 2.3.3); in float64."""
        a, s = (each(log_snr.double())[:, None, None] for each in (alpha, sigma))
        means, factors = self.experts.means.double(), self.experts.factors.double()
        covariances = factors @ factors.mT
        noised = (a * a)[..., None] * covariances
        noised.diagonal(dim1=-2, dim2=-1).add_(s * s)
        here = Experts(a * means, torch.linalg.cholesky(noised), self.experts.log_gates.double())
        flat = z.flatten(1).double()
        off = (flat[:, None] - here.means)[..., None]
        posterior = means + a * (covariances @ torch.cholesky_solve(off, here.factors))[..., 0]
        x = (here.log_responsibilities(flat).exp()[..., None] * posterior).sum(1)
        return interpret("x", x.reshape(z.shape).to(z.dtype), z=z, log_snr=log_snr)

    def detach(self) -> "ExpertPolicy":
        """The same policy as a constant."""
        return replace(self, experts=self.experts.detach())
