"""Policies in closed loop: how often a model does a control task, in how many of the right ways, and at what cost."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import log
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.data.control import Actions, Episodes, Ways
from fewstep.diffusion.sampler import SAMPLERS, sample
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import Schedule
from fewstep.evaluation.intervals import Interval, interval, share_interval
from fewstep.networks import Denoiser, Frozen
from fewstep.networks.denoiser import arguments_of
from fewstep.system.seeds import seed_for

TIMED = 30  # actions of which the median time is taken


@dataclass(frozen=True, kw_only=True)
class PolicyRow:
    """What one model does in closed loop, at one number of steps and one w.

    Attributes:
        model: as in quality.json; expert for what made the data.
        evaluations: of the network for an action; at w = 0 a teacher needs no second one. 0 for the expert.
        success: share of the episodes in which the task is done.
        entropy: of the ways of these, in nats; None where there are fewer than two. most_entropy: of all ways alike.
        seconds_per_action: of a single one, without a batch; None for the expert.
        intervals: at 95 %, of success and entropy over the episodes of this model: training again is not in them.
    """

    model: str
    steps: int
    w: float
    evaluations: int
    success: float
    entropy: float | None
    most_entropy: float
    seconds_per_action: float | None
    num_rollouts: int
    seed: int
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ModelPolicy:
    """A model as a policy: an action is a sample given the state. A mixture of experts is drawn from directly.

    Args:
        steps: of the sampler. seed: of the noise, with the number of the step.
    """

    denoiser: Denoiser
    sampling: Sampling
    schedule: Schedule
    low: float
    high: float
    steps: int
    w: float
    seed: int

    @property
    def evaluations(self) -> int:
        """Of the network for an action."""
        return self.steps * (self.sampling.evaluations if self.w else 1)

    @torch.no_grad()
    def __call__(self, state: Float[Tensor, "batch 1 state"], step: int) -> Actions:
        generator = torch.Generator().manual_seed(seed_for("rollouts", self.seed, step))
        count, shape = len(state), arguments_of(self.denoiser.network)["shape"]
        z, w = torch.randn(count, *shape, generator=generator), torch.full((count,), self.w)
        if self.denoiser.experts:
            mixture = self.denoiser.mixture(z, state, w)
            return mixture.draw(torch.rand(count, generator=generator), z).clamp(self.low, self.high)
        frozen = Frozen(self.denoiser)
        x = sample(
            self.sampling.guided(frozen, self.denoiser.null) if self.w else frozen,
            z,
            schedule=self.schedule,
            times=self.sampling.grid(self.steps),
            label=state,
            w=w,
            sampler=SAMPLERS[self.sampling.sampler],
            fresh=lambda number: torch.randn(count, *shape, generator=generator),
        )
        return x.clamp(self.low, self.high)


def entropy_of(way: Ways, num_ways: int) -> tuple[float, Interval] | None:
    """The entropy of the ways of successes in nats, and its interval; None for fewer than two of them.

    It is that of the observed shares, in which the influence of an episode is -log of its way's share. It is too small
    by about (ways - 1) / (2 episodes) (Miller 1955), which is not corrected.
    """
    way = way[way >= 0]
    if len(way) < 2:
        return None
    shares = way.bincount(minlength=num_ways).double() / len(way)
    surprise = -shares[way].log()
    entropy = float(surprise.mean())
    low, high = interval(entropy, surprise)
    return entropy, [low, max(entropy, min(high, log(num_ways)))]


def policy_row(
    episodes: Episodes,
    num_ways: int,
    *,
    model: str,
    seed: int,
    steps: int = 0,
    w: float = 0.0,
    evaluations: int = 0,
    seconds_per_action: float | None = None,
) -> PolicyRow:
    """The row of a model's episodes."""
    count = len(episodes.success)
    success, entropy = float(episodes.success.double().mean()), entropy_of(episodes.way, num_ways)
    return PolicyRow(
        model=model,
        steps=steps,
        w=w,
        evaluations=evaluations,
        success=success,
        entropy=None if entropy is None else entropy[0],
        most_entropy=log(num_ways),
        seconds_per_action=seconds_per_action,
        num_rollouts=count,
        seed=seed,
        intervals={"success": share_interval(success, count)} | ({"entropy": entropy[1]} if entropy else {}),
    )


def seconds_for_one(policy: ModelPolicy, states: Float[Tensor, "batch 1 state"]) -> float:
    """The median time of a single action."""
    seconds = []
    for number in range(TIMED + 1):
        start = time.perf_counter()
        policy(states[:1], number)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])  # the first call is slower
