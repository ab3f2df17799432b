"""Data sets from a user's side: `fewstep data check`, and pipelines on generated files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import TINY, Commands

from fewstep.data.generate import generate_arrays, generate_cifar10, generate_imagefolder, generate_imagenet64, pictures

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
FEW = (  # rungs and cells: at 64 pixels each takes seconds
    "stage.progressive.ladder=[2,1]",
    *(f"stage.evaluate.{setting}" for setting in ("w=[1]", "teacher_steps=[1]", "guided_steps=[2]", "baselines=[]")),
)


@pytest.mark.parametrize(
    ("name", "generate", "expected"),
    [
        ("cifar10", generate_cifar10, "cifar10: 300 images to train on, 60 held out"),
        ("imagenet64", generate_imagenet64, "sha256 of 11 parts"),
        ("imagefolder", generate_imagefolder, "0 damaged images left out, none changed"),
        ("arrays", generate_arrays, "images uint8 (160, 32, 32, 3) read as N H W C, 0 is black and 255 white"),
        ("patches", None, "patches: 306,504 images to train on, 1,400 held out"),
        ("patches_sr", None, "patches_sr: 306,504 images to train on, 1,400 held out"),
        ("digits", None, "10 of 10 classes"),
    ],
)
def test_a_data_set_is_checked_and_shown(commands: Commands, tmp_path: Path, name, generate, expected) -> None:
    place = []
    if generate:
        generate(tmp_path / "files")
        place = ["--root", tmp_path / "files"]
    result = commands.fewstep("data", "check", name, *place, "--out", tmp_path / "grid.png")
    assert result.status == 0, result
    assert expected in result.out
    assert result.out.strip().endswith("grid.png: 64 training examples")
    with Image.open(tmp_path / "grid.png") as image:
        assert image.format == "PNG"
        assert image.width > 8 * 32


def test_settings_are_those_of_the_data_set(commands: Commands, tmp_path: Path) -> None:
    generate_imagefolder(tmp_path / "files")
    arguments = ("--root", tmp_path / "files", "--out", tmp_path / "grid.png")
    result = commands.fewstep("data", "check", "imagefolder", "size=16", "hold_out_every=4", *arguments)
    assert "imagefolder: 120 images to train on, 40 held out" in result.out
    assert "shape (3, 16, 16)" in result.out


def test_a_grey_folder_gives_grey_samples(commands: Commands, tmp_path: Path) -> None:
    """One channel from the data through network and figures to the file, on the background that was typed."""
    for name in ("ä", "b"):
        for number in range(20):
            image = Image.new("LA", (20, 20), (number * 10, 0))
            image.paste((255, 255), (0, 0, 10, 20))
            (tmp_path / "x" / name).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "x" / name / f"{number}.png")
    own = ("dataset=imagefolder", f"dataset.root={tmp_path / 'x'}", "dataset.size=16", "dataset.background=#333333")
    few = ("model=digits", *TINY, "trainer.max_images=64", "stage.training.batch_size=32", f"outputs={tmp_path / 'o'}")
    trained = commands.train("stage=teacher", *own, *few)
    assert trained.status == 0, trained
    assert "images were changed: 40 transparent on #333333" in trained.err
    (model,) = (tmp_path / "o" / "imagefolder" / "teacher").glob("*/model.safetensors")
    for num in ("1", "4"):
        sampled = commands.fewstep("sample", model, "--steps", "1", "--num", num, "--out", tmp_path / "s.png")
        assert sampled.status == 0, sampled
        assert Image.open(tmp_path / "s.png").mode == "L"
    black = commands.train("stage=guidance", *own[:-1], *few, f"teacher={model}")
    assert black.status == 2, black
    assert "it makes imagefolder (1, 16, 16) on #333333, this run imagefolder (1, 16, 16)" in black.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["."], ["a folder without images", "shows the data sets"]),
        (["nonsense"], ["dataset/nonsense", "cifar10", "imagefolder"]),
        (["cifar10", "--root", "no/such/place"], ["not at no/such/place", "cs.toronto.edu", "trainer=debug"]),
        (["imagenet64", "--root", "no/such/place"], ["not at no/such/place", "image-net.org", "trainer=debug"]),
        (["imagefolder", "--root", "no/such/place"], ["not at no/such/place", "sub-folder", "trainer=debug"]),
        (["patches", "size=33"], ["one of (32, 64)", "33"]),
        (["imagefolder", "strict=no"], ["dataset.strict must be true or false", "'no'"]),
        (["imagefolder", "size=null"], ["dataset.size must be a whole number", "None"]),
        (["imagefolder", "hold_out_every=2.5"], ["dataset.hold_out_every must be a whole number", "2.5"]),
        (["patches", "size"], ["KEY=VALUE", "'size'"]),
        (["patches", "sizes=32"], ["sizes", "--cfg job"]),
        (["patches", "--out", "grid.jpg"], ["end in .png", "grid.jpg"]),
    ],
)
def test_errors_are_one_line(commands: Commands, tmp_path: Path, monkeypatch, arguments, words) -> None:
    monkeypatch.chdir(tmp_path)
    commands.fewstep("data", "check", *arguments).is_one_error(*words)
    assert list(tmp_path.iterdir()) == []


def test_training_on_a_missing_data_set_is_refused(commands: Commands, tmp_path: Path) -> None:
    result = commands.train(
        "dataset=cifar10", f"dataset.root={tmp_path / 'x'}", f"outputs={tmp_path / 'o'}", "logger=csv"
    )
    result.is_one_error(str(tmp_path / "x"), "cs.toronto.edu", "`python train.py dataset=cifar10 trainer=debug`")


def test_missing_inception_weights_are_named(commands: Commands, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    generate_cifar10(tmp_path / "files")
    settings = ("dataset=cifar10", f"dataset.root={tmp_path / 'files'}", f"outputs={tmp_path / 'o'}", "logger=csv")
    commands.train(*settings, "stage=teacher").is_one_error("Inception", "weights-inception-2015-12-05-6726825d.pth")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "imagefolder"])
def test_the_pipeline_runs_on_generated_files(commands: Commands, tmp_path: Path, name: str) -> None:
    result = commands.train(
        f"dataset={name}",
        "trainer=debug",
        "trainer.max_images=32",
        "trainer.diagnostics=0",  # each takes longer than the training
        "logger=csv",
        *FEW,
        f"dataset.root={tmp_path / name}",
        f"outputs={tmp_path / 'outputs'}",
    )
    assert result.status == 0, result
    assert result.out.count("is not there, so") == 1
    assert "not from Inception" in result.err
    assert list((tmp_path / "outputs" / name / "pipeline").glob("*/quality.json"))


@pytest.mark.slow
def test_a_flat_folder_becomes_a_student_without_guidance(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number, image in enumerate(pictures(np.arange(60) % 4, 16, 0)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "flat" / f"{number}.png")
    settings = ("dataset=imagefolder", f"dataset.root={tmp_path / 'flat'}", f"outputs={tmp_path / 'outputs'}")
    fast = ("trainer=debug", "logger=csv", "trainer.max_images=32", *FEW, "stage.evaluate.w=[0,1]")
    commands.train(*settings, *fast).is_one_error("is in none", "dataset.labels=FILE.csv", "dataset.labels=none")
    result = commands.train(*settings, "dataset.labels=none", "name=plain", *fast)
    assert result.status == 0, result
    assert "nothing to guide by, so without stage guidance" in result.out
    made = tmp_path / "outputs" / "imagefolder"
    assert not (made / "guidance").exists()
    rows = json.loads((made / "pipeline" / "plain" / "quality.json").read_text())
    assert {row["model"] for row in rows} == {"teacher", "progressive"}
    assert {row["w"] for row in rows} == {0.0}
    student = made / "progressive" / "plain" / "model-1.safetensors"
    sampled = commands.fewstep("sample", student, "--num", "4", "--out", tmp_path / "samples.png")
    assert sampled.status == 0, sampled
