"""Knowledge distillation: one step from noise to the sample that the teacher makes from the same noise in many."""

from dataclasses import dataclass
from typing import ClassVar

from fewstep.diffusion.sampling import Sampling
from fewstep.methods.base import Phase
from fewstep.methods.from_pairs import FromPairs
from fewstep.methods.student_settings import GuidedStudentSettings


@dataclass(frozen=True, kw_only=True)
class KnowledgeDistillation(GuidedStudentSettings, FromPairs):
    """Regress the student's x at pure noise to the stored sample of the teacher (Luhman & Luhman 2021).

    Its optimum is the teacher's map of `teacher_steps` steps of DDIM. With the weight snr_plus_one the loss is the mean
    square of the difference in x, as theirs. Matching the teacher's outputs at given times instead, with a smaller
    student, needs no pairs: `stage=sfddm stage.features=0`, or `stage=guidance` at all times.

    Args:
        The rest: see `FromPairs`.
    """

    paper: ClassVar[str] = "Luhman & Luhman 2021 (2101.02388)"
    certainty: ClassVar[str] = "sure: the objective is one line; w as an input, the optimiser and numbers are ours"

    name: str = "knowledge_distillation"

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(Sampling.uniform(1, guidance="input"), num_steps=1, teacher_steps=self.teacher_steps),)
