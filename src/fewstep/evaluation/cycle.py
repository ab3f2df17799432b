"""Cycle consistency: data encoded to noise and decoded again, compared with an encoder and decoder of many steps."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.diffusion.prediction import Condition, Denoise
from fewstep.diffusion.sampler import encode, sample
from fewstep.diffusion.schedule import Schedule, uniform_times

Examples = Float[Tensor, "batch *shape"]


@dataclass(frozen=True)
class Coder:
    """A model run with `steps` DDIM steps in one direction; `model` is its label."""

    model: str
    denoise: Denoise
    steps: int


@dataclass(frozen=True)
class CycleRow:
    """A pair of encoder and decoder, as a row of cycle.json.

    Attributes:
        cycle_rmse: root mean squared difference per value between x and its reconstruction, in the data's range.
        ratio: of cycle_rmse to that of the many-step pair at the same w.
        code_rmse: of the code to the many-step encoder's; codes have a variance near 1.
        code_std: standard deviation of all values of the code, near 1 if it is noise.
    """

    encoder: str
    encoder_steps: int
    decoder: str
    decoder_steps: int
    w: float
    cycle_rmse: float
    ratio: float
    code_rmse: float
    code_std: float
    num_images: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def cycle_rows(
    pairs: Sequence[tuple[Coder, Coder]],
    x: Examples,
    label: Condition,
    w: float,
    *,
    schedule: Schedule,
    clip: tuple[float, float],
) -> Iterator[CycleRow]:
    """Measure (encoder, decoder) pairs on x under its own condition; the first pair is the many-step one.

    Reconstructions are clamped to the range `clip`, as samples are.
    """
    weight = torch.full((len(x),), float(w), device=x.device)
    first: tuple[Tensor, float] | None = None
    for encoder, decoder in pairs:
        times = uniform_times(encoder.steps), uniform_times(decoder.steps)
        code = encode(encoder.denoise, x, schedule=schedule, times=times[0], label=label, w=weight)
        decoded = sample(decoder.denoise, code, schedule=schedule, times=times[1], label=label, w=weight)
        error = rmse(decoded.clamp(*clip), x)
        first = first or (code, error)
        yield CycleRow(
            encoder=encoder.model,
            encoder_steps=encoder.steps,
            decoder=decoder.model,
            decoder_steps=decoder.steps,
            w=float(w),
            cycle_rmse=error,
            ratio=error / max(first[1], 1e-12),
            code_rmse=rmse(code, first[0]),
            code_std=float(code.std()),
            num_images=len(x),
        )


def rmse(x: Tensor, y: Tensor) -> float:
    """Root mean squared difference over all values."""
    return (x - y).square().mean().sqrt().item()
