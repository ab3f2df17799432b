"""The gap between a student and its method's target: relative error on the probe, whole and by bins of t and w."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.diagnostics.probe import Probe
from fewstep.diffusion.prediction import Denoise, diffuse
from fewstep.training.module import DistillationModule


class ProbeErrors(NamedTuple):
    """Mean squares over each probe example's values, in v: of the student's error, and of the target."""

    error: Float[Tensor, "batch"]
    target: Float[Tensor, "batch"]


@torch.no_grad()
def probe_errors(student: Denoise, module: DistillationModule, probe: Probe, rows: int) -> ProbeErrors | None:
    """Compare `student` with the method's target on the probe, `rows` examples at a time; float64 on the CPU.

    None where the method has no target.
    """
    nets, errors, targets = module.nets, [], []
    for start in range(0, len(probe.x), rows):
        x, eps, label, t, w = probe.part(slice(start, start + rows), module.device)
        noised = diffuse(x=x, eps=eps, log_snr=nets.schedule.log_snr(t))
        target = module.method.target(noised, t=t, label=label, w=w, nets=nets, phase=module.phase)
        if target is None:
            return None
        prediction = student(noised.z, noised.log_snr, label, w)
        errors.append(mean_square(prediction.v - target.v))
        targets.append(mean_square(target.v))
    return ProbeErrors(torch.cat(errors).cpu(), torch.cat(targets).cpu())


def mean_square(values: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
    """Mean over each example's values, in float64."""
    return values.double().square().flatten(1).mean(1)


def gap(found: ProbeErrors, where: Bool[Tensor, "batch"] | None = None) -> float:
    """rms(v - v_target) / rms(v_target): 0 for a perfect student, 1 for one that predicts v = 0.

    Args:
        where: the examples whose error counts; the denominator is always that of all examples.
    """
    error = found.error if where is None else found.error[where]
    return float((error.mean() / found.target.mean()).sqrt())
