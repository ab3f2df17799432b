"""Numbers of steps: which a method makes, the times that its students train at, and methods that have no teacher."""

from typing import Any

import pytest
import torch
from small_methods import SMALL, batch, small

from fewstep.methods import GuidanceRange, MeanFlow, Parent, Phase
from fewstep.methods.consistency import ConsistencyTraining
from fewstep.methods.draws import Draws
from fewstep.methods.flow_trajectory import FlowTrajectory
from fewstep.methods.meanflow import MeanFlowTraining
from fewstep.methods.noise_aware_judge import NoiseAwareJudge

GRIDS = {"progressive": 4, "rdd": 4, "sfddm": 4, "single_fold": 2, "tract": 8}  # the first phase's, of N / N to 1 / N


def drawn(name: str, phase: Phase) -> list[float]:
    method: Any = small(name)
    times = [method.draw_times(Draws.begin(batch().x, "s", step), phase) for step in range(20)]
    return sorted(set(torch.cat(times).tolist()))


@pytest.mark.parametrize(("name", "steps"), GRIDS.items())
def test_a_grid_is_trained_at_each_of_its_times(name: str, steps: int) -> None:
    expected = [(step + 1) / steps for step in range(steps)]
    assert drawn(name, small(name).phases()[0]) == pytest.approx(expected)


def test_an_encoder_is_trained_from_data_to_the_last_time_before_noise() -> None:
    assert drawn("encoder", small("encoder").phases()[0]) == pytest.approx([0, 0.25, 0.5, 0.75])


def test_a_judged_student_has_the_states_of_its_teachers_steps() -> None:
    assert [(phase.teacher_steps, phase.num_steps) for phase in small("ladd", teacher_steps=7).phases()] == [(7, None)]


def test_phases_without_a_number_of_steps_say_so() -> None:
    phase = small("guidance").phases()[0]
    with pytest.raises(AssertionError, match="a phase of one number of steps"):
        _ = phase.own_steps
    with pytest.raises(AssertionError, match="a phase that learns a teacher's steps"):
        _ = phase.learned_steps
    rung = small("progressive").phases()[0]
    assert (rung.own_steps, rung.learned_steps) == (4, 8)


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        ("progressive", 2, [(8, 4), (4, 2)]),
        ("progressive", 4, [(8, 4)]),
        ("tract", 1, [(8, 2), (2, 1)]),
        ("tract", 4, [(8, 4)]),
        ("single_fold", 4, [(16, 4)]),
        ("sfddm", 2, [(None, 2)]),
        ("pi_flow", 3, [(None, 3)]),
        ("consistency", 4, [(None, None)]),
    ],
)
def test_a_method_is_made_for_a_number_of_steps(name: str, steps: int, expected: list[tuple[int | None, int]]) -> None:
    made = small(name).with_steps(steps)
    assert type(made) is SMALL[name][0]
    assert [(phase.teacher_steps, phase.num_steps) for phase in made.phases()] == expected
    assert steps in {number for phase in made.phases() for number in phase.sampling.steps}


def test_students_of_any_number_up_to_theirs() -> None:
    made = small("flow_map").with_steps(8)
    assert made.phases()[0].sampling.steps == (1, 2, 4, 8)


def test_a_number_of_steps_that_a_method_does_not_make_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^this Consistency makes students of 1, 2, 4 steps, got steps=5$"):
        small("consistency").with_steps(5)
    teacher = small("teacher")
    assert teacher.with_steps(5) is teacher  # sampled in any


def test_without_a_teacher_a_method_keeps_its_settings() -> None:
    flow, consistency = small("meanflow", w_min=0.0, w_max=4.0), small("consistency")
    assert isinstance(flow, MeanFlow)
    alone = flow.without_teacher()
    assert isinstance(alone, MeanFlowTraining)
    assert (alone.num_steps, alone.power, alone.w_max, alone.training) == (4, 1.0, 4.0, flow.training)
    assert isinstance(consistency.without_teacher(), ConsistencyTraining)
    teacher = small("teacher")
    assert teacher.without_teacher() is teacher
    with pytest.raises(
        ValueError, match=r"^stage=tract needs a teacher, and teacher=none says there is none; use teacher=null$"
    ):
        small("tract").without_teacher()


@pytest.mark.parametrize(
    "name",
    ["single_fold", "consistency", "ect", "scm", "meanflow", "boot", "pid", "freeflow", "pi_flow", "dmd2", "vdd"],
)
def test_a_students_range_is_the_part_of_its_parents_that_is_said(name: str) -> None:
    parent = GuidanceRange(0.0, 4.0)
    assert small(name).guidance(parent) == parent
    assert small(name, w_min=1.0, w_max=2.0).guidance(parent) == GuidanceRange(1.0, 2.0)


def test_data_without_labels_have_no_guided_teacher() -> None:
    tract = small("tract")
    assert tract.without_labels() is tract
    with pytest.raises(ValueError, match=r"^stage=guidance needs a guided teacher, .* \(docs/self_labelled.md\)$"):
        small("guidance").without_labels()


@pytest.mark.parametrize("kind", [FlowTrajectory, NoiseAwareJudge])
def test_restoring_students_are_of_teachers_that_restore(kind: Any) -> None:
    assert kind.parent(None) == Parent(guidance=("none",))
