"""A foreign teacher as the parent of a run: from python train.py to a student that lives on its schedule."""

import json
from pathlib import Path

import pytest
from diffusers import UNet2DModel
from running import TINY, Commands, files_below
from test_diffusers_folders import write

from fewstep.artifacts.model_file import load_model
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.schedule import CosineSchedule

pytest_plugins = ("running",)
FAST = (*TINY[3:], "trainer.max_images=64", "trainer.snapshots=0")
NATIVE = BetaSchedule("linear", beta_start=0.0001, beta_end=0.02)


def folder_of(path: Path, classes: int | None = 11) -> Path:
    """A tiny random UNet2DModel for digits."""
    own = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
    write(UNet2DModel(8, 1, 1, block_out_channels=(8,), layers_per_block=1, num_class_embeds=classes, **own), path)
    return path


def only(outputs: Path, pattern: str) -> Path:
    (found,) = outputs.glob(pattern)
    return found


def test_a_student_of_a_foreign_teacher_lives_on_its_schedule(commands: Commands, tmp_path: Path) -> None:
    folder, outputs = folder_of(tmp_path / "folder"), tmp_path / "outputs"
    done = commands.train("stage=guidance", f"teacher={folder}", *FAST, f"outputs={outputs}")
    assert done.status == 0, done
    guided = only(outputs, "digits/guidance/*/model.safetensors")
    denoiser, card = load_model(guided)
    assert type(denoiser.network).__name__ == "UNet2D"  # the teacher's, not that of model=digits
    assert (card.prediction, card.schedule, card.native_schedule) == ("eps", NATIVE, NATIVE)
    imported = guided.parent / card.parents[0].path
    assert imported.resolve() == only(outputs, "digits/teacher/imported-*/model.safetensors").resolve()
    own = (f"outputs={outputs}", "stage.ladder=[4,2]", *FAST)
    done = commands.train("stage=progressive", *own)  # the newest guided student, though model= says another network
    assert done.status == 0, done
    rung = only(outputs, "digits/progressive/*/model-2.safetensors")
    assert load_model(rung)[1].schedule == NATIVE
    shown = commands.fewstep("sample", rung, "--num", "4", "--w", "1", "--out", tmp_path / "some.png")
    assert shown.status == 0, shown
    commands.train("stage=guidance", *FAST, f"outputs={outputs}").is_one_error("needs a teacher", "there is none")


@pytest.mark.slow
def test_zero_terminal_snr_and_another_reading(commands: Commands, tmp_path: Path) -> None:
    folder, outputs = folder_of(tmp_path / "folder"), tmp_path / "outputs"
    own = (f"outputs={outputs}", *FAST)
    done = commands.train("stage=guidance", f"teacher={folder}", "zero_terminal_snr=true", "stage.prediction=v", *own)
    assert done.status == 0, done
    guided = only(outputs, "digits/guidance/*/model.safetensors")
    card = load_model(guided)[1]
    assert (card.prediction, card.schedule, card.native_schedule) == ("v", CosineSchedule(), NATIVE)
    ladder = ("stage=progressive", f"teacher={guided}", "stage.ladder=[4,2]", *own)
    commands.train(*ladder).is_one_error("does not fit", "its schedule is CosineSchedule", "this run's BetaSchedule")
    done = commands.train(*ladder, "zero_terminal_snr=true")
    assert done.status == 0, done
    assert load_model(only(outputs, "digits/progressive/*/model-2.safetensors"))[1].prediction == "v"
    commands.train("stage=guidance", "stage.prediction=score", *own).is_one_error("one of x, eps, v", "'score'")


@pytest.mark.slow
def test_the_pipeline_and_the_evaluation_take_one(commands: Commands, tmp_path: Path) -> None:
    folder, outputs = folder_of(tmp_path / "folder"), tmp_path / "outputs"
    grid = ["w=[1]", "teacher_steps=[2]", "guided_steps=[2]", "num_images=40"]
    own = (f"outputs={outputs}", *FAST, f"teacher={folder}")
    settings = ["stage.progressive.ladder=[2,1]", *(f"stage.evaluate.{setting}" for setting in grid)]
    done = commands.train("stage=pipeline", *own, *settings)
    assert done.status == 0, done
    (quality,) = outputs.glob("digits/pipeline/*/quality.json")
    assert {row["model"] for row in json.loads(quality.read_text())} >= {"teacher", "guided", "progressive"}
    done = commands.train("stage=evaluate", *own, *(f"stage.{setting}" for setting in grid))
    assert done.status == 0, done
    assert len(list(outputs.glob("digits/teacher/*/model.safetensors"))) == 1  # imported once, and none was trained


@pytest.mark.parametrize("stage", ["guidance", "pipeline", "evaluate"])
def test_a_teacher_that_cannot_be_guided_is_refused_at_once(commands: Commands, tmp_path: Path, stage: str) -> None:
    folder, outputs = folder_of(tmp_path / "folder", classes=10), tmp_path / "outputs"
    result = commands.train(f"stage={stage}", f"teacher={folder}", *FAST, f"outputs={outputs}")
    result.is_one_error("cannot be guided", "no row for no class", "num_class_embeds = classes + 1")
    assert not outputs.exists() or files_below(outputs) == []


def test_a_folder_of_other_data_or_none_is_refused(commands: Commands, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder")
    own = ("stage=guidance", *FAST, f"outputs={tmp_path / 'outputs'}")
    commands.train(*own, f"teacher={folder}", "dataset=mixture").is_one_error("makes 1 channels", "mixture has (2,)")
    (folder / "scheduler_config.json").unlink()
    commands.train(*own, f"teacher={folder}").is_one_error("lacks", "scheduler_config.json")
