"""What the settings ask for, before anything is measured: images, updates and cells of the grid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fewstep.diagnostics.probe import NUM_EXAMPLES, NUM_SAMPLES
from fewstep.diagnostics.steps import COMPARED, MOST_STEPS, steps_of
from fewstep.evaluation.grid import Candidate, EvaluationPlan
from fewstep.runs.build import Setup
from fewstep.runs.pipeline import SNAPSHOT_STEPS, TWO_STUDENT


@dataclass(frozen=True)
class Leg:
    """One training: a stage, or one rung of a ladder, whose steps are `rung`.

    Args:
        images, updates: of its budget; batch_size: over all processes.
        snapshots: how many; branches: evaluations a step and image of them; snapshot_steps.
        looks: of diagnostics; look_steps: of the paths that they follow.
        averaged: whether it keeps an average of its weights.
        is_first: of its run folder.
    """

    stage: str
    rung: int | None
    images: int
    batch_size: int
    updates: int
    snapshots: int
    snapshot_steps: int
    branches: int
    looks: int
    look_steps: int
    averaged: bool
    is_first: bool = True

    @property
    def name(self) -> str:
        return self.stage if self.rung is None else f"{self.stage} {self.rung}"

    def look_evaluations(self, steps: int) -> float:
        """Evaluations of one image each of a look at paths of so many steps; the teacher's path serves all looks."""
        walked = steps * (NUM_SAMPLES + 2 * COMPARED + 2 * NUM_SAMPLES / max(1, self.looks))
        return 3 * NUM_EXAMPLES + walked


@dataclass(frozen=True)
class Contestants:
    """Models of one role in the grid: evaluations a step and image, and for each sampler or rung its steps."""

    role: str
    evaluations: int
    steps: tuple[tuple[int, ...], ...]

    @property
    def cells(self) -> int:
        return sum(map(len, self.steps))

    @property
    def nfe(self) -> int:
        """Evaluations for one image in all cells of one w."""
        return self.evaluations * sum(map(sum, self.steps))


@dataclass(frozen=True)
class Grid:
    """The evaluation."""

    plan: EvaluationPlan
    contestants: tuple[Contestants, ...]

    @property
    def cells(self) -> int:
        return len(self.plan.w) * sum(each.cells for each in self.contestants)

    @property
    def images(self) -> int:
        return self.cells * self.plan.num_images

    @property
    def rows(self) -> list[tuple[str, int, int, float]]:
        """Role, steps, evaluations and w of each cell."""
        return [
            (each.role, steps, each.evaluations * steps, w)
            for w in self.plan.w
            for each in self.contestants
            for several in each.steps
            for steps in several
        ]

    def sampled(self, each: Contestants) -> int:
        """Evaluations of one image each by these, those that warm up included."""
        warm_up = min(self.plan.batch_size, self.plan.num_images)
        return len(self.plan.w) * (each.nfe * self.plan.num_images + each.evaluations * len(each.steps) * warm_up)


def legs_of(setup: Setup) -> list[Leg]:
    """The trainings of the setup's stage, in their order."""
    stage: Any = setup.config.stage
    rungs: Sequence[int | None] = list(stage.ladder)[1:] if "ladder" in stage else [None]
    branches = 2 if stage.name == "teacher" or stage.get("variant") == TWO_STUDENT else 1
    legs = []
    for rung in rungs:
        training = setup.training(stage.few_steps_factor if rung is not None and rung <= stage.few_steps else 1)
        leg = Leg(
            stage=stage.name,
            rung=rung,
            images=training.num_steps * training.batch_size,
            batch_size=training.batch_size,
            updates=training.num_steps,
            snapshots=0 if stage.name == "encoder" else min(setup.settings.snapshots, training.num_steps),
            snapshot_steps=rung or SNAPSHOT_STEPS,
            branches=branches,
            looks=looks + 1 if (looks := setup.settings.diagnostics) else 0,
            look_steps=steps_of(rung) if rung is not None and stage.name == "progressive" else MOST_STEPS,
            averaged=training.ema_decay > 0,
        )
        legs.append(replace(leg, is_first=not legs))
    return legs


def grid_of(plan: EvaluationPlan, rungs: Sequence[int], *, guided_outside: bool) -> Grid:
    """A pipeline's grid: teacher and guided student with all their samplers, then each rung at its own steps."""
    others = [tuple(plan.baseline_steps)] * len(plan.baselines)
    return Grid(
        plan,
        (
            Contestants("teacher", 2, (tuple(plan.teacher_steps), *others)),
            Contestants("guided", 1, (tuple(plan.guided_steps), *others)),
            Contestants("progressive", 2 if guided_outside else 1, tuple((n,) for n in rungs)),
        ),
    )


def grid_among(plan: EvaluationPlan, contenders: Sequence[Candidate]) -> Grid:
    """The grid of models that are there."""
    return Grid(plan, tuple(Contestants(c.model, c.evaluations, (c.steps,)) for c in contenders))
