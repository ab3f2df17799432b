"""docs/own-data.md from a folder of transparent images to a student, as typed; and what of it is said in settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open
from test_readme import SMALL, blocks, link_checkout, run, run_blocks

from fewstep.data.generate import pictures
from fewstep.evaluation.own_features import KEY

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
def test_a_folder_becomes_a_student_in_five_commands(tmp_path: Path) -> None:
    lines = [line for block in blocks("bash", PAGE) for line in block.splitlines()]
    assert len(lines) == 5
    link_checkout(tmp_path)
    save_birds(tmp_path / "data" / "birds")
    run_blocks(PAGE, tmp_path)
    with Image.open(tmp_path / "new-birds.png") as image:
        assert image.width > 4 * 28
    (pipeline,) = (tmp_path / "birds" / "imagefolder" / "pipeline").iterdir()
    (student,) = (tmp_path / "birds" / "imagefolder" / "progressive").glob("*/model-4.safetensors")
    for folder in (pipeline, student.parent):  # the resolved values, not auto
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        assert settings["dataset"]["size"] == 28
        assert settings["model"]["network"]["_target_"] == "fewstep.networks.DiT"
        assert settings["model"]["network"]["config"]["num_layers"] == 1
        assert "auto" not in yaml.safe_dump({key: settings[key] for key in ("model", "stage")})
    judged = json.loads((student.parent / "model-4-quality" / "provenance.json").read_text())
    assert "patches classifier" not in json.dumps(judged)
    (kept,) = (tmp_path / "birds" / ".reference").glob("*.safetensors")
    with safe_open(kept, "pt") as file:
        card = json.loads(file.metadata()[KEY])
    assert (card["task"], card["num_classes"], card["halves"]) == ("classes", 2, True)
    assert "classifier of the 2 classes of imagefolder" in json.dumps(judged)
    own = "dataset=imagefolder dataset.root=data/birds outputs=birds logger=csv"
    again = run(f"python train.py {own} stage=guidance {SMALL}", tmp_path)
    assert again.returncode == 0, again.stderr  # its parent is the pipeline's teacher
