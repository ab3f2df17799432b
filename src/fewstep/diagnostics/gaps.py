"""The gap between a student and what it is taught, where it is asked: by bins of t and of w."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.diagnostics.probe import Probe
from fewstep.diffusion.prediction import Denoise, diffuse
from fewstep.methods import Stage


class Answers(NamedTuple):
    """Mean squares over each example's values, in v: of the student's error, and of what it should have said."""

    error: Float[Tensor, "batch"]
    target: Float[Tensor, "batch"]


@torch.no_grad()
def answers(student: Denoise, stage: Stage, probe: Probe, rows: int) -> Answers:
    """Ask `student` what `stage` teaches, on every example of the probe, `rows` at a time; float64 on the CPU."""
    errors, targets = [], []
    for part in probe.chunks(rows):
        x, eps, label, t = (value[part].to(stage.device) for value in (probe.x, probe.eps, probe.label, probe.t))
        w = None if probe.w is None else probe.w[part].to(stage.device)
        noised = diffuse(x=x, eps=eps, log_snr=stage.schedule.log_snr(t))
        target = stage.target(noised, t, label, w)
        said = student(noised.z, noised.log_snr, label, w)
        errors.append(mean_square(said.v - target.v))
        targets.append(mean_square(target.v))
    return Answers(torch.cat(errors).cpu(), torch.cat(targets).cpu())


def mean_square(values: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
    """Over each example's values, in float64."""
    return values.double().square().flatten(1).mean(1)


def gap(found: Answers, where: Bool[Tensor, "batch"] | None = None) -> float:
    """rms(v - v') / rms(v') with v' the target: 0 is a perfect student, 1 one that says nothing.

    Args:
        where: the examples that count for the error; the target's size is always that of all of them.
    """
    error = found.error if where is None else found.error[where]
    return float((error.mean() / found.target.mean()).sqrt())


def gap_by(found: Answers, number: Int[Tensor, "batch"], num_bins: int) -> list[float]:
    """The gap in each bin, an example's being `number`."""
    return [gap(found, number == one) for one in range(num_bins)]
