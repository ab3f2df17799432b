"""x, eps and v: three readings of one network output, kept as v, the one that is stable at both ends.

v = alpha eps - sigma x, hence x = alpha z - sigma v and eps = sigma z + alpha v (Salimans & Ho 2022, section 4).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from fewstep.diffusion.schedule import Batch, Images, alpha, expand, sigma

PredictionKind = Literal["x", "eps", "v"]
KINDS: tuple[PredictionKind, ...] = ("x", "eps", "v")


@dataclass(frozen=True)
class Prediction:
    """What is believed about a noised z of log-SNR `log_snr`; `v` fixes it, `x` and `eps` follow."""

    z: Images
    v: Images
    log_snr: Batch

    @property
    def x(self) -> Images:
        """Predicted data."""
        return expand(alpha(self.log_snr), self.z) * self.z - expand(sigma(self.log_snr), self.z) * self.v

    @property
    def eps(self) -> Images:
        """Predicted noise."""
        return expand(sigma(self.log_snr), self.z) * self.z + expand(alpha(self.log_snr), self.z) * self.v

    def clip(self, low: float, high: float) -> "Prediction":
        """The prediction whose x is held inside the data's range; eps follows the clipped x."""
        return interpret("x", self.x.clamp(low, high), z=self.z, log_snr=self.log_snr)


Condition = Int[Tensor, "batch"] | Float[Tensor, "batch tokens features"] | Float[Tensor, "batch *shape"]
"""What is asked for, called `label` everywhere: the class of each example, the embedding of each prompt, or the
degraded image of the shape of the data that each example is to be restored from."""

Weights = Float[Tensor, "batch *strengths"]
"""The guidance weight of each example: (batch,), or (batch, 2) where each of two conditions has its own."""

Denoise = Callable[[Images, Batch, Condition, Weights | None], Prediction]
"""(z, log_snr, label, w) -> Prediction: a network, the exact mixture, or either of them guided."""


@dataclass(frozen=True)
class Clipped:
    """A teacher whose every predicted x is held inside the data's range (low, high): for clipped targets.

    The paper's own choice is not known. Free targets are the default: all of this library's identities hold for them.
    """

    denoise: Denoise
    low: float
    high: float

    def __call__(self, z: Images, log_snr: Batch, label: Condition, w: Weights | None) -> Prediction:
        return self.denoise(z, log_snr, label, w).clip(self.low, self.high)


def interpret(kind: PredictionKind, output: Images, *, z: Images, log_snr: Batch) -> Prediction:
    """Read `output` as x, eps or v at z.

    Reading as eps divides by alpha and so loses all meaning at zero SNR; reading as x divides by sigma, harmlessly
    for x itself (Salimans & Ho 2022, section 4).

    Raises:
        ValueError: `kind` is none of x, eps, v.
    """
    if kind == "v":
        return Prediction(z=z, v=output, log_snr=log_snr)
    a, s = expand(alpha(log_snr), z), expand(sigma(log_snr), z)
    match kind:
        case "x":
            v = (a * z - output) / s
        case "eps":
            v = (output - s * z) / a
        case _:
            raise ValueError(f"prediction must be one of {', '.join(KINDS)}, got {kind!r}")
    return Prediction(z=z, v=v, log_snr=log_snr)


def diffuse(*, x: Images, eps: Images, log_snr: Batch) -> Prediction:
    """Noise x to z = alpha x + sigma eps (Meng et al. 2023, section 2), and keep the truth: `.z` is the noised data,
    `.x` and `.eps` are what a perfect prediction would say."""
    a, s = expand(alpha(log_snr), x), expand(sigma(log_snr), x)
    return Prediction(z=a * x + s * eps, v=a * eps - s * x, log_snr=log_snr)
