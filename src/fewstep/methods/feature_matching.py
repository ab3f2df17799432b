"""Hints (Romero et al. 2015): a student's features, through a learned projection, held near its teacher's."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.diffusion.prediction import Denoise
from fewstep.methods.base import Networks
from fewstep.methods.losses import Loss
from fewstep.methods.training import STUDENT
from fewstep.networks import Denoiser
from fewstep.networks.features import MiddleFeatures, network_of
from fewstep.system.seeds import reseed, seed_for

PROJECTION = "projection"  # the role of what feature matching trains beside the student


class FeatureMatching(nn.Module):
    """Error of the student's features: |P f_student - f_teacher|^2 / |f_teacher|^2, P a matrix learned beside it.

    Of a guided teacher, which is called on a doubled batch, the conditional half counts. P acts on channels and is no
    part of the model.
    """

    @classmethod
    def between(cls, student: Denoiser, teacher: Denoise, stream: str) -> "FeatureMatching":
        """Of a student and its guided teacher; the projection's first values follow from `stream`.

        Raises:
            ValueError: the teacher is no network, or is clipped.
        """
        network = network_of(teacher, "stage.feature_matching")
        reseed(seed_for(stream, "projection"), torch.device("cpu"))
        return cls(student, network)

    def __init__(self, student: Denoiser, teacher: Denoiser) -> None:
        super().__init__()
        self.student, self.teacher = MiddleFeatures(student), MiddleFeatures(teacher)
        self.projection = nn.Linear(self.student.channels, self.teacher.channels, bias=False)

    def forward(self) -> Float[Tensor, "batch"]:
        """The error of the latest calls, one number an example."""
        own, goal = self.student.take(), self.teacher.take().detach()
        return relative_error(self.projection, own, goal[: len(own)])


def with_feature_loss(losses: dict[str, Loss], nets: Networks, weight: float) -> dict[str, Loss]:
    """The losses with that of PROJECTION, where it is trained: `weight` times the error of the latest calls."""
    if PROJECTION in nets.trained:
        own = losses[STUDENT]
        losses[PROJECTION] = Loss(weight * nets.trained[PROJECTION](), own.t, own.w)
    return losses


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
