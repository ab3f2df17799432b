"""plan=true as a user has it: what it prints, what it leaves, and that what it says is what a run takes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, TINY, Commands, config_of, files_below, run_as_composed

from fewstep.artifacts.model_file import load_model
from fewstep.estimate.machine import Machine
from fewstep.estimate.plan import Planner
from fewstep.estimate.table import Estimate
from fewstep.runs.config import Settings

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
PEAK = """
import runpy, sys
from fewstep.system.hardware import peak_memory
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("peak", peak_memory(), flush=True)
"""
FAST = ("trainer.max_images=256", "trainer.snapshots=0", "trainer.diagnostics=0")


def planned(folder: Path, *settings: str) -> Estimate:
    return Planner(Settings.read(config_of(*TINY, *settings, f"outputs={folder / 'outputs'}")), folder).estimate()


def test_a_mistake_is_one_line_before_anything_is_tried(commands: Commands, tmp_path: Path) -> None:
    result = commands.train("stage=guidance", "stage.w_max=-1", "plan=true", f"outputs={tmp_path}", *TINY)
    result.is_one_error("w_max=-1")


def test_batches_that_do_not_divide_are_refused(commands: Commands, tmp_path: Path) -> None:
    several = ("trainer.devices=3", "stage.training.batch_size=256")
    result = commands.train("stage=teacher", "plan=true", f"outputs={tmp_path}", *TINY, *several)
    result.is_one_error("batch", "256", "3")


def test_counts_and_files_are_those_of_a_run(tmp_path: Path) -> None:
    settings = ("stage=teacher", *FAST)
    (row,) = planned(tmp_path / "plan", *settings).rows
    run_as_composed(*TINY, *settings, f"outputs={tmp_path / 'outputs'}")
    (folder,) = (tmp_path / "outputs" / "digits" / "teacher").iterdir()
    denoiser, card = load_model(folder / "model.safetensors")
    assert row.parameters == sum(weight.numel() for weight in denoiser.parameters())
    assert (row.images, row.updates) == (card.images, card.images // (row.batch_size or 0))
    assert row.checkpoint == pytest.approx((folder / "last.ckpt").stat().st_size, rel=0.2)
    model = (folder / "model.safetensors").stat().st_size
    assert row.disk - row.checkpoint == pytest.approx(model, rel=0.2)
    assert row.seconds > 0
    assert row.memory > 0


@pytest.mark.parametrize("method", ["progressive", "tract", "consistency", "dmd2"])
def test_every_method_is_planned_and_a_missing_parent_is_stood_in_for(method: str, tmp_path: Path) -> None:
    found = planned(tmp_path, f"stage={method}", *FAST)
    phases = Settings.read(config_of(*TINY, f"stage={method}", *FAST))
    names = [row.name for row in found.rows]
    assert names[0].split()[0] == method
    assert len(set(names)) == len(names)
    assert all((row.parameters or 0) > 0 and row.images for row in found.rows)
    assert any("fresh network as the parent" in note for note in found.notes)
    assert phases.name == method


def test_what_is_too_large_to_be_tried_is_estimated_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "to_try", lambda *_, **__: 0)
    found = planned(tmp_path, "stage=teacher", *FAST)
    assert [row.how for row in found.rows] == ["estimated"]
    assert any("too large to be tried" in note for note in found.notes)
    assert any(line.startswith("time: at least") for line in found.lines)


@pytest.mark.slow
def test_a_pipeline_is_planned_and_nothing_is_left(commands: Commands, tmp_path: Path) -> None:
    result = commands.train("plan=true", f"outputs={tmp_path / 'outputs'}", *TINY)
    assert result.status == 0, result
    for row in ("teacher", "guidance", "progressive 4", "progressive 1", "evaluate", "all"):
        assert re.search(rf"│ {row} +│", result.out), row
    assert re.search(r"│ teacher +│ +0\.\d+ M │ +1,024 │ +256 │ +4 │", result.out), result.out
    assert files_below(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["digits", "patches"])
def test_the_memory_is_what_a_run_takes(dataset: str, tmp_path: Path) -> None:
    few = ("trainer.max_images=128", "trainer.diagnostics=1", "trainer.snapshots=1", "trainer.snapshot_images=100")
    settings = ["stage=teacher", f"dataset={dataset}", f"outputs={tmp_path / 'outputs'}", "logger=csv", *few]
    settings += ["trainer.features=patches"]

    def ran(program: list[str], *more: str) -> str:
        command = [sys.executable, *program, *settings, *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    planned = re.search(r"^memory: ([\d.,]+) (MiB|GiB)", ran(["train.py"], "plan=true"), re.MULTILINE)
    assert planned
    expected = float(planned[1].replace(",", "")) * (2**20 if planned[2] == "MiB" else 2**30)
    peak = re.search(r"^peak (\d+)$", ran(["-c", PEAK]), re.MULTILINE)
    assert peak
    assert expected == pytest.approx(int(peak[1]), rel=0.15)
