"""Imitation learning of a few-step sampler: progressive distillation at the states of data, teacher and student."""

from dataclasses import dataclass
from typing import ClassVar

from fewstep.methods.progressive import Progressive


@dataclass(frozen=True, kw_only=True)
class DDIL(Progressive):
    """Progressive distillation whose states are a mixture (Garrepalli et al. 2024): see `StateSource`.

    The teacher labels the student's states; the loss is that of `Progressive`. `states` is a setting of consistency
    distillation, LCM and DMD2 as well.

    Args:
        The rest: see `Progressive`.
    """

    paper: ClassVar[str] = "Garrepalli et al. 2024 (2410.11971)"
    certainty: ClassVar[str] = (
        "DDIL-style: the idea is sure; priors, warm-up, how a source is chosen and roll-outs without a buffer are ours"
    )

    name: str = "ddil"
