"""Guidance distillation of two conditions with weights of their own: three evaluations into one."""

from dataclasses import dataclass, replace
from typing import ClassVar

from fewstep.diffusion.prediction import Condition, Prediction
from fewstep.methods.base import Networks, Parent, Phase, Times, Weights
from fewstep.methods.guidance import Guidance
from fewstep.methods.guidance_range import GuidanceRange
from fewstep.system.validation import ShareAboveZero


@dataclass(frozen=True, kw_only=True)
class TwoGuidances(Guidance):
    """Regress to D_0 + (1 + w1) (D_c - D_0) + (1 + w2) (D_cs - D_c), w1 and w2 of each example drawn independently.

    D_cs, D_c and D_0 are the teacher's predictions for a class and a style, for the class alone, and for neither; see
    `guide_twice`. The student is told (w1, w2).

    Mixed supervision with the data x0: lambda |D - D*|^2 + (1 - lambda) |D - x0|^2 has the gradient of
    |D - (lambda D* + (1 - lambda) x0)|^2, which is what is computed. Where the teacher is exact its minimum is the
    teacher at (lambda w1, lambda w2), as E[x0 | z] is D_cs and D* is affine in w: a lambda below 1 weakens guidance.

    Args:
        w2_min, w2_max: the range of w2, drawn uniformly; w_min, w_max and w_draw are of w1.
        teacher_share: lambda, in (0, 1]; 1 is no mixing.
        The rest: see `Guidance`.

    Raises:
        ValueError: a bad range of w2, or a share outside (0, 1].
    """

    paper: ClassVar[str] = "after FADA, Zhong et al. 2024 (2412.16915)"
    certainty: ClassVar[str] = "fada-style: of the paper we know the abstract; the losses and the w inputs are ours"

    name: str = "two_guidances"
    w2_min: float = 0.0
    w2_max: float = 4.0
    teacher_share: ShareAboveZero = 1.0

    def parent(self) -> Parent:
        return Parent(guidance=("three_evaluations",))

    def guidance(self, parent: GuidanceRange | None) -> GuidanceRange:
        return replace(super().guidance(parent), second=GuidanceRange(self.w2_min, self.w2_max))

    def target(
        self, noised: Prediction, *, t: Times, label: Condition, w: Weights | None, nets: Networks, phase: Phase
    ) -> Prediction:
        guided = super().target(noised, t=t, label=label, w=w, nets=nets, phase=phase)
        if self.teacher_share == 1:
            return guided
        return replace(guided, v=self.teacher_share * guided.v + (1 - self.teacher_share) * noised.v)
