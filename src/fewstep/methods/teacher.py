"""A classifier-free guided teacher, in continuous time."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fewstep.diffusion.guidance import nulls_but
from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Networks, Phase, Regression, Times, Weights
from fewstep.methods.draws import Draws
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.system.validation import Share


@dataclass(frozen=True, kw_only=True)
class Teacher(Regression):
    """Learn E[x | z, label] and, with a share of the labels dropped, E[x | z] (Ho & Salimans 2021, algorithm 1).

    Where none is dropped it learns E[x | z, label] alone, and is sampled without guidance.

    Args:
        label_dropout: share of labels replaced by "no class", in [0, 1].
        guided_by: two_evaluations; or three_evaluations, of data whose labels are of a class and a style, some of them
            of any style (`Styles`); or none, of data without labels.
        The rest: see `Method`.

    Raises:
        ValueError: a share outside [0, 1].
    """

    paper: ClassVar[str] = "Ho & Salimans 2021 (2207.12598)"
    certainty: ClassVar[str] = "sure: read in public code"
    has_dropout: ClassVar[bool] = True

    name: str = "teacher"
    label_dropout: Share = 0.1
    guided_by: Literal["two_evaluations", "three_evaluations", "none"] = "two_evaluations"

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(Sampling(guidance=self.guided_by if self.label_dropout else "none")),)

    def without_labels(self) -> "Teacher":
        """Not guided; the null condition is trained nevertheless, since labels can be made of its features."""
        return replace(self, guided_by="none")

    def guidance(self, parent: GuidanceRange | None) -> None:
        return None

    def draw_condition(self, label: Condition, nets: Networks, draws: Draws) -> Condition:
        return nulls_but(draws.uniform() >= self.label_dropout, label, nets.student.null)

    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        return noised
