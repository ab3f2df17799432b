"""Latent consistency: consistency distillation of the guided teacher over every 20th of its timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fewstep.methods.consistency import Consistency, ConsistencyTraining
from fewstep.system.validation import AtLeastTwo, ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class LatentConsistency(Consistency):
    """LCM (Luo et al. 2023): consistency distillation with w drawn per example and given to the student.

    The skipping step k of the teacher's 1000 timesteps is 1000 / num_levels: 20 at 50 levels, i.e. timesteps 19, 39,
    ..., 999. There the paper's boundary scalings are within 1e-5 of 0 and 1, and at its last timestep, 0, they keep z:
    ours is the identity of v at t = 0.

    Args:
        metric: also huber, of each value with c = 0.001.
        The rest: see `Consistency`; `adapter: lora` is LCM-LoRA, but with w.

    Raises:
        ValueError: see `Consistency`.
    """

    paper: ClassVar[str] = "Luo et al. 2023 (2310.04378)"
    certainty: ClassVar[str] = "sure: read in the authors' code; w drawn from the guided student's range is ours"

    name: str = "lcm"
    num_levels: AtLeastTwo = 50
    levels: Sequence[float] = (1.0, 0.76, 0.5, 0.26)
    metric: Literal["l2", "pseudo_huber", "huber"] = "huber"  # pyright: ignore[reportIncompatibleVariableOverride]
    self_teacher_decay: ShareBelowOne = 0.95

    def without_teacher(self) -> ConsistencyTraining:
        raise ValueError(f"stage={self.name} needs a teacher, and teacher=none says there is none; use teacher=null")
