"""`fewstep dashboard --local` becomes TensorBoard; the W&B workspace is in tests/tracking/test_workspace.py."""

import os
import sys

import pytest
from running import Commands

from fewstep.commands.dashboard import PAGE
from fewstep.tracking.tensorboard import TensorBoardRun

pytest_plugins = ("running",)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that the process would have become."""
    lines: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, line: lines.append([path, *line[1:]]))
    return lines


def test_it_starts_tensorboard_on_all_runs_or_on_those_of_a_sweep(commands: Commands, executed, tmp_path):
    outputs = tmp_path / "outputs"
    sweep = outputs / "sweeps" / "seeds-1"
    for folder in (outputs / "digits" / "teacher" / "now", sweep / "digits" / "teacher" / "seed=0"):
        run = TensorBoardRun(folder, {"seed": 0}, [{"images": 128, "train/loss": 0.5}])
        run.finish()
    (sweep / "sweep.yaml").write_text("swept: {}\n")
    for arguments, folder in (((), outputs), (("--sweep", "seeds-1"), sweep)):
        result = commands.fewstep("dashboard", "--local", "--outputs", outputs, "--port", "6007", *arguments)
        assert result.out == f"tensorboard --logdir {folder} --port 6007\n"
        assert executed.pop() == [sys.executable, "-m", PAGE, "--logdir", str(folder), "--port", "6007"]


def test_mistakes_are_one_line(commands: Commands, executed, tmp_path):
    commands.fewstep("dashboard", "--local", "--outputs", tmp_path / "none").is_one_error("--outputs", "none")
    commands.fewstep("dashboard", "--local", "--outputs", tmp_path).is_one_error("logger=tensorboard")
    assert executed == []
