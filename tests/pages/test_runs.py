"""What the dashboard reads below outputs/."""

import json
import os
from pathlib import Path

import made_up
import pytest

from fewstep.pages.runs import FINISHED, RUNNING, STOPPED, SWEEP, SWEEPS, Outputs
from fewstep.sweeps import sweep as sweeps


def test_an_experiment_is_its_stages(tmp_path):
    (view,) = Outputs(made_up.experiment(tmp_path)).views()
    assert view.label == "digits, 2026-01-02_03-04-05"
    assert not view.is_sweep
    assert [run.stage for run in view.runs] == ["teacher", "guidance", "progressive", "pipeline"]
    assert {run.state() for run in view.runs} == {FINISHED}
    teacher, _, ladder, judged = view.runs
    assert (teacher.images, teacher.budget, teacher.seconds) == (10_000, 10_000, pytest.approx(20))
    assert (ladder.images, ladder.budget) == (40_000, 40_000)  # the rung of 2 steps has twice the budget
    assert judged.budget == 0
    rows, others = view.judged()
    assert (len(rows), others) == (40, 0)


def test_an_unfinished_run_runs_or_has_stopped(tmp_path):
    folder = tmp_path / "digits" / "progressive" / "now"
    made_up.train(folder, "progressive", rungs=(8, 4), share=0.5)
    ((run,),) = [view.runs for view in Outputs(tmp_path).views()]
    assert run.state() == RUNNING
    assert run.state(now=run.wrote + 329) == RUNNING  # 2.5 checkpoints of 120 s, and half a minute
    assert run.state(now=run.wrote + 331) == STOPPED
    assert run.images == 15_000


def test_files_are_read_again_when_they_change(tmp_path):
    outputs = Outputs(made_up.experiment(tmp_path))
    first = outputs.views()[0].runs[0]
    assert outputs.views()[0].runs[0].metrics is first.metrics  # not read again
    with (first.path / "metrics.csv").open("a") as file:
        file.write("12000,,0.125,,,,,\n13000,,0.1")  # the second is still being written
    again = outputs.views()[0].runs[0]
    assert (again.images, again.newest("train/loss")) == (12_000, 0.125)
    (first.path / "metrics.csv").unlink()
    assert outputs.views()[0].runs[0].images == 0


def test_a_sweep_is_one_view_with_what_differs(tmp_path):
    made_up.experiment(tmp_path)
    folder = made_up.sweep(tmp_path)
    views = Outputs(tmp_path).views()
    assert {view.label for view in views} == {"digits, 2026-01-02_03-04-05", "sweep guidance_range-12345678"}
    alone = Outputs(folder).views()
    assert [view.label for view in alone] == ["sweep guidance_range-12345678"]
    (view,) = alone
    assert view.is_sweep
    assert len(view.of("guidance")) == 4
    assert view.swept["w_max=2,seed=1"] == {"w_max": "2", "seed": "1"}
    assert view.objective["steps"] == 4


def test_the_newest_comes_first(tmp_path):
    made_up.experiment(tmp_path, "a")
    made_up.experiment(tmp_path, "b")
    for file in tmp_path.glob("digits/*/b/*"):
        os.utime(file, (1e9, 1e9))
    assert [view.label for view in Outputs(tmp_path).views()] == ["digits, a", "digits, b"]


def test_protocols_are_not_mixed(tmp_path):
    folder = made_up.sweep(tmp_path)
    other = made_up.judged(folder / "digits" / "pipeline" / "w_max=4,seed=1", made_up.quality(protocol="fffff000"))
    for file in other.iterdir():
        os.utime(file, (2e9, 2e9))
    rows, others = Outputs(folder).views()[0].judged()
    assert {row.protocol for _, row in rows} == {"fffff000"}
    assert others == 3


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", json.dumps([{"model": "teacher"}])])
def test_a_damaged_file_is_a_problem_of_its_run_alone(tmp_path, text):
    made_up.experiment(tmp_path)
    for name in ("quality.json", "config.yaml", "diagnostics.jsonl", "metrics.csv"):
        for file in Path(tmp_path).glob(f"digits/pipeline/*/{name}"):
            file.write_text(text)
    (view,) = Outputs(tmp_path).views()
    assert view.of("pipeline")[0].problem
    assert [(run.state(), run.budget) for run in view.runs][:3] == [(FINISHED, 10_000)] * 2 + [(FINISHED, 40_000)]
    assert view.runs[3].budget == 0


def test_an_empty_folder_has_no_view(tmp_path):
    assert Outputs(tmp_path).views() == []


def test_a_sweep_lies_where_sweeps_put_it():
    assert (SWEEPS, SWEEP) == (sweeps.SWEEPS, sweeps.SWEEP)
