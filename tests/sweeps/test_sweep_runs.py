"""Whole sweeps, each job a process: parents once, failures, what is finished left alone, the same as a run by hand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from running import ROOT, TINY, Commands, config_of
from safetensors.torch import load_file

from fewstep.artifacts.model_file import load_model
from fewstep.artifacts.quality_file import read_rows
from fewstep.runs.config import Settings
from fewstep.runs.pipeline import run
from fewstep.system.files import sha256_of

pytest_plugins = ("running",)
pytestmark = pytest.mark.slow
JOB = (*TINY, "dataset=mixture", "trainer.diagnostics=0", "trainer.snapshots=0")
ONE = (*JOB, "trainer.max_images=64")
QUICK = (
    *ONE,
    "stage.progressive.ladder=[4,2]",
    "stage.evaluate.baselines=[]",
    "stage.evaluate.teacher_steps=[2]",
    "stage.evaluate.guided_steps=[2]",
)
CHAINS = "stage.progressive.sampler=deterministic,stochastic"


def states(out: str) -> dict[str, str]:
    """Job -> how it ended, of the table at the end."""
    cells = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    return {row[1].strip(): row[2].strip() for row in cells if row[1].strip()}


def test_a_sweep_trains_a_shared_parent_once_and_runs_again_only_what_is_missing(tmp_path: Path, commands: Commands):
    line = ("--multirun", CHAINS, *QUICK, f"outputs={tmp_path}", "name=mine", "hydra.sweeper.objective.steps=2")
    result = commands.train(*line)
    assert result.status == 0, result
    assert list(states(result.out).values()) == ["done"] * 3
    sweep = tmp_path / "sweeps" / "mine"
    (shared,) = yaml.safe_load((sweep / "sweep.yaml").read_text())["parents"]
    (student,) = sweep.glob("mixture/guidance/*/model.safetensors")
    assert student.parent.name == shared
    jobs = sorted(path.parent.name for path in sweep.glob("mixture/pipeline/*/quality.json"))
    assert jobs == ["sampler=deterministic", "sampler=stochastic"]
    # by hand, from that parent: the same weights
    own = ("stage.progressive.sampler=stochastic", f"teacher={student}", f"outputs={tmp_path / 'hand'}", "name=one")
    run(Settings.read(config_of(*QUICK, *own)))
    (by_hand,) = (tmp_path / "hand").glob("mixture/progressive/*/model-2.safetensors")
    of_sweep, alone = (
        load_file(f) for f in (sweep / "mixture/progressive/sampler=stochastic/model-2.safetensors", by_hand)
    )
    assert all(of_sweep[name].equal(alone[name]) for name in alone)

    (sweep / "mixture/pipeline/sampler=stochastic/quality.json").unlink()
    before = student.stat().st_mtime_ns
    again = commands.train(*line)
    assert states(again.out) == {"sampler=deterministic": "finished before", "sampler=stochastic": "done"} | {
        shared: "finished before"
    }
    assert student.stat().st_mtime_ns == before
    assert commands.fewstep("collect", sweep).status == 0


def test_methods_of_a_sweep_start_from_one_guided_student(tmp_path: Path, commands: Commands):
    """Each is judged with its ancestors, and they are compared by their own students."""
    quick = [setting for setting in QUICK if "progressive" not in setting]
    line = ("--multirun", "method=tract,consistency", *quick, f"outputs={tmp_path}", "name=own")
    result = commands.train(*line, "hydra.sweeper.objective.steps=1")
    assert result.status == 0, result
    sweep = tmp_path / "sweeps" / "own"
    (student,) = sweep.glob("mixture/guidance/shared-*/model.safetensors")
    for method in ("tract", "consistency"):
        (model,) = sweep.glob(f"mixture/{method}/method={method}/model*.safetensors")
        assert [ancestor.sha256 for ancestor in load_model(model)[1].parents] == [sha256_of(student)]
        rows = read_rows(sweep / f"mixture/pipeline/method={method}/quality.json")
        assert {row.model for row in rows} == {"teacher", "guided", method}
    collected = commands.fewstep("collect", sweep)
    assert collected.status == 0, collected
    assert "method = tract: " in collected.out
    assert "no such figure" not in collected.out


def test_the_jobs_of_a_stage_find_their_parent_where_the_user_keeps_it(tmp_path: Path, commands: Commands):
    teacher = (*ONE, "teacher=null", f"outputs={tmp_path}")
    commands.train("--multirun", "stage=guidance", "seed=0,1", *teacher).is_one_error("needs a teacher below")
    run(Settings.read(config_of("stage=teacher", *teacher)))
    result = commands.train("--multirun", "stage=guidance", "stage.w_max=1,2", *teacher, "name=mine")
    assert result.status == 0, result
    teachers = yaml.safe_load((tmp_path / "sweeps/mine/sweep.yaml").read_text())["teachers"]
    (own,) = tmp_path.glob("mixture/teacher/*/model.safetensors")
    assert teachers == {"w_max=1": str(own), "w_max=2": str(own)}


def test_a_failed_job_does_not_end_the_sweep(tmp_path: Path, commands: Commands):
    """A teacher that is no file fails its job alone; status 1, and its own words in the table."""
    bad = tmp_path / "bad.safetensors"
    bad.write_text("no model")
    line = ("--multirun", "stage=evaluate", f"teacher={bad},exact", *ONE, f"outputs={tmp_path}", "name=mine")
    result = commands.train(*line)
    assert result.status == 1, result
    assert "2 of 2 failed" in result.out
    assert "bad.safetensors" in result.out
    assert len(list((tmp_path / "sweeps/mine/logs").glob("*.log"))) == 2


@pytest.mark.parametrize("launcher", ["joblib", "local"])
def test_several_jobs_at_a_time(launcher: str, tmp_path: Path, commands: Commands):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    settings = ("seed=0,1", "stage=guidance", *ONE, f"launcher={launcher}", f"outputs={tmp_path}", "name=mine")
    result = commands.train("--multirun", *settings)
    assert result.status == 0, result
    assert states(result.out) == {"seed=0": "done", "seed=1": "done"}


def test_a_sweep_that_is_told_to_stop_stops_its_job_and_goes_on_later(tmp_path: Path):
    # one thread, as users of several jobs have it; the job would last for minutes
    settings = [
        "seed=0,1",
        "stage=guidance",
        *JOB,
        "trainer.max_images=500000",
        f"outputs={tmp_path}",
        "name=mine",
    ]
    command = [sys.executable, str(ROOT / "train.py"), "--multirun", *settings, "stage.training.images=500000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    metrics = tmp_path / "sweeps/mine/mixture/guidance/seed=0/metrics.csv"
    deadline = time.monotonic() + 120
    while not metrics.is_file() and sweep.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert metrics.is_file()
    sweep.send_signal(signal.SIGTERM)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + signal.SIGTERM, err
    assert "resumes the run" in err
    assert (metrics.parent / "last.ckpt").is_file()
    assert not (metrics.parent.parent / "seed=1").exists()
    assert json.dumps(yaml.safe_load((tmp_path / "sweeps/mine/sweep.yaml").read_text()))
