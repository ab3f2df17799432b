"""The lines that answer each question, from made-up figures."""

from dataclasses import replace

import made_up
import pytest

from fewstep.pages import questions
from fewstep.pages.questions import Chosen, Line
from fewstep.pages.runs import Outputs, View
from fewstep.tracking.names import LOSS


@pytest.fixture
def experiment(tmp_path) -> View:
    return Outputs(made_up.experiment(tmp_path)).views()[0]


@pytest.fixture
def sweep(tmp_path) -> View:
    return Outputs(made_up.sweep(tmp_path)).views()[0]


def test_a_ladder_has_a_line_for_each_rung(experiment):
    assert [line.label for line in questions.over_images(experiment, "progressive", LOSS)] == [
        "8 steps",
        "4 steps",
        "2 steps",
    ]
    (teacher,) = questions.over_images(experiment, "teacher", LOSS)
    assert (teacher.x[-1], teacher.y[-1]) == (10_000, pytest.approx(0.2067, abs=1e-4))
    assert questions.over_images(experiment, "encoder", LOSS) == []


def test_a_sweep_has_a_line_for_each_job(sweep):
    labels = [line.label for line in questions.over_images(sweep, "progressive", LOSS)]
    assert labels == ["w_max=2,seed=0", "w_max=2,seed=1", "w_max=4,seed=0"]


def test_gaps_and_drift(experiment, sweep):
    lines = {line.label: line for line in questions.gap_over_images(experiment)}
    assert list(lines) == ["teacher", "guidance", "8 steps", "4 steps", "2 steps"]
    assert lines["2 steps"].x[0] == 0  # beside the other rungs, each from its own start
    assert lines["guidance"].y == pytest.approx([0.1 / (1 + 2 * n) for n in range(5)])
    drift = {line.label: line.y for line in questions.drift(experiment, "contrast")}
    assert drift["guidance"] == pytest.approx([-0.1] * 5)  # less the teacher's
    assert drift["teacher"] == pytest.approx([0.0] * 5)  # less the data's
    assert "teacher" not in {line.label for line in questions.drift(experiment, "diversity")}, "the data have none"
    assert len(questions.gap_over_images(sweep)) == 1 + 4 + 3


def test_bins_and_step_errors_are_those_of_the_newest_look(experiment):
    by_t = {line.label: line for line in questions.by_bin(experiment, "t")}
    assert by_t["teacher"].x[:2] == [0.0625, 0.1875]
    assert by_t["teacher"].y[0] == pytest.approx(1 / 9 * 0.625)
    assert "teacher" not in {line.label for line in questions.by_bin(experiment, "w")}
    errors = {line.label: line for line in questions.step_errors(experiment)}
    assert list(errors) == ["8 steps", "4 steps", "2 steps"]
    assert errors["4 steps"].x == [1.0, 0.75, 0.5, 0.25]


def test_quality_of_an_experiment(experiment):
    rows, _ = experiment.judged()
    over_w = {line.label: line for line in questions.over_w(experiment, rows, Chosen())}
    assert set(over_w) == {"teacher", "8 steps", "4 steps", "2 steps"}
    assert over_w["teacher"].reference
    assert not over_w["4 steps"].reference
    assert over_w["teacher"].x == [0, 1, 2, 4]
    assert over_w["teacher"].y[1] == pytest.approx(3 * (1 + 20 / 64**1.5))  # the teacher at its most steps
    steps = {line.label: line for line in questions.over_steps(experiment, rows, Chosen(w=1.0))}
    assert steps["progressive"].x == [2, 4, 8]
    assert steps["teacher"].x == [2, 4, 8, 64]
    nfe = {line.label: line for line in questions.over_evaluations(experiment, rows, Chosen(w=1.0))}
    assert nfe["teacher"].x == [4, 8, 16, 128]
    assert not any(line.reference for line in nfe.values())


def test_quality_of_a_sweep(sweep):
    rows, _ = sweep.judged()
    over_w = questions.over_w(sweep, rows, Chosen(steps=4))
    assert [line.label for line in over_w] == ["w_max=2,seed=0", "w_max=2,seed=1", "w_max=4,seed=0"]
    mean, jobs = questions.over_setting(sweep, rows, "w_max", Chosen(w=1.0, steps=4))
    figures = [3 * (1 + harm / 8) for harm in (2.0, 2.1, 4.0)]
    assert mean.x == ["2", "4"]
    assert mean.y == pytest.approx([(figures[0] + figures[1]) / 2, figures[2]])
    assert jobs.x == ["2", "2", "4"]
    assert jobs.y == pytest.approx(figures)


def test_the_pareto_front():
    points = [Line("a", [1, 2, 4], [9.0, 5.0, 6.0]), Line("b", [2, 8], [7.0, 4.0])]
    front = questions.front(points, less_is_better=True)
    assert (front.x, front.y) == ([1, 2, 8], [9.0, 5.0, 4.0])
    more = questions.front([replace(line, y=[-y for y in line.y]) for line in points], less_is_better=False)
    assert (more.x, more.y) == ([1, 2, 8], [-9.0, -5.0, -4.0])
    assert questions.front([], less_is_better=True).x == []


def test_numbers_are_sorted_as_numbers():
    assert sorted(["10", "9", "uniform", "1e-3"], key=questions.as_sorted) == ["1e-3", "9", "10", "uniform"]
