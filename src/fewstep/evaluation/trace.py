"""DT-visualisation: what a sampler predicts at every step, and how far that is from what it ends with.

A step's predicted x is the image that the model has in mind there. Gandikota & Bau 2025 find its layout decided in a
distilled student's first step, and in about the first third of a teacher's.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.artifacts.trace_file import Curve
from fewstep.data.facts import DataFacts
from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.sampler import SAMPLERS, trajectory
from fewstep.evaluation.candidate import Candidate
from fewstep.evaluation.features import FeatureExtractor
from fewstep.evaluation.grid import squared_error
from fewstep.evaluation.images import evaluation_tensor
from fewstep.evaluation.statistics import Features
from fewstep.system.seeds import fresh_noise, starting_noise


class Trace(NamedTuple):
    """A curve, and the predicted images of each of its steps (steps, count, ...)."""

    curve: Curve
    frames: Tensor


def traces_of(
    asked: Sequence[tuple[Candidate, int]],
    labels: Condition,
    *,
    w: float,
    seed: int,
    facts: DataFacts,
    net: FeatureExtractor,
    decode: Callable[[Tensor], Tensor] = lambda x: x,
    device: torch.device | str = "cpu",
) -> list[Trace]:
    """The traces of candidates, each with a number of steps, all from the same noise; one image for each of `labels`.

    Raises:
        ValueError: fewer than two images, or a value that is not finite.
    """
    if len(labels) < 2:
        raise ValueError(f"a trace needs at least two images, whose distance is its unit, got {len(labels)}")
    unit, found = None, list[Trace]()
    for candidate, steps in asked:
        times = candidate.sampling.grid(steps)
        x = predicted(candidate, times, labels.to(device), w=w, seed=seed, facts=facts)
        frames = [evaluation_tensor(decode(own).cpu(), facts.pixels) for own in x]
        features = [Features.of(net, own).features for own in frames]
        unit = unit or max(torch.pdist(features[-1]).mean().item(), torch.finfo(torch.float32).tiny)
        rmse = [squared_error(own, x[-1]).mean().sqrt().item() for own in x]
        far = [(own - features[-1]).norm(dim=1).mean().item() / unit for own in features]
        found.append(Trace(Curve(candidate.name, float(w), times.tolist(), rmse, far), torch.stack(frames)))
    return found


@torch.no_grad()
def predicted(
    candidate: Candidate, times: Tensor, label: Condition, *, w: float, seed: int, facts: DataFacts
) -> list[Tensor]:
    """The predicted x of every step, clamped to the data's range."""
    count = len(label)
    predictions = trajectory(
        candidate.denoise,
        starting_noise(seed, 0, count, facts.shape).to(label.device),
        schedule=candidate.schedule,
        times=times,
        label=label,
        w=torch.full((count,), float(w), device=label.device),
        sampler=SAMPLERS[candidate.sampler],
        fresh=fresh_noise(seed, 0, count, facts.shape),
    )
    return [prediction.x.clamp(facts.low, facts.high) for prediction in predictions]


def with_several_steps(candidates: Sequence[Candidate]) -> list[tuple[Candidate, int]]:
    """The first candidate, a teacher as a rule, and the few-step students at each of their steps above one."""
    first, *others = candidates
    students = [each for each in others if each.sampling.times is not None and each.first is None]
    pairs = [(each, steps) for each in students for steps in each.steps if steps > 1]
    return [(first, first.steps[0]), *pairs]
