"""What an evaluation measures: images, guidance weights, steps, baselines and hybrids."""

from dataclasses import dataclass
from itertools import chain, product

from fewstep.diffusion.guidance import Weight
from fewstep.diffusion.sampler import BEGINS_AT_IMAGE, SAMPLERS, TOLD_THE_END
from fewstep.evaluation.baselines import SOLVERS
from fewstep.system.validation import Count


@dataclass(frozen=True)
class EvaluationPlan:
    """The settings of a grid.

    Args:
        num_images: per cell. w: guidance weights.
        w2: of models with a weight for the class and one for the style: w is of the class, these are of the style, and
            each is combined with each; empty for all others.
        teacher_steps: same_noise_rmse compares with the first. guided_steps: of the guided student.
        baselines: other samplers of both at `baseline_steps`, of SOLVERS or SAMPLERS (dpmsolver++, unipc, ancestral).
        batch_size: images sampled at a time. seed: of the starting noise.
        base_steps: of the teacher, in place of the first step of each few-step student of two steps or more, which is
            then judged so too, as "NAME + base"; 0: not. base_w: the teacher's guidance weight in them.
        trace_images: whose predicted x is drawn at every step, beside its distance to the final image; 0: none.

    Raises:
        ValueError: an empty list, or a value outside its range.
    """

    num_images: int = 2000
    w: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    teacher_steps: tuple[int, ...] = (64, 16, 8, 4, 2, 1)
    guided_steps: tuple[int, ...] = (64, 16, 8, 4, 2, 1)
    baselines: tuple[str, ...] = ("dpmsolver++", "unipc")
    baseline_steps: tuple[int, ...] = (8, 4, 2, 1)
    batch_size: int = 500
    seed: Count = 0
    base_steps: int = 0
    base_w: float = 0.0
    trace_images: int = 8
    w2: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.batch_size < 1:
            raise ValueError(
                f"evaluation needs num_images and batch_size of at least 1, got {self.num_images} and {self.batch_size}"
            )
        if not self.w or not all(0 <= w < float("inf") for w in (*self.w, *self.w2)):
            given = " and ".join(f"[{', '.join(f'{w:g}' for w in own)}]" for own in (self.w, self.w2) if own)
            raise ValueError(f"evaluation needs guidance weights w >= 0, got {given or []}")
        steps = (self.teacher_steps, self.guided_steps, self.baseline_steps)
        if not self.teacher_steps or min(*chain(*steps), 1) < 1:
            raise ValueError(f"evaluation needs steps of at least 1, got {' and '.join(str(list(s)) for s in steps)}")
        if min(self.base_steps, self.trace_images) < 0 or not 0 <= self.base_w < float("inf"):
            given = f"{self.base_steps}, {self.base_w:g} and {self.trace_images}"
            raise ValueError(f"evaluation needs base_steps, base_w and trace_images of at least 0, got {given}")
        of_students = ("deterministic", *TOLD_THE_END, *BEGINS_AT_IMAGE)
        allowed = [*(name for name in SAMPLERS if name not in of_students), *SOLVERS]
        if unknown := [name for name in self.baselines if name not in allowed]:
            raise ValueError(f"evaluation's baselines must be of {', '.join(allowed)}, got {unknown[0]!r}")

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The weights of the grid, one or two for each of its cells."""
        return tuple(product(self.w, self.w2)) if self.w2 else self.w

    @property
    def no_guidance(self) -> Weight:
        """The weight of a model that is not guided."""
        return (0.0, 0.0) if self.w2 else 0.0
