"""The three forms that a method's loss takes: regress to a target, pull along a direction, or please a judge.

Each gives one number an example; a role's loss is their mean.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.diffusion.loss import GUIDANCE_WEIGHTS, WEIGHTS, weighted_error
from fewstep.diffusion.prediction import Prediction, Weights
from fewstep.diffusion.schedule import Images
from fewstep.methods.training import Training


class Verdict(NamedTuple):
    """A critic's logits of a step, which it wants high for what is real and low for what is generated."""

    real: Float[Tensor, "*batch"]
    generated: Float[Tensor, "*batch"]


@dataclass(frozen=True)
class Loss:
    """A role's loss on a batch: the error of each example, at its time and guidance weight (None without one).

    Attributes:
        verdict: of a critic its logits, of real and of generated examples, which diagnostics look at.
    """

    error: Float[Tensor, "batch"]
    t: Float[Tensor, "batch"]
    w: Weights | None = None
    verdict: Verdict | None = None

    def detach(self) -> "Loss":
        """The same without gradients."""
        verdict = self.verdict and Verdict(self.verdict.real.detach(), self.verdict.generated.detach())
        return Loss(self.error.detach(), self.t, self.w, verdict)


def regress(
    prediction: Prediction,
    target: Prediction,
    training: Training,
    *,
    t: Float[Tensor, "batch"],
    w: Weights | None,
    metric: str = "l2",
) -> Loss:
    """The distance to a fixed target, weighted over the noise and over w as `training` says."""
    error = weighted_error(prediction, target, WEIGHTS[training.weight], metric)
    return Loss(weighted_over_w(error, training.guidance_weight, w), t, w)


def weighted_over_w(error: Float[Tensor, "batch"], weight: str, w: Weights | None) -> Float[Tensor, "batch"]:
    """The error times one of GUIDANCE_WEIGHTS; of two weights w their sum, as the guided target grows with both."""
    if w is None:
        return error
    return error * GUIDANCE_WEIGHTS[weight](w if w.ndim == 1 else w.sum(1))


def pull(x: Images, direction: Images, *, t: Float[Tensor, "batch"], w: Weights | None) -> Loss:
    """Half the squared distance of x to sg(x - direction), whose gradient in x is `direction` over the values' number.

    A generator so moves along -direction, whatever that was computed from (Yin et al. 2024, eq. 7).
    """
    goal = (x - direction).detach()
    return Loss(0.5 * (x - goal).square().flatten(1).mean(1), t, w)


def judge_generated(logits: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """softplus(-logit): small where the judge takes a sample for real (Goodfellow et al. 2014, non-saturating)."""
    return functional.softplus(-logits)


def judge(real: Float[Tensor, "*batch"], generated: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """softplus(-real) + softplus(generated): the judge's own loss, log 2 + log 2 where it cannot tell them apart."""
    return functional.softplus(-real) + functional.softplus(generated)


def hinge_generated(logits: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """1 - logit: the generator's -logit of Lim & Ye (2017) and ADD, but for the constant, with which it is 0 at a
    judge's margin."""
    return 1 - logits


def hinge(real: Float[Tensor, "*batch"], generated: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """max(0, 1 - real) + max(0, 1 + generated): the judge's own loss, 2 where it cannot tell them apart."""
    return functional.relu(1 - real) + functional.relu(1 + generated)


ADVERSARIAL = {"softplus": (judge, judge_generated), "hinge": (hinge, hinge_generated)}
"""Form -> the loss of the judge, of its logits for real and generated ones; and of the generator, of the latter."""


def gradient_penalty(
    logits: Float[Tensor, "batch heads"], inputs: Sequence[Float[Tensor, "batch *shape"]]
) -> Float[Tensor, "batch"]:
    """R1 (Mescheder et al. 2018), |d logit / d input|^2 summed over all inputs, of each head in its own.

    Args:
        inputs: of the heads, with gradients; each head sees one of them (Sauer et al. 2023, ADD).
    """
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return torch.stack([each.square().flatten(1).sum(1) for each in gradients]).sum(0)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Let gradients pass through these modules, and none into their weights, in what is computed inside the block."""
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
