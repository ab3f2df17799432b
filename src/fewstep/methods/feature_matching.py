"""Hints (Romero et al. 2015): a student's features or attention, through a learned projection, near its teacher's."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.diffusion.prediction import Denoise
from fewstep.methods.base import Networks
from fewstep.methods.losses import Loss
from fewstep.methods.training import STUDENT
from fewstep.networks import Denoiser
from fewstep.networks.features import MiddleAttention, MiddleFeatures, network_of
from fewstep.system.seeds import reseed, seed_for

PROJECTION, ATTENTION = "projection", "attention"  # the roles of what matching trains beside the student
SETTINGS = {PROJECTION: "feature_matching", ATTENTION: "attention_matching"}
WATCHED: dict[str, type[MiddleFeatures]] = {PROJECTION: MiddleFeatures, ATTENTION: MiddleAttention}


class FeatureMatching(nn.Module):
    """Error of the student's features: |P f_student - f_teacher|^2 / |f_teacher|^2, P a matrix learned beside it.

    The features are those of the middle, or what the self-attention nearest to it adds, which Lee et al. 2023
    (2312.04005) found to be worth the most in distilling smaller U-Nets. Of a guided teacher, which is called on a
    doubled batch, the conditional half counts. P acts on channels and is no part of the model.
    """

    @classmethod
    def between(cls, student: Denoiser, teacher: Denoise, stream: str, role: str = PROJECTION) -> "FeatureMatching":
        """Of a student and its guided teacher; the projection's first values follow from `stream`.

        Args:
            role: PROJECTION for features, ATTENTION for attention.

        Raises:
            ValueError: the teacher is no network, or is clipped; or see below.
        """
        network = network_of(teacher, f"stage.{SETTINGS[role]}")
        reseed(seed_for(stream, role), torch.device("cpu"))
        return cls(student, network, WATCHED[role])

    def __init__(self, student: Denoiser, teacher: Denoiser, watched: type[MiddleFeatures] = MiddleFeatures) -> None:
        """Watch both.

        Raises:
            ValueError: there is nothing of the kind to watch, or sequences of other lengths, which cannot be compared.
        """
        super().__init__()
        self.student, self.teacher = watched(student), watched(teacher)
        own, goal = self.student.places, self.teacher.places
        if len(own) == 1 and own != goal:
            raise ValueError(
                f"matching compares place by place, and the student has {own[0]} in its middle, its teacher {goal[0]}; "
                "use a student of as many levels, or none of it"
            )
        self.projection = nn.Linear(self.student.channels, self.teacher.channels, bias=False)

    def forward(self) -> Float[Tensor, "batch"]:
        """The error of the latest calls, one number an example."""
        own, goal = self.student.take(), self.teacher.take().detach()
        return relative_error(self.projection, own, goal[: len(own)])


def with_feature_loss(losses: dict[str, Loss], nets: Networks, weights: Mapping[str, float]) -> dict[str, Loss]:
    """The losses with those of the roles that match features: weight times the error of the latest calls."""
    own = losses[STUDENT]
    return losses | {role: Loss(weight * nets.trained[role](), own.t, own.w) for role, weight in weights.items()}


def relative_error(
    projection: nn.Module,
    own: Float[Tensor, "batch *places channels"],
    goal: Float[Tensor, "batch *others goal_channels"],
) -> Float[Tensor, "batch"]:
    """The projected features' squared distance to `goal`, over that of goal to 0; maps are pooled to its size."""
    if own.ndim == 4 and own.shape[1:3] != goal.shape[1:3]:
        height, width = goal.shape[1:3]
        own = functional.adaptive_avg_pool2d(own.movedim(-1, 1), (height, width)).movedim(1, -1)
    goal = goal.flatten(1)
    error = (projection(own).flatten(1) - goal).square().mean(1)
    return error / goal.square().mean(1).clamp(min=1e-12)
