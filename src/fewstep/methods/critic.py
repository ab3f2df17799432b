"""A critic: heads on a network's features, which tell what a student makes from what is real."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.diffusion.prediction import Condition, Prediction, Weights
from fewstep.networks import Denoiser
from fewstep.networks.features import MiddleFeatures, block_features

CRITIC = "critic"  # the role of what tells samples from real ones
Maps = Float[Tensor, "batch _ _"]  # places and channels of one block
Logits = Float[Tensor, "batch heads"]


class Critic(nn.Module):
    """A small head on each of some blocks of a denoiser: at every place of the block's map a logit, high for real ones.

    Args:
        denoiser: whose features are judged: frozen, or trained beside the critic; no part of this module.
        every_block: whether each of its blocks has a head, or its middle alone.

    Raises:
        ValueError: the model has several networks.
    """

    def __init__(self, denoiser: Denoiser, *, every_block: bool = False) -> None:
        super().__init__()
        watched = block_features(denoiser) if every_block else [MiddleFeatures(denoiser)]
        self.judged = (denoiser, watched)  # in a tuple, so that it is no submodule
        self.heads = nn.ModuleList(head(each.channels) for each in watched)

    def forward(self) -> Float[Tensor, "batch"]:
        """One logit an example of the denoiser's latest call, the mean over heads."""
        return self.logits(self.take()).mean(1)

    def take(self) -> list[Maps]:
        """The features of the denoiser's latest call, once, a map for each head."""
        return [flat(each.take()) for each in self.judged[1]]

    def features(self, noised: Prediction, label: Condition, w: Weights | None) -> list[Maps]:
        """The features of noised data, in a call of their own."""
        denoiser = self.judged[0]
        if (device := noised.z.device) != next(denoiser.parameters()).device:
            denoiser.to(device)
        prediction, found = denoiser(noised.z, noised.log_snr, label, w), self.take()
        # The weights of a sharded network are gathered again where its backward pass begins, at the output.
        if hasattr(next(denoiser.parameters()), "full_tensor"):
            found = [each + 0 * prediction.v.sum() for each in found]
        return found

    def logits(self, features: Sequence[Maps]) -> Logits:
        """Of each example and head the mean over places."""
        return torch.cat([own(each).mean(1) for own, each in zip(self.heads, features, strict=True)], dim=1)


def head(width: int) -> nn.Sequential:
    """From the features of a place to its logit."""
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


def flat(features: Float[Tensor, "batch *places channels"]) -> Maps:
    """Features with one dimension of places, in float32."""
    features = features.float() if features.dtype == torch.bfloat16 else features
    return features.flatten(1, -2) if features.ndim > 2 else features[:, None]
