"""Help and misspelt settings answer without torch, whose import alone takes seconds and half a gigabyte."""

import subprocess
import sys

import pytest
from running import ROOT

import fewstep

FEWSTEP = ("-c", "from fewstep.commands.main import main; main()")
SLOW = {"torch", "lightning", "diffusers", "transformers", "wandb", "scipy", "numpy", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((*FEWSTEP, "--help"), 0, "Usage"),
        ((*FEWSTEP, "sample", "--help"), 0, "Draw images"),
        (("train.py", "--help"), 0, "method: "),
        (("train.py", "stage.trainnig=1"), 2, "trainnig"),
        (("train.py", "dataset=digit"), 2, "cifar10"),
    ],
    ids=("fewstep --help", "sample --help", "train.py --help", "key", "group"),
)
def test_what_needs_no_torch_does_not_import_it(arguments: tuple[str, ...], status: int, words: str):
    command = [sys.executable, "-X", "importtime", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time")}
    assert ended.returncode == status, ended.stderr
    assert words in ended.stdout + ended.stderr
    assert "fewstep.commands.main" in imported, "importtime does not say what is imported"
    assert not SLOW & imported


def test_public_names_are_there_when_they_are_used():
    assert {name for name in fewstep.__all__ if getattr(fewstep, name) is None} == set()
    assert fewstep.load.__module__ == "fewstep.inference.model"
    with pytest.raises(AttributeError, match="module 'fewstep' has no attribute 'laod'"):
        _ = fewstep.laod  # pyright: ignore[reportAttributeAccessIssue]
