"""Presets and bad sweeps as typed; plan=true composes and checks every job, and trains nothing."""

import re
from pathlib import Path

import pytest
from running import ROOT, Commands

from fewstep.artifacts.run_folder import locked

pytest_plugins = ("running",)
PRESETS = {  # jobs, shared parents
    "guidance_range": (6, 1),
    "step_counts": (9, 1),
    "guidance_by_steps": (2, 1),
    "ablations": (12, 1),
    "seeds": (5, 0),
    "methods": (75, 1),  # three seeds of each, from one guided student
    "smaller_student": (12, 7),  # one teacher, and a guided student for each two methods
}


def test_every_preset_is_here_and_asks_its_question():
    files = {path.stem: path.read_text() for path in (ROOT / "sweeps").glob("*.yaml")}
    assert set(files) == {*PRESETS, "search"}
    for text in files.values():
        assert text.startswith("# @package _global_\n# ")
        assert "?" in text.partition("# Costs: ")[0], text
        assert "\n# Costs: " in text


ELSEWHERE = [
    ("mixture", "guidance_range"),
    ("mixture", "step_counts"),
    ("mixture", "methods"),
    ("imagenet64", "smaller_student"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "preset"), [*(("digits", preset) for preset in PRESETS), *ELSEWHERE])
def test_a_preset_takes_any_data_set(dataset: str, preset: str, tmp_path: Path, commands: Commands):
    jobs, parents = PRESETS[preset]
    line = [f"sweeps={preset}", f"dataset={dataset}", "plan=true", f"outputs={tmp_path}"]
    if preset == "methods":  # each method once
        line, jobs = [*line, "seed=0"], jobs // 3
    if dataset == "mixture":  # its teacher is exact, and trained by nobody
        parents = int(preset in ("step_counts", "guidance_by_steps", "methods"))
    result = commands.train(*line)
    assert result.status == 0, result
    assert result.out.splitlines()[-1].endswith(
        f"{preset}-{folder_digest(result.out)}: {jobs} jobs, {parents} shared parents"
    )
    assert not list(tmp_path.iterdir())


def test_methods_are_compared_over_seeds_that_share_one_guided_student(tmp_path: Path, commands: Commands):
    out = commands.train("sweeps=methods", "method=tract,dmd2", "plan=true", f"outputs={tmp_path}").out
    assert "6 jobs, 1 shared parents" in out
    assert out.splitlines()[1:3] == ["seed=0,method=tract: a job", "seed=0,method=dmd2: a job"]


def folder_digest(out: str) -> str:
    found = re.search(r"-([0-9a-f]{8}): \d+ jobs", out)
    assert found is not None
    return found[1]


def test_a_parent_is_shared_by_those_that_would_train_it_alike(tmp_path: Path, commands: Commands):
    """Two seeds are two teachers; the ladder's sampler is no matter of the guided student's."""
    both = ("seed=0,1", "stage.progressive.sampler=deterministic,stochastic", "plan=true", f"outputs={tmp_path}")
    assert "4 jobs, 2 shared parents" in commands.train("--multirun", *both).out
    wide = ("seed=0", "stage.guidance.w_max=2,4", *both[1:])
    out = commands.train("--multirun", *wide).out
    assert "4 jobs, 3 shared parents" in out  # a teacher of two guided students, each of two ladders
    assert out.count("teacher of several") == 1
    assert out.count("guidance of several") == 2


def test_a_preset_takes_a_method_of_ones_own(tmp_path: Path, commands: Commands):
    text = (ROOT / "conf/stage/tract.yaml").read_text().replace("name: tract", "name: own")
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage/own.yaml").write_text(text)
    line = ("sweeps=methods", "method=own,dmd2", "plan=true", f"outputs={tmp_path}", "--config-dir", str(tmp_path))
    result = commands.train(*line)
    assert result.out.splitlines()[1:3] == ["seed=0,method=own: a job", "seed=0,method=dmd2: a job"], result
    assert "6 jobs, 1 shared parents" in result.out


def test_the_search_checks_both_ends(tmp_path: Path, commands: Commands):
    pytest.importorskip("optuna")
    result = commands.train("sweeps=search", "plan=true", f"outputs={tmp_path}", "hydra.sweeper.trials=7")
    assert result.status == 0, result
    assert "search: 7 trials" in result.out
    no_rung = commands.train("sweeps=search", "stage.progressive.ladder=[16,8]", "plan=true")
    no_rung.is_one_error("4 steps", "of 8 steps", "hydra.sweeper.objective.steps")
    commands.train("--multirun", "sweeper=optuna", "seed=3").is_one_error("something to search")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["sweeps=seeds", "stage.nope=3"], ["nope"]),
        (["--multirun", "stage.guidance.w_maxx=1,2"], ["w_maxx"]),
        (["sweeps=nope"], ["sweeps/nope", "seeds"]),
        (["sweeps=seeds,ablations"], ["one preset at a time"]),
        (["sweeps=seeds", "stage=teacher"], ["sweeps=seeds", "stage=teacher", "--multirun"]),
        (["sweeps=seeds", "seed=range(3,3)"], ["seed=range(3,3)", "no value"]),
        (["sweeps=seeds", "seed=[]"], ["something to sweep over"]),
        (["--multirun", "seed=0,x"], ["seed", "'x'"]),
        (["sweeps=seeds", "recipe=nope"], ["recipe", "nope"]),
        (["sweeps=guidance_range", "stage.guidance.w_max=2,-1"], ["w_max=-1"]),
        (["--multirun", "stage.stages=[teacher],[nothing]"], ["stage.stages", "nothing"]),
        (["--multirun", "method=tract,nothing"], ["nothing", "progressive", "tract"]),
        (["sweeps=seeds", "hydra.sweeper.objective.figure=beauty"], ["beauty", "inception_score"]),
        (["--multirun", "stage.guidance.w_max=interval(1,2)"], ["interval(1,2)", "sweeper=optuna"]),
        (["sweeps=ablations", "trainer.devices=0"], ["trainer.devices"]),
    ],
)
def test_a_bad_sweep_is_one_line_and_starts_nothing(
    settings: list[str], words: list[str], tmp_path: Path, commands: Commands
):
    commands.train(*settings, f"outputs={tmp_path}").is_one_error(*words)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_swept_once_at_a_time(tmp_path: Path, commands: Commands):
    with locked(tmp_path / "sweeps" / "mine") as acquired:
        assert acquired
        result = commands.train("sweeps=seeds", "name=mine", f"outputs={tmp_path}")
    result.is_one_error("being swept by another process", "mine")
