"""The three forms that a method's loss takes: regress to a target, pull along a direction, or please a judge.

Each gives one number an example; a role's loss is their mean.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.diffusion.loss import GUIDANCE_WEIGHTS, WEIGHTS, weighted_error
from fewstep.diffusion.prediction import Prediction, Weights
from fewstep.diffusion.schedule import Images
from fewstep.methods.training import Training


@dataclass(frozen=True)
class Loss:
    """A role's loss on a batch: the error of each example, at its time and guidance weight (None without one)."""

    error: Float[Tensor, "batch"]
    t: Float[Tensor, "batch"]
    w: Weights | None = None


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
    if w is not None:
        total = w if w.ndim == 1 else w.sum(1)  # of two weights, as the guided target grows with both
        error = error * GUIDANCE_WEIGHTS[training.guidance_weight](total)
    return Loss(error, t, w)


def pull(x: Images, direction: Images, *, t: Float[Tensor, "batch"], w: Weights | None) -> Loss:
    """Half the squared distance of x to sg(x - direction), whose gradient in x is `direction` over the values' number.

    A generator so moves along -direction, whatever that was computed from (Yin et al. 2024, eq. 7).
    """
    goal = (x - direction).detach()
    return Loss(0.5 * (x - goal).square().flatten(1).mean(1), t, w)


def judge_generated(logits: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """softplus(-logit): small where the judge takes a sample for real (Goodfellow et al. 2014, non-saturating)."""
    return functional.softplus(-logits)


def judge(real: Float[Tensor, "batch"], generated: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """softplus(-real) + softplus(generated): the judge's own loss, log 2 + log 2 where it cannot tell them apart."""
    return functional.softplus(-real) + functional.softplus(generated)


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
