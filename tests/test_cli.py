"""The `fewstep` command and `fewstep.load`, on models of a second's training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import Commands, config_of, files_below, make_chain

import fewstep
from fewstep.artifacts.model_file import load_model, save_model
from fewstep.runs.pipeline import run

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


def test_samples_of_points(as_users_run, commands, tmp_path):
    tiny = ("trainer=debug", "logger=csv", "trainer.max_images=64", "trainer.snapshot_images=20")
    run(config_of("stage=guidance", "dataset=mixture", *tiny, f"outputs={tmp_path}"))
    (model,) = tmp_path.glob("mixture/guidance/*/model.safetensors")
    drawn = arrays(commands, model, tmp_path / "a.npz", "--num", "7", "--steps", "2")
    assert (drawn["images"].dtype, drawn["images"].shape) == (np.float32, (7, 2))
    assert drawn["labels"].tolist() == [0, 1, 2, 3, 4, 0, 1]
    commands.fewstep("evaluate", model).is_one_error("digits", "mixture", f"teacher={model}")


def test_load_and_sample(chain):
    model = fewstep.load(chain["1"])
    x = model.sample(torch.tensor([3, 1, 4]), steps=1, w=2.0, seed=0)
    assert (x.shape, x.dtype) == ((3, 1, 8, 8), torch.float32)
    assert -1 <= x.min() <= x.max() <= 1
    assert torch.equal(model.sample([3, 1, 4], w=2.0), x)
    torch.testing.assert_close(model.sample([3, 1, 4], w=2.0, batch_size=2), x)
    assert not torch.equal(model.sample([3, 1, 4], w=0.0), x)
    assert (model.card.role, model.card.num_steps) == ("progressive", 1)


def test_info_is_json(commands, chain):
    result = commands.fewstep("info", chain["2"])
    assert result.status == 0
    about = json.loads(result.out)
    assert (about["role"], about["num_steps"], about["w_min"], about["w_max"]) == ("progressive", 2, 0.0, 4.0)
    stated = {key: value for key, value in about["data"].items() if value is not None}
    assert stated == {"name": "digits", "shape": [1, 8, 8], "num_classes": 10, "low": -1.0, "high": 1.0}
    assert [parent["role"] for parent in about["parents"]] == ["guided", "teacher"]
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


@pytest.mark.parametrize("command", ["sample", "evaluate", "report", "info"])
def test_help_teaches(commands, command):
    result = commands.fewstep(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"Example: fewstep {command} outputs/digits/" in result.out


def test_help_of_the_whole(commands):
    for arguments in ([], ["--help"]):
        result = commands.fewstep(*arguments)
        assert (result.status, result.err) == (0, "")
        for word in ("sample", "evaluate", "report", "info", "python train.py", "1 + w"):
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
        (["sample", "MODEL", "--out", "a.png", "--num", "0"], ["--num must be at least 1", "0"]),
        (["sample", "MODEL", "--out", "a.png", "--steps", "0"], ["steps must be at least 1", "0"]),
        (["sample", "MODEL", "--out", "a.png", "--steps", "many"], ["--steps", "integer", "fewstep sample --help"]),
        (["sample", "MODEL", "--out", "a.png", "--w", "-1"], ["w must be", "at least 0", "-1"]),
        (["sample", "MODEL", "--out", "a.png", "--w", "nan"], ["w must be finite", "nan"]),
        (["sample", "MODEL", "--out", "/dev/null/a.png"], ["/dev/null", "another path"]),
        (["sample", "MODEL"], ["--out", "fewstep sample --help"]),
        (["sample", "MODEL", "--nonsense"], ["--nonsense", "fewstep sample --help"]),
        (["sample", "none.safetensors", "--out", "a.png"], ["none.safetensors", "fewstep info"]),
        (["evaluate", "MODEL", "--num-images", "0"], ["num_images", "at least 1", "0"]),
        (["evaluate", "MODEL", "--w", "-1"], ["w >= 0", "[-1.0]"]),
        (["evaluate", "none.safetensors"], ["none.safetensors"]),
        (["info", "none.safetensors"], ["none.safetensors"]),
        (["report", "none"], ["none", "quality.json"]),
        (["nonsense"], ["nonsense", "fewstep --help"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_are_one_line(commands, chain, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    filled = [str(chain["1"]) if argument == "MODEL" else argument for argument in arguments]
    commands.fewstep(*filled).is_one_error(*words)
    assert files_below(tmp_path) == []


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
