"""The `fewstep` command and `fewstep.load`, on models of a second's training."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import ROOT, Commands, Result, files_below, make_chain

import fewstep
from fewstep.artifacts.model_file import load_model, save_model

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")

ROW = [
    "model",
    "sampler",
    "steps",
    "nfe",
    "w",
    "fid",
    "inception_score",
    "precision",
    "recall",
    "accuracy",
    "diversity",
]
ROW += ["same_noise_rmse", "images_per_second", "num_images", "seed", "protocol"]


@pytest.fixture(scope="module")
def chain(as_users_run, tmp_path_factory) -> dict[str, Path]:
    return make_chain(tmp_path_factory.mktemp("chain"))


def arrays(commands: Commands, model: Path, out: Path, *arguments: str) -> dict[str, np.ndarray]:
    result = commands.fewstep("sample", model, "--out", out, *arguments)
    assert result.status == 0, result
    with np.load(out) as file:  # without allow_pickle: plain arrays
        return dict(file)


def test_samples_as_arrays(commands, chain, tmp_path):
    drawn = arrays(commands, chain["2"], tmp_path / "a.npz", "--num", "12")
    assert drawn.keys() == {"images", "labels"}
    assert (drawn["images"].dtype, drawn["images"].shape) == (np.uint8, (12, 8, 8, 1))
    assert drawn["labels"].dtype == np.int64
    assert drawn["labels"].tolist() == [*range(10), 0, 1]  # classes in turn

    again = arrays(commands, chain["2"], tmp_path / "b.npz", "--num", "12")
    fewer = arrays(commands, chain["2"], tmp_path / "c.npz", "--num", "5")
    other = arrays(commands, chain["2"], tmp_path / "d.npz", "--num", "12", "--seed", "1")
    assert np.array_equal(again["images"], drawn["images"])
    assert np.array_equal(fewer["images"], drawn["images"][:5])
    assert not np.array_equal(other["images"], drawn["images"])

    threes = arrays(commands, chain["2"], tmp_path / "e.npz", "--num", "4", "--label", "3", "--w", "2", "--steps", "2")
    assert threes["labels"].tolist() == [3] * 4
    expected = fewstep.load(chain["2"]).sample([3] * 4, steps=2, w=2.0, seed=0)
    assert np.array_equal(
        threes["images"], np.rint((expected.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
    )


@pytest.mark.parametrize(("model", "steps", "evaluations"), [("teacher", 64, 2), ("guided", 64, 1), ("1", 1, 1)])
def test_samples_as_a_picture_with_both_numbers_for_guidance(commands, chain, tmp_path, model, steps, evaluations):
    out = tmp_path / "deep" / "a.png"
    result = commands.fewstep("sample", chain[model], "--out", out, "--num", "20", "--w", "2")
    assert (result.status, result.err) == (0, "")
    assert f"20 images, {steps} steps of {evaluations} evaluation(s), w = 2 (guidance_scale 3)" in result.out
    assert files_below(tmp_path) == ["deep/a.png"]
    with Image.open(out) as image:
        assert image.width > image.height > 0  # ten classes in two rows


def test_a_base_takes_the_first_steps(commands, chain, tmp_path):
    student, teacher = fewstep.load(chain["2"]), fewstep.load(chain["teacher"])
    result = commands.fewstep(
        "sample", chain["2"], "--out", tmp_path / "a.npz", "--num", "4", "--base", chain["teacher"], "--base-steps", "2"
    )
    assert (result.status, result.err) == (0, "")
    assert "2 step(s) of the base, 2 evaluation(s) at w = 0, then 1 steps of 1 evaluation(s), w = 1" in result.out
    expected = student.sample([0, 1, 2, 3], base=fewstep.Base(teacher, steps=2), batch_size=3)
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(
            file["images"], np.rint((expected.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
        )
    assert not torch.equal(expected, student.sample([0, 1, 2, 3]))
    two, one = fewstep.Base(teacher, w=2.0), fewstep.Base(fewstep.load(chain["guided"]), w=2.0)
    assert (two.first_steps.evaluations, one.first_steps.evaluations) == (2, 1)
    again = teacher.sample([5], steps=4, w=0.0, base=fewstep.Base(teacher))  # a model in front of itself
    torch.testing.assert_close(again, teacher.sample([5], steps=4, w=0.0), atol=1e-5, rtol=0)


def test_a_trace_is_a_picture_and_its_numbers(commands, chain, tmp_path):
    out = tmp_path / "trace.png"
    result = commands.fewstep("trace", chain["2"], "--out", out, "--num", "3", "--teacher-steps", "9")
    assert (result.status, result.err) == (0, "")
    assert "teacher, 9 steps, w = 1" in result.out
    assert "progressive, 2 steps, w = 1" in result.out
    assert result.out.count("RMSE 0.000, feature distance 0.000") == 2
    with Image.open(out) as image:
        assert image.width > 800
    alone = commands.fewstep("trace", chain["teacher"], "--out", out, "--num", "2", "--steps", "3")
    assert alone.out.count("t = ") == 3


def test_samples_of_points(commands, tmp_path):
    tiny = ("trainer=debug", "logger=csv", "trainer.max_images=64", "trainer.snapshot_images=20")
    trained = commands.train("stage=guidance", "dataset=mixture", *tiny, f"outputs={tmp_path}")
    assert trained.status == 0, trained
    (model,) = tmp_path.glob("mixture/guidance/*/model.safetensors")
    drawn = arrays(commands, model, tmp_path / "a.npz", "--num", "7", "--steps", "2")
    assert (drawn["images"].dtype, drawn["images"].shape) == (np.float32, (7, 2))
    assert drawn["labels"].tolist() == [0, 1, 2, 3, 4, 0, 1]
    judged = commands.fewstep("evaluate", model, "--num-images", "64", "--w", "1")
    assert judged.status == 0, judged
    assert {row["model"] for row in json.loads((model.parent / "model-quality" / "quality.json").read_text())} >= {
        "guided"
    }


def test_load_and_sample(chain):
    model = fewstep.load(chain["1"])
    x = model.sample(torch.tensor([3, 1, 4]), steps=1, w=2.0, seed=0)
    assert (x.shape, x.dtype) == ((3, 1, 8, 8), torch.float32)
    assert -1 <= x.min() <= x.max() <= 1
    assert torch.equal(model.sample([3, 1, 4], w=2.0), x)
    torch.testing.assert_close(model.sample([3, 1, 4], w=2.0, batch_size=2), x)
    assert not torch.equal(model.sample([3, 1, 4], w=0.0), x)
    assert (model.card.label, model.card.num_steps) == ("progressive", 1)


def test_info_is_json(commands, chain):
    result = commands.fewstep("info", chain["2"])
    assert result.status == 0
    about = json.loads(result.out)
    assert (about["method"], about["w_min"], about["w_max"]) == ("progressive", 0.0, 4.0)
    sampling = {"sampler": "deterministic", "times": [1.0, 0.5], "guidance": "input", "direction": "decode"}
    assert about["sampling"] == sampling
    stated = {key: value for key, value in about["data"].items() if value is not None}
    assert stated == {
        "name": "digits",
        "shape": [1, 8, 8],
        "num_classes": 10,
        "low": -1.0,
        "high": 1.0,
        "background": "white",
    }
    assert [parent["method"] for parent in about["parents"]] == ["guidance", "teacher"]
    assert (about["network"], about["arguments"]["width"], about["prediction"]) == ("ResidualMLP", 32, "v")
    assert about["parameters"] > 1000
    assert len(about["sha256"]) == 64


def test_evaluate_and_report(commands, chain, tmp_path):
    result = commands.fewstep("evaluate", chain["2"], "--num-images", "64", "--w", "1", "--out", tmp_path / "judged")
    assert result.status == 0, result
    rows = json.loads((tmp_path / "judged" / "quality.json").read_text())
    assert {row["model"] for row in rows} == {"teacher", "guided", "progressive"}  # beside its ancestors
    for row in rows:
        assert set(ROW) <= set(row)
        assert (row["w"], row["num_images"], row["seed"]) == (1.0, 64, 0)
    report = tmp_path / "judged" / "report.html"
    before = report.read_bytes()
    assert len(before) < 5e6

    report.unlink()
    result = commands.fewstep("report", tmp_path / "judged")
    assert (result.status, result.out.strip()) == (0, str(report))
    assert report.read_bytes() == before


def test_evaluate_leaves_its_figures_beside_the_model(commands, chain):
    result = commands.fewstep("evaluate", chain["teacher"], "--num-images", "20", "--w", "0")
    assert result.status == 0, result
    folder = chain["teacher"].with_name("model-quality")
    assert {"quality.json", "provenance.json", "report.html"} <= set(files_below(folder))


# MODEL --------------------------------------------------------------------------------------------------------------


def student_of(outputs: Path, chain: dict[str, Path], place: str, names: list[str], *, finished: bool = True) -> Path:
    """A run folder with copies of a 2-step student under these names; give its path."""
    folder = outputs / place
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    for name in names:
        shutil.copyfile(chain["2"], folder / name)
    (folder / "products.json").write_text(json.dumps([*names, *([] if finished else ["model-1.safetensors"])]))
    return folder


def taken(result: Result) -> Path:
    """The file that a command says it has taken."""
    assert result.status == 0, result
    (line,) = result.err.strip().splitlines()
    return Path(line.removeprefix("model: "))


def test_latest_is_the_newest_student_of_all_data_sets_with_four_steps(commands, chain, tmp_path):
    rungs = ["model-8.safetensors", "model-4.safetensors", "model-2.safetensors"]
    older = student_of(tmp_path, chain, "digits/progressive/2030-01-01_00-00-00", rungs)
    options = ("--outputs", tmp_path)
    result = commands.fewstep("info", "latest", *options)
    assert taken(result) == older / "model-4.safetensors"
    assert json.loads(result.out)["method"] == "progressive"  # the line above is not in the way of the JSON
    newer = student_of(tmp_path, chain, "patches/tract/2030-01-02_00-00-00", [rungs[0], rungs[2]])
    assert taken(commands.fewstep("info", "latest", *options)) == newer / "model-8.safetensors"
    newest = student_of(tmp_path, chain, "digits/consistency/2030-01-03_00-00-00", ["model.safetensors"])
    student_of(tmp_path, chain, "digits/consistency/2030-01-04_00-00-00", ["model.safetensors"], finished=False)
    assert taken(commands.fewstep("info", *options, "latest")) == newest / "model.safetensors"  # options come first too


def test_latest_is_no_teacher_and_no_guided_student(commands, chain, tmp_path):
    options = ("--outputs", chain["2"].parents[3], "--num", "2", "--out", tmp_path / "a.npz")
    result = commands.fewstep("sample", "latest", *options)
    assert taken(result) == chain["2"]  # of 2 and 1 steps, the most


def test_latest_needs_a_student(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands.fewstep("info", "latest").is_one_error("newest few-step student below outputs, and there is none")
    commands.fewstep("info", "latest", "--outputs", "runs").is_one_error("below runs", "python train.py")


def test_a_run_folder_is_its_model_where_it_has_one(commands, chain, tmp_path):
    assert taken(commands.fewstep("info", chain["guided"].parent)) == chain["guided"]
    several = commands.fewstep("info", chain["2"].parent)
    several.is_one_error("must hold one model, and holds model-2.safetensors, model-1.safetensors; name the file")
    commands.fewstep("info", tmp_path).is_one_error("must hold one model, and holds none")


OF_MODELS = ["sample", "edit", "inpaint", "transfer", "interpolate", "evaluate", "info", "export", "play"]


@pytest.mark.parametrize("command", OF_MODELS)
def test_every_command_of_a_model_takes_latest(commands, command):
    result = commands.fewstep(command, "--help")
    assert (result.status, result.err) == (0, "")
    words = " ".join(result.out.replace("│", " ").split())
    assert "or `latest`: the newest few-step student below --outputs" in words
    assert "--outputs" in words


# Methods ------------------------------------------------------------------------------------------------------------

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from fewstep.methods import Teacher


@dataclass(frozen=True, kw_only=True)
class Mine(Teacher):
    paper: ClassVar[str] = "Somebody [2031]"
    certainty: ClassVar[str] = "a guess"
"""


def facts_of(out: str) -> dict[str, dict[str, str]]:
    """Method -> column -> cell, of the plain list."""
    blocks = (block.splitlines() for block in re.split(r"\n(?=\S)", out.strip()))
    return {name: dict(line.strip().split(": ", 1) for line in lines) for name, *lines in blocks}


def test_the_methods_are_listed(commands):
    result = commands.fewstep("methods")
    assert (result.status, result.err) == (0, "")
    facts = facts_of(result.out)
    stages = {path.stem for path in (ROOT / "conf" / "stage").glob("*.yaml")}
    assert facts.keys() == stages - {"pipeline", "evaluate"}
    assert all(each.keys() == {"paper", "needs", "samples with", "certainty"} for each in facts.values())
    assert facts["teacher"]["needs"] == "data"
    assert facts["teacher"]["samples with"] == "deterministic, any number of steps, two evaluations each"
    assert facts["guidance"]["needs"] == "data, a teacher"
    assert facts["progressive"]["samples with"] == "deterministic, 16, 8, 4, 2, 1 steps"
    assert facts["encoder"]["samples with"] == "deterministic (encoding), 16, 8, 4, 2, 1 steps"
    assert facts["consistency"]["needs"] == "data, a guided student or a teacher, or none (teacher=none)"
    assert facts["dmd2"]["needs"] == "no data, a guided student or a teacher, 1 more trained network (fake)"
    assert facts["dmd2"]["samples with"] == "renoise, 4, 2, 1 steps"
    assert facts["dp_dmd"]["samples with"] == "deterministic, 4 steps"
    assert facts["sid"]["needs"] == facts["dmd2"]["needs"]
    assert "2303.04248" in facts["tract"]["paper"]


def test_methods_of_the_user_are_listed_beside_ours(commands, tmp_path, monkeypatch):
    (tmp_path / "my_conf" / "stage").mkdir(parents=True)
    (tmp_path / "my_methods.py").write_text(OWN)
    text = (ROOT / "conf" / "stage" / "teacher.yaml").read_text()
    own = text.replace("name: teacher", "name: mine").replace("fewstep.methods.Teacher", "my_methods.Mine")
    (tmp_path / "my_conf" / "stage" / "mine.yaml").write_text(own)
    commands.fewstep("methods", "--config-dir", tmp_path / "my_conf").is_one_error(
        "stage=mine", "my_methods.Mine", "cannot be imported"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = commands.fewstep("methods", "--config-dir", tmp_path / "my_conf")
    assert result.status == 0, result
    facts = facts_of(result.out)
    assert facts["mine"]["paper"] == "Somebody [2031]"
    assert facts["mine"]["certainty"] == "a guess"
    assert {"teacher", "tract"} < facts.keys()
    commands.fewstep("methods", "--config-dir", tmp_path).is_one_error("--config-dir", "folder stage", "has none")


def test_on_a_terminal_the_methods_are_a_table(commands, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    result = commands.fewstep("methods")
    assert result.status == 0, result
    assert "samples with" in result.out
    assert "┃" in result.out
    assert "Berthelot et al. 2023" in result.out


@pytest.mark.parametrize("command", ["sample", "trace", "evaluate", "report", "info", "methods"])
def test_help_teaches(commands, command):
    result = commands.fewstep(command, "--help")
    assert (result.status, result.err) == (0, "")
    example = f"Example: fewstep {command} " + ("--config-dir my_conf" if command == "methods" else "outputs/digits/")
    assert example in result.out


def test_help_of_the_whole(commands):
    for arguments in ([], ["--help"]):
        result = commands.fewstep(*arguments)
        assert (result.status, result.err) == (0, "")
        for word in ("sample", "evaluate", "report", "info", "methods", "python train.py", "1 + w"):
            assert word in result.out
    result = commands.train("--help")
    assert result.status == 0
    for word in ("python train.py stage=guidance dataset=digits", "pipeline", "trainer", "recipe", "key=value"):
        assert word in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "MODEL", "--out", "a.jpg"], ["--out must end in .png or .npz", "a.jpg"]),
        (["sample", "MODEL", "--out", "a.png", "--label", "10"], ["0..9", "digits", "[10]"]),
        (["sample", "MODEL", "--out", "a.png", "--label", "-1"], ["0..9", "[-1]"]),
        (["sample", "MODEL", "--out", "a.png", "--num", "0"], ["--num of a picture must be at least 1", "0"]),
        (["sample", "MODEL", "--out", "a.png", "--steps", "0"], ["steps must be at least 1", "0"]),
        (["sample", "MODEL", "--out", "a.png", "--steps", "many"], ["--steps", "integer", "fewstep sample --help"]),
        (["sample", "MODEL", "--out", "a.png", "--w", "-1"], ["w must be", "at least 0", "-1"]),
        (["sample", "MODEL", "--out", "a.png", "--w", "nan"], ["w must be finite", "nan"]),
        (["sample", "MODEL", "--out", "/dev/null/a.png"], ["/dev/null", "another path"]),
        (["sample", "MODEL"], ["--out", "fewstep sample --help"]),
        (["sample", "MODEL", "--nonsense"], ["--nonsense", "fewstep sample --help"]),
        (["sample", "none.safetensors", "--out", "a.png"], ["none.safetensors", "fewstep info"]),
        (["sample", "MODEL", "--out", "a.png", "--base", "MODEL"], ["any number of steps", "progressive"]),
        (["sample", "MODEL", "--out", "a.png", "--base", "TEACHER"], ["a student made for one step takes no base"]),
        (["sample", "MODEL", "--out", "a.png", "--base-w", "0"], ["--base-w", "give --base TEACHER"]),
        (["trace", "MODEL", "--out", "a.npz"], [".png", "a.npz"]),
        (["trace", "MODEL", "--out", "a.png", "--num", "1"], ["--num must be at least 2", "1"]),
        (["trace", "MODEL", "--out", "a.png", "--teacher", "none"], ["none"]),
        (["sample", "MODEL", "--out", "."], ["--out must end in .png or .npz", "."]),
        (["sample", "none", "--out", "a.npz", "--num", "99999999999"], ["--num must be", "10,000,000", "99999999999"]),
        (["sample", "none", "--out", "a.png", "--num", "10001"], ["--num of a picture", "10,000", "10001"]),
        (["sample", "none", "--out", "a.png", "--seed", "-1"], ["--seed must be a whole number from 0", "-1"]),
        (["sample", "none", "--out", "a.png", "--seed", "1" * 23], ["--seed must be a whole number", "1" * 23]),
        (["sample", "MODEL", "--out", "a.png", "--label", "9" * 30], ["0..9", "digits", "9" * 30]),
        (["evaluate", "MODEL", "--num-images", "0"], ["--num-images must be at least 4", "0"]),
        (["evaluate", "none", "--num-images", "99999999999"], ["--num-images", "10,000,000", "99999999999"]),
        (["evaluate", "none", "--out", __file__], ["--out must be a folder", "is a file"]),
        (["evaluate", "MODEL", "--w", "-1"], ["w >= 0", "[-1]"]),
        (["evaluate", "none.safetensors"], ["none.safetensors"]),
        (["info", "none.safetensors"], ["none.safetensors"]),
        (["report", "none"], ["none", "quality.json"]),
        (["nonsense"], ["nonsense", "fewstep --help"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_are_one_line(commands, chain, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    models = {"MODEL": str(chain["1"]), "TEACHER": str(chain["teacher"])}
    filled = [models.get(argument, argument) for argument in arguments]
    commands.fewstep(*filled).is_one_error(*words)
    assert files_below(tmp_path) == []


def test_a_folder_is_not_replaced_by_a_picture(commands, chain, tmp_path):
    (tmp_path / "all.png").mkdir()
    (tmp_path / "all.png" / "kept.txt").write_text("mine")
    result = commands.fewstep("sample", chain["1"], "--out", tmp_path / "all.png")
    result.is_one_error("--out must be a file", "is a folder")
    assert files_below(tmp_path) == ["all.png/kept.txt"]
    assert commands.fewstep("sample", chain["1"], "--num", "1", "--out", tmp_path / "A.PNG").status == 0


def test_the_default_w_is_one_that_the_model_was_made_for(commands, chain, tmp_path):
    network, card = load_model(chain["2"])
    for name, changed, w in (
        ("above", {"w_min": 2.0, "w_max": 14.0}, "2"),
        ("below", {"w_min": 0.0, "w_max": 0.5}, "0.5"),
        ("around", {"w_min": 0.0, "w_max": 4.0}, "1"),
        ("list", {"w_min": 0.0, "w_max": 4.0, "w_draw": "list", "w_values": (0.0, 0.75, 4.0)}, "0.75"),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_model(path, network, replace(card, **changed))
        result = commands.fewstep("sample", path, "--num", "2", "--out", tmp_path / "x.npz")
        assert (result.status, result.err) == (0, ""), "nothing to warn of"
        assert f"w = {w} (" in result.out
