"""Guidance without labels, as typed: a teacher without, clusters of its features, a pipeline with these."""

import json
import shutil
from pathlib import Path

import pytest
from running import TINY, Commands

from fewstep.artifacts.model_file import load_model

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
FEW = (
    "stage.progressive.ladder=[2,1]",
    *(f"stage.evaluate.{setting}" for setting in ("w=[1]", "teacher_steps=[1]", "guided_steps=[2]", "baselines=[]")),
)


@pytest.mark.slow
def test_from_no_labels_to_figures(commands: Commands, tmp_path: Path) -> None:
    outputs, labels = f"outputs={tmp_path}", tmp_path / "labels.safetensors"
    made = commands.train("stage=teacher", "dataset.labels=none", "name=plain", outputs, *TINY)
    assert made.status == 0, made
    plain = tmp_path / "digits/teacher/plain"
    line = ("data", "label", "digits", plain, "--clusters", "4", "--images", "2560", "--out", labels)
    result = commands.fewstep(*line)
    assert result.status == 0, result
    assert "4 clusters" in result.out
    assert "held out, beside its own labels: purity" in result.out
    assert labels.with_suffix(".png").is_file()
    before = labels.read_bytes()
    assert commands.fewstep(*line).status == 0
    assert labels.read_bytes() == before

    result = commands.train(f"dataset.labels={labels}", "name=mine", outputs, *TINY, *FEW)
    assert result.status == 0, result
    student = tmp_path / "digits/progressive/mine/model-1.safetensors"
    facts = load_model(student)[1].data
    assert facts.num_classes == 4
    rows = json.loads((tmp_path / "digits/pipeline/mine/quality.json").read_text())
    assert all(row["accuracy"] is None for row in rows)

    stranger = commands.train("stage=guidance", f"teacher={plain}", f"dataset.labels={labels}", outputs, *TINY)
    stranger.is_one_error("with labels none, this run digits (1, 8, 8) with labels")
    commands.train("stage=guidance", f"teacher={plain}", outputs, *TINY).is_one_error("with labels none")
    assert commands.fewstep("evaluate", student, "--num-images", "32", "--w", "1").status == 0  # as its run had them
    moved = tmp_path / "elsewhere" / student.name
    moved.parent.mkdir()
    shutil.copy(student, moved)
    commands.fewstep("evaluate", moved).is_one_error("with labels", "the data set is digits (1, 8, 8)")
    guided = tmp_path / "digits/guidance/mine/model.safetensors"
    commands.fewstep("data", "label", "digits", guided, "--clusters", "4", "--out", labels).is_one_error("a student")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clusters", "1", "--out", "x.safetensors"], ["--clusters must be from 2"]),
        (["--clusters", "1500", "--out", "x.safetensors"], ["the number of images, 1433", "1500"]),
        (["--clusters", "5", "--images", "9", "--out", "x.safetensors"], ["--images", "--batch-size", "256"]),
        (["--clusters", "5", "--out", "x.npz"], ["--out must end in .safetensors"]),
        (["--clusters", "5", "--out", "x.safetensors"], ["there is none at nothing.safetensors"]),
    ],
)
def test_a_bad_line_is_one_error(commands: Commands, arguments: list[str], words: list[str]) -> None:
    commands.fewstep("data", "label", "digits", "nothing.safetensors", *arguments).is_one_error(*words)


def test_labels_of_points_are_one_error(commands: Commands, tmp_path: Path) -> None:
    commands.train("dataset=mixture", "+dataset.labels=none", f"outputs={tmp_path}").is_one_error(
        "mixture has none", "labels=own"
    )
