"""What is asked for: images, updates and evaluations, counted by hand."""

import pytest
from running import TINY, config_of

from fewstep.estimate.work import Grid, Leg, grid_of, legs_of
from fewstep.evaluation.grid import EvaluationPlan
from fewstep.runs.build import Setup
from fewstep.runs.pipeline import prepare, stage_of


def legs(stage: str, *settings: str) -> list[Leg]:
    config = config_of(*settings)
    prepare(config)
    return legs_of(Setup.of(stage_of(config, stage)))


def test_budgets_are_those_of_the_settings_in_whole_batches() -> None:
    (teacher,) = legs("teacher", "stage.teacher.training.images=1000", "stage.teacher.training.batch_size=300")
    assert (teacher.updates, teacher.images, teacher.batch_size) == (4, 1200, 300)
    assert (teacher.name, teacher.snapshots, teacher.branches, teacher.averaged) == ("teacher", 2, 2, True)


def test_each_rung_has_its_factor_and_only_the_first_its_checkpoints() -> None:
    ladder = ("stage.progressive.ladder=[8,4,2,1]", "stage.progressive.few_steps=2")
    budget = ("stage.progressive.training.images=512", "stage.progressive.few_steps_factor=1.5")
    found = legs("progressive", *ladder, *budget)
    assert [leg.name for leg in found] == ["progressive 4", "progressive 2", "progressive 1"]
    assert [leg.updates for leg in found] == [2, 3, 3]
    assert [leg.snapshot_steps for leg in found] == [4, 2, 1]
    assert [leg.is_first for leg in found] == [True, False, False]


def test_caps_and_toys_count() -> None:
    assert [leg.images for leg in legs("guidance", *TINY)] == [1024]
    assert [leg.rung for leg in legs("progressive", *TINY)] == [4, 2, 1]


def test_encoders_have_no_samples_to_look_at() -> None:
    config = config_of("stage=encoder")
    prepare(config)
    assert {leg.snapshots for leg in legs_of(Setup.of(config))} == {0}


@pytest.fixture
def grid() -> Grid:
    plan = EvaluationPlan(
        num_images=10,
        w=(0.0, 1.0),
        teacher_steps=(4, 1),
        guided_steps=(2,),
        baselines=("unipc",),
        baseline_steps=(8, 4, 2, 1),
        batch_size=4,
    )
    return grid_of(plan, [2, 1], guided_outside=False)


def test_a_grid_counts_cells_and_evaluations(grid: Grid) -> None:
    # teacher 2 cells and 4 of unipc, guided 1 and 4, two rungs; for two w
    assert grid.cells == 2 * (2 + 4 + 1 + 4 + 2)
    assert grid.images == 10 * grid.cells
    teacher, guided, rungs = grid.contestants
    assert teacher.nfe == 2 * (4 + 1 + 8 + 4 + 2 + 1)
    assert (guided.nfe, rungs.nfe) == (2 + 15, 3)
    # ten images, and a warming up of four images and one step for each of the two samplers
    assert grid.sampled(teacher) == 2 * (teacher.nfe * 10 + 2 * 2 * 4)
    assert grid.sampled(rungs) == 2 * (3 * 10 + 2 * 4)


def test_a_grid_names_each_row_of_its_report() -> None:
    plan = EvaluationPlan(
        w=(0.0, 2.0), teacher_steps=(4,), guided_steps=(4,), num_images=10, batch_size=5, seed=0, baselines=()
    )
    grid = grid_of(plan, [2, 1], guided_outside=False)
    own = [("teacher", 4, 8), ("guided", 4, 4), ("progressive", 2, 2), ("progressive", 1, 1)]
    assert grid.rows == [(*cell, w) for w in (0.0, 2.0) for cell in own]
    assert len(grid.rows) == grid.cells
