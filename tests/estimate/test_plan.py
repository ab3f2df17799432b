"""plan=true as a user has it: what it prints, what it leaves, and that the memory it names is the one a run takes."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import ROOT, TINY, Commands, config_of, files_below

from fewstep.estimate.attempts import TOO_LARGE, tried
from fewstep.estimate.request import Attempt
from fewstep.runs.build import plain
from fewstep.runs.pipeline import prepare

pytest_plugins = ("running",)
PEAK = """
import runpy, sys
from fewstep.system.hardware import peak_memory
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("peak", peak_memory(), flush=True)
"""


def attempt(**changes: object) -> Attempt:
    config = config_of("stage=teacher", *TINY)
    prepare(config)
    settings = plain(config)
    settings["stage"]["training"] |= changes
    return Attempt("teacher", settings, 8, looks=False)


def test_a_trial_that_needs_too_much_memory_is_ended(tmp_path: Path) -> None:
    said: list[str] = []
    reason = tried(tmp_path, [attempt()], limit=2**20, say=said.append)
    assert reason == TOO_LARGE
    assert said == ["teacher"]


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str | None]:
    """A trial that is a line of shell."""

    def ended(line: str) -> str | None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return tried(tmp_path, [attempt()], limit=2**40, say=lambda stage: None)

    return ended


def test_how_a_trial_may_end(ends: Callable[[str], str | None]) -> None:
    assert ends("exit 0") is None
    assert ends("echo 'error: DefaultCPUAllocator: Error code 12 (Cannot allocate memory)'; exit 1") == TOO_LARGE
    assert ends("echo 'error: CUDA out of memory. Tried to allocate 2 GiB' >&2; exit 1") == TOO_LARGE
    assert ends("kill -9 $$") == "was ended by signal 9, as the system does where memory is short"
    with pytest.raises(ValueError, match="needs a positive learning_rate"):
        ends("echo 'error: stage.training needs a positive learning_rate'; exit 2")
    with pytest.raises(RuntimeError, match="it broke"):
        ends("echo 'error: it broke'; exit 1")


def test_a_mistake_is_one_line_before_anything_is_tried(commands: Commands, tmp_path: Path) -> None:
    result = commands.train("stage=guidance", "stage.w_max=-1", "plan=true", f"outputs={tmp_path}", *TINY)
    result.is_one_error("w_max=-1")


def test_batches_that_do_not_divide_are_refused(commands: Commands, tmp_path: Path) -> None:
    several = ("trainer.devices=3", "stage.training.batch_size=256")
    result = commands.train("stage=teacher", "plan=true", f"outputs={tmp_path}", *TINY, *several)
    result.is_one_error("batch", "256", "3")


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
