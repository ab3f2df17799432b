"""docs/own-data.md from a folder of transparent images to a student, as typed; and what of it is said in settings."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from running import Commands, Result
from safetensors import safe_open
from test_readme import blocks

from fewstep.artifacts.run_folder import PROVENANCE
from fewstep.data.generate import pictures
from fewstep.evaluation import own_features
from fewstep.evaluation.own_features import KEY

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
OWN = ("dataset=imagefolder", "dataset.root=data/birds")
SMALL = (
    "trainer=debug",
    "trainer.max_images=128",
    "trainer.snapshot_images=8",
    "trainer.diagnostics=0",
    "trainer.features=auto",
    "logger=csv",
)
SMALL_CHAIN = (
    "stage.progressive.ladder=[8,4]",
    *(f"stage.evaluate.{setting}" for setting in ("teacher_steps=[8]", "guided_steps=[8]", "baselines=[]", "w=[0,2]")),
)
PAGE = "docs/own-data.md"


def save_birds(folder: Path) -> None:
    """Two classes of round images of 30 pixels on nothing, with colours where nothing is to be seen."""
    y, x = np.mgrid[0:30, 0:30] - 14.5
    alpha = np.where(x**2 + y**2 < 14**2, 255, 0).astype(np.uint8)[:, :, None]
    for label, name in enumerate(("robin", "wren")):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(pictures(np.full(40, label), 30, label)):
            Image.fromarray(np.concatenate([image.transpose(1, 2, 0), alpha], 2)).save(folder / name / f"{number}.png")


@pytest.mark.slow
def test_a_folder_becomes_a_student_in_five_commands(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert blocks("sh") == blocks("bash", PAGE)  # README has the same
    lines = [line.partition("  #")[0] for block in blocks("bash", PAGE) for line in block.splitlines()]
    assert len(lines) == 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_features, "num_steps", lambda data: 20)
    save_birds(Path("data", "birds"))
    said = [run_small(line, commands) for line in lines]
    assert all(result.status == 0 for result in said), said
    for result in said[1:3]:
        assert "model=auto: unet, width 8, 1 blocks: 28 x 28 x 3, 72 images, cpu" in result.out
    with Image.open("new-birds.png") as image:
        assert image.width * image.height > 16 * 28 * 28
    (pipeline,) = Path("birds", "imagefolder", "pipeline").iterdir()
    (student,) = Path("birds", "imagefolder", "progressive").glob("*/model-4.safetensors")
    for folder in (pipeline, student.parent):  # the resolved values, not auto
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        assert settings["dataset"]["size"] == 28
        assert settings["model"]["network"]["_target_"] == "fewstep.networks.UNet"
        assert settings["model"]["network"]["channels"] == [8, 16, 32]
        assert "auto" not in yaml.safe_dump({key: settings[key] for key in ("model", "stage")})
    judged = [
        json.loads(file.read_text())
        for file in (pipeline / PROVENANCE, student.parent / "model-4-quality" / PROVENANCE)
    ]
    assert [each["protocol"]["feature_net"] for each in judged] == ["classifier of the 2 classes of imagefolder"] * 2
    (kept,) = Path("birds", ".reference").glob("*.safetensors")  # trained once
    with safe_open(kept, "pt") as file:
        card = json.loads(file.metadata()[KEY])
    assert (card["task"], card["num_classes"], card["halves"]) == ("classes", 2, True)
    again = commands.train(*OWN, "outputs=birds", "stage=guidance", *SMALL)
    assert again.status == 0, again  # its parent is the pipeline's teacher
    assert "finished before" not in again.out


def run_small(line: str, commands: Commands) -> Result:
    """A command of the page, with budgets of seconds."""
    program, *arguments = shlex.split(line)
    if program == "fewstep":
        return commands.fewstep(*arguments, *(["--num-images", "20"] if arguments[0] == "evaluate" else []))
    return commands.train(*arguments[1:], *SMALL, *SMALL_CHAIN)
