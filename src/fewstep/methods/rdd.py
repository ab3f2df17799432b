"""Relational diffusion distillation: progressive targets, compared in a frozen network's features and relations."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from fewstep.diffusion.prediction import Condition, Prediction, diffuse
from fewstep.distributed.collectives import all_gather_rows, all_gather_rows_with_gradient
from fewstep.methods.base import Networks, Times, Weights
from fewstep.methods.critic import CRITIC, flat
from fewstep.methods.draws import Draws
from fewstep.methods.losses import Loss
from fewstep.methods.progressive import Progressive
from fewstep.methods.training import STUDENT
from fewstep.networks import Denoiser
from fewstep.networks.features import MiddleFeatures, network_of
from fewstep.system.seeds import reseed, seed_for
from fewstep.system.validation import AtLeastOne, NotNegative, Positive

HEAD = "head"  # the role of the projection that the memory is compared through
FEATURE_TIME = 0.5  # the level at which every teacher of a ladder was trained, whatever its even number of steps
TEACHER_TEMPERATURE, MEMORY_TEMPERATURE = 0.9, 0.1
Maps = Float[Tensor, "batch places channels"]


@dataclass(frozen=True, kw_only=True)
class RDD(Progressive):
    """Relational diffusion distillation (Feng et al. 2024): the target is progressive distillation's, the loss is not.

    With features Phi of the predicted x (the target's goal, the student's own) at each place of a map:

        KL(softmax(goal / 0.9) || softmax(own))                     over channels, the teacher alone softened
        + KL of softmax_j(goal_i . goal_j) to that of own           over the examples j of the batch
        + memory KL of softmax_j(goal . m_j / 0.1) to head(own)'s   over a memory m of earlier goals

    where the relations are of features of length 1. The first and the last are not zero where own = goal: the least of
    the first is at own = goal / 0.9, which makes features sharper.

    Phi is the teacher's own network in its middle, at x noised to t = 1/2 with the same noise for both: every teacher
    of a ladder knows that level. The authors take a classifier; of the one that we have, FID is made, and a student
    that was trained on what it is judged by would tell nothing. What it costs is counted: four of nine evaluations.

    Args:
        features: weight of the three terms together; 0 makes it progressive distillation, more needs a trained teacher.
        pixels: weight of progressive distillation's own loss, which the authors leave out.
        memory: weight of the memory's term among the three.
        queue: places that the memory keeps. contrasts: of them, evenly spaced, are compared with. enqueued: a step.
        The rest: see `Progressive`; `training.roles` needs head where there are features.

    Raises:
        ValueError: no loss at all, a weight out of range, or sizes of the memory that do not fit each other.
    """

    paper: ClassVar[str] = "Feng et al. 2024 (2410.07679)"
    optional_roles: ClassVar[tuple[str, ...]] = (HEAD, CRITIC)
    certainty: ClassVar[str] = (
        "the losses are sure, read in the authors' code; ours: the teacher's own features in the place of a "
        "classifier's, the head's layers, w as an input"
    )

    name: str = "rdd"
    features: NotNegative = 1.0
    pixels: NotNegative = 0.0
    memory: Positive = 0.1
    queue: AtLeastOne = 20_000
    contrasts: AtLeastOne = 512
    enqueued: AtLeastOne = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features + self.pixels == 0:
            raise ValueError("stage.features and stage.pixels must not both be 0: one of them says what is compared")
        if max(self.contrasts, self.enqueued) > self.queue:
            raise ValueError(
                "stage.contrasts and stage.enqueued must be at most stage.queue, got "
                f"{self.contrasts}, {self.enqueued} and {self.queue}"
            )
        for role in self.roles:
            self.training.of_role(role)

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, *((HEAD,) if self.features else ()), *self.judge_roles)

    def networks(self, nets: Networks, stream: str) -> Networks:
        nets = super().networks(nets, stream)
        if not self.features:
            return nets
        reseed(seed_for(stream, HEAD), torch.device("cpu"))
        memory = Memory(network_of(nets.teacher, "stage.features"), self.queue)
        return replace(nets, trained={HEAD: memory, **nets.trained})

    def compare(
        self,
        prediction: Prediction,
        target: Prediction,
        *,
        t: Times,
        w: Weights | None,
        label: Condition,
        nets: Networks,
        draws: Draws,
        step: int,
    ) -> dict[str, Loss]:
        losses = super().compare(prediction, target, t=t, w=w, label=label, nets=nets, draws=draws, step=step)
        error = self.pixels * losses[STUDENT].error
        if not self.features:
            return {STUDENT: Loss(error, t, w)}
        memory = nets.trained[HEAD]
        assert isinstance(memory, Memory)
        log_snr, eps = nets.schedule.log_snr(torch.full_like(t, FEATURE_TIME)), draws.normal()
        own, goal = (
            memory.features(diffuse(x=each.x, eps=eps, log_snr=log_snr), label, w) for each in (prediction, target)
        )
        relations = feature_error(own, goal) + batch_error(own, goal)
        remembered = memory_error(memory(own), goal, memory.contrasts(self.contrasts))
        memory.enqueue(goal, self.enqueued, step)
        return {
            STUDENT: Loss(error + self.features * relations, t, w),
            HEAD: Loss(self.features * self.memory * remembered, t, w),
        }


class Memory(nn.Module):
    """A queue of a frozen network's features, of length 1, and the head through which a student's are compared to it.

    At first it holds random directions. The queue is a buffer, the same on all processes, and the places that a step
    writes follow from the step's number: a checkpoint holds all there is to it.

    Args:
        denoiser: the frozen network, whose middle has the features. size: of the queue.
    """

    queue: Float[Tensor, "size channels"]

    def __init__(self, denoiser: Denoiser, size: int) -> None:
        super().__init__()
        self.frozen = (denoiser, MiddleFeatures(denoiser))  # in a tuple, so that it is no submodule
        width = self.frozen[1].channels
        # A layer norm where the authors have a batch norm, which would know how many processes there are.
        self.head = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
        self.register_buffer("queue", normalize(torch.randn(size, width), dim=1))

    def forward(self, own: Maps) -> Maps:
        """The head of a student's features."""
        return self.head(own)

    def features(self, noised: Prediction, label: Condition, w: Weights | None) -> Maps:
        """The frozen network's features at noised data."""
        denoiser, middle = self.frozen
        prediction = denoiser(noised.z, noised.log_snr, label, w)
        found = middle.take().float()
        # The weights of a sharded network are gathered again where its backward pass begins, at the output.
        if hasattr(next(denoiser.parameters()), "full_tensor"):
            found = found + 0 * prediction.v.sum()
        return flat(found)

    def contrasts(self, count: int) -> Float[Tensor, "count channels"]:
        """A copy of so many of the entries, evenly spaced."""
        return self.queue[:: len(self.queue) // count][:count].clone()

    @torch.no_grad()
    def enqueue(self, goal: Maps, count: int, step: int) -> None:
        """Put features of `count` random places of the whole batch into the places of the oldest entries."""
        places = normalize(all_gather_rows(goal).flatten(0, 1), dim=1)
        chosen = torch.randint(len(places), (count,), device=goal.device)  # alike on all processes, as `Draws` are
        self.queue[(step * count + torch.arange(count, device=goal.device)) % len(self.queue)] = places[chosen]


def divergence(goal: Float[Tensor, "batch places n"], own: Float[Tensor, "batch places n"]) -> Float[Tensor, "batch"]:
    """KL(softmax(goal) || softmax(own)) over the last dimension, its mean over places."""
    goal, own = log_softmax(goal, dim=-1), log_softmax(own, dim=-1)
    return (goal.exp() * (goal - own)).sum(-1).mean(-1)


def feature_error(own: Maps, goal: Maps) -> Float[Tensor, "batch"]:
    """KL of the distributions over channels; its minimum is where own = goal / 0.9, up to a constant."""
    return divergence(goal / TEACHER_TEMPERATURE, own)


def batch_error(own: Maps, goal: Maps) -> Float[Tensor, "batch"]:
    """KL of each example's similarities to all of the batch at the same place; 0 at own = goal."""
    own, goal = normalize(own, dim=-1), normalize(goal, dim=-1)
    everyone, goals = all_gather_rows_with_gradient(own), all_gather_rows(goal)
    return divergence(torch.einsum("ipc,jpc->ipj", goal, goals), torch.einsum("ipc,jpc->ipj", own, everyone))


def memory_error(own: Maps, goal: Maps, memory: Float[Tensor, "count channels"]) -> Float[Tensor, "batch"]:
    """KL of each place's similarities to the entries of a memory, `own` projected."""
    own, goal = (normalize(each, dim=-1) @ memory.T / MEMORY_TEMPERATURE for each in (own, goal))
    return divergence(goal, own)
