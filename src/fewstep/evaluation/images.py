"""The images that figures are computed of: uint8, exactly as they would be saved; or points."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.system.files import tensor_digest

EvaluationImages = UInt8[Tensor, "batch channels height width"] | Float[Tensor, "batch dim"]


def to_uint8(x: Float[Tensor, "batch channels height width"], facts: DataFacts) -> UInt8[Tensor, "..."]:
    """Clamp to the data's range, scale it to 0..255 and round; the one conversion of samples to pixels.

    Raises:
        ValueError: a value is not finite, which pixels would hide.
    """
    _require_finite(x)
    unit = x.float().clamp(facts.low, facts.high).sub_(facts.low).div_(facts.high - facts.low)
    return unit.mul_(255).round_().to(torch.uint8)  # in place: a reference may be half a gigabyte


def evaluation_tensor(x: Float[Tensor, "batch *shape"], facts: DataFacts) -> EvaluationImages:
    """Samples as figures take them: images by `to_uint8`, points as float32, clamped and finite like them."""
    if facts.is_image:
        return to_uint8(x, facts)
    _require_finite(x)
    return x.float().clamp(facts.low, facts.high)


def image_path(facts: DataFacts) -> str:
    """The conversion of samples to evaluation images, in words, for the protocol."""
    if facts.latent is not None:
        return f"decode by AutoencoderKL {facts.latent.sha256[:12]}, {image_path(facts.pixels)}"
    return f"clamp to [{facts.low:g}, {facts.high:g}], " + ("round to uint8" if facts.is_image else "float32")


def _require_finite(x: Tensor) -> None:
    count = int((~torch.isfinite(x.flatten(1)).all(1)).sum())
    if count:
        raise ValueError(
            f"samples must be finite to be evaluated, {count} of {len(x)} are not; the model diverged, train again"
        )


@dataclass(frozen=True)
class Reference:
    """The real images that figures compare with, one label each, of a split that no model is trained on."""

    split: str
    images: EvaluationImages
    labels: Int[Tensor, "labels"]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"reference needs one label per image: {len(self.images)} images, {len(self.labels)} labels"
            )

    @property
    def digest(self) -> str:
        """sha256 of images and labels."""
        return tensor_digest({"images": self.images, "labels": self.labels})
