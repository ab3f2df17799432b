"""How a student differs from its parent: settings of every method that has one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.methods.base import Parent
from fewstep.methods.guidance_range import GuidanceRange, chosen_weights
from fewstep.networks.adapter import check_adapter
from fewstep.system.validation import Bounded


@dataclass(frozen=True, kw_only=True)
class StudentSettings(Bounded):
    """How a student differs from the parent that it starts as; fields of every method that has a parent.

    Args:
        prediction: how its output reads, x, eps or v; None as the parent's.
        student: arguments of the network that differ from the parent's, for a smaller one; None for its size.
        adapter: lora, to train a low-rank adapter of each layer and the w input alone; None to train everything.
        adapter_rank, adapter_alpha: of the adapter, which counts adapter_alpha / adapter_rank times.
        clip_target: hold the teacher's predicted x inside the data's range.

    Raises:
        ValueError: an unknown adapter, or one for a student of another size.
    """

    prediction: Literal["x", "eps", "v"] | None = None
    student: Mapping[str, Any] | None = None
    adapter: str | None = None
    adapter_rank: int = 16
    adapter_alpha: float = 16.0
    clip_target: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter(self.adapter, self.adapter_rank, self.adapter_alpha)
        if self.student is not None and self.adapter is not None:
            raise ValueError(
                "stage.adapter adds to a teacher's weights, and a student of stage.student has its own; use one of them"
            )


@dataclass(frozen=True, kw_only=True)
class GuidedStudentSettings(StudentSettings):
    """Settings of a student that takes w, made from a guided student (preferred) or from a guided teacher.

    Args:
        w_min, w_max: guidance weights trained at, None for the parent's range.
        The rest: see `StudentSettings`.
    """

    w_min: float | None = None
    w_max: float | None = None

    def parent(self) -> Parent | None:
        return Parent(guidance=("input", "two_evaluations"))

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange | None:
        return chosen_weights(parent, self.w_min, self.w_max)
