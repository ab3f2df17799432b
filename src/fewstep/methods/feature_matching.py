"""Hints (Romero et al. 2015): a student's features, through a learned projection, held near its teacher's."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.diffusion.prediction import Denoise
from fewstep.networks import Denoiser
from fewstep.networks.denoiser import arguments_of
from fewstep.networks.memory import denoisers_in
from fewstep.networks.smaller import middle
from fewstep.system.seeds import reseed, seed_for


class FeatureMatching(nn.Module):
    """Error of the student's features: |P f_student - f_teacher|^2 / |f_teacher|^2, P a matrix learned beside it.

    Both networks are watched in the middle (`networks.smaller.middle`) while they are called; of a guided teacher,
    which is called on a doubled batch, the conditional half counts. P acts on channels and is no part of the model.
    """

    @classmethod
    def between(cls, student: Denoiser, teacher: Denoise, stream: str) -> "FeatureMatching":
        """Of a student and its guided teacher; the projection's first values follow from `stream`.

        Raises:
            ValueError: the teacher is no network, or is clipped.
        """
        networks = list(denoisers_in(teacher))
        if len(networks) != 1:
            raise ValueError(
                "stage.feature_matching needs the features of a trained teacher, and this one is exact or clipped; use "
                "stage.feature_matching=0, or a trained teacher with stage.clip_target=false"
            )
        reseed(seed_for(stream, "projection"), torch.device("cpu"))
        return cls(student, networks[0])

    def __init__(self, student: Denoiser, teacher: Denoiser) -> None:
        super().__init__()
        self._seen: dict[str, Tensor] = {}
        for name, denoiser in (("student", student), ("teacher", teacher)):
            self._watch(name, denoiser)
            call_once(denoiser)
        self.projection = nn.Linear(self._channels("student"), self._channels("teacher"), bias=False)

    def _watch(self, name: str, denoiser: Denoiser) -> None:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            self._seen[name] = output[0] if isinstance(output, tuple) else output

        middle(denoiser.network).register_forward_hook(keep)

    def _channels(self, name: str) -> int:
        return channels_last(self._seen.pop(name)).shape[-1]

    def forward(self) -> Float[Tensor, "batch"]:
        """The error of the latest calls, one number an example."""
        own, goal = self._seen.pop("student"), self._seen.pop("teacher").detach()
        return relative_error(self.projection, own, goal[: len(own)])


@torch.no_grad()
def call_once(denoiser: Denoiser) -> None:
    """Call a denoiser on one empty example without a condition."""
    weight = next(denoiser.parameters())
    null = denoiser.null
    label = null[None].to(weight.device) if isinstance(null, Tensor) else torch.tensor([null], device=weight.device)
    nothing = torch.zeros(1, device=weight.device)
    denoiser(nothing.new_zeros(1, *arguments_of(denoiser.network)["shape"]), nothing, label, nothing)


def channels_last(features: Tensor) -> Tensor:
    """(batch, ..., channels) of maps (batch, channels, height, width); tokens and vectors are so already."""
    return features.movedim(1, -1) if features.ndim == 4 else features


def relative_error(projection: nn.Module, own: Tensor, goal: Tensor) -> Float[Tensor, "batch"]:
    """The projected features' squared distance to `goal`, over that of goal to 0; maps are pooled to its size."""
    if own.ndim == 4 and own.shape[2:] != goal.shape[2:]:
        height, width = goal.shape[2:]
        own = functional.adaptive_avg_pool2d(own, (height, width))
    goal = channels_last(goal).flatten(1)
    error = (projection(channels_last(own)).flatten(1) - goal).square().mean(1)
    return error / goal.square().mean(1).clamp(min=1e-12)
