"""The whole pipeline, and its stages one by one: what a run leaves, and how each finds its parent."""

import csv
import json
from math import isfinite
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from running import TINY, config_of, files_below, run_as_composed
from safetensors.torch import load_file

import fewstep
from fewstep.sweeps.objective import FIGURES
from fewstep.system.files import sha256_of
from fewstep.tracking.names import COLUMNS

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")

LADDER = (4, 2, 1)
TEACHER_STEPS, GUIDED_STEPS, WEIGHTS = (8, 4, 2), (8, 4), (0.0, 2.0)
GRID = (
    "evaluate.num_images=40",
    "evaluate.w=[0,2]",
    "evaluate.teacher_steps=[8,4,2]",
    "evaluate.guided_steps=[8,4]",
    "evaluate.baselines=[unipc]",
    "evaluate.baseline_steps=[2]",
    "progressive.ladder=[4,2,1]",
)
LEARNS = tuple(
    f"stage.{stage}.training.{setting}"
    for stage in ("teacher", "guidance", "progressive")
    for setting in ("batch_size=32", "warmup_images=0")
)
SMALL = (*TINY, "trainer.max_images=128", *LEARNS, *(f"stage.{setting}" for setting in GRID))
NUMBERS = ("fid", "inception_score", "precision", "recall", "diversity", "same_noise_rmse", "images_per_second")


def only(folder: Path) -> Path:
    """The one run below a stage's folder."""
    (run_folder,) = folder.glob("*/")
    return run_folder


def pipeline(outputs: Path, *settings: str) -> Path:
    """Run a small pipeline; give the folder of its data set."""
    run_as_composed(*SMALL, *settings, f"outputs={outputs}")
    (dataset,) = outputs.glob("*/")
    return dataset


@pytest.fixture(scope="module")
def digits(as_users_run, tmp_path_factory) -> Path:
    return pipeline(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def mixture(as_users_run, tmp_path_factory) -> Path:
    return pipeline(tmp_path_factory.mktemp("mixture"), "dataset=mixture", "dataset.num_reference=100")


def rows_of(pipeline_run: Path) -> list[dict]:
    return json.loads((pipeline_run / "quality.json").read_text())


def test_what_a_pipeline_leaves(digits):
    assert sorted(folder.name for folder in digits.iterdir()) == ["guidance", "pipeline", "progressive", "teacher"]
    runs = {stage.name: only(stage) for stage in digits.iterdir()}
    assert len({folder.name for folder in runs.values()}) == 1  # named by one time
    models = {"teacher": ["model"], "guidance": ["model"], "progressive": ["model-2", "model-1"]}
    for stage, names in models.items():
        found = set(files_below(runs[stage]))
        expected = {
            "config.yaml",
            "products.json",
            "threads.json",
            "diagnostics.jsonl",
            "last.ckpt",
            "metrics.csv",
            *(f"{name}.safetensors" for name in names),
        }
        pictures = {name for name in found if name.startswith("samples/")}
        assert found == expected | pictures | {".lock"}
        assert len(pictures) == len(names)  # one snapshot a stage and rung
        for name in pictures:
            with Image.open(runs[stage] / name) as image:
                image.verify()
        for name in names:
            assert all(
                bool(tensor.isfinite().all()) for tensor in load_file(runs[stage] / f"{name}.safetensors").values()
            )
    judged = {"config.yaml", "products.json", "threads.json", "quality.json", "provenance.json", "report.html", ".lock"}
    judged |= {"trace.json", *(f"samples/trace/{name}.png" for name in ("teacher, 8 steps", "progressive, 2 steps"))}
    assert set(files_below(runs["pipeline"])) == judged | {
        f"samples/same-noise/{row['model']}{'-unipc' * (row['sampler'] == 'unipc')}-{row['steps']}-w{row['w']:g}.png"
        for row in rows_of(runs["pipeline"])
    }
    assert (runs["pipeline"] / "report.html").stat().st_size < 5e6


def test_configurations_are_resolved_and_those_that_were_run(digits):
    for stage in ("pipeline", "teacher", "guidance", "progressive"):
        text = (only(digits / stage) / "config.yaml").read_text()
        config = OmegaConf.create(text)
        assert "${" not in text
        assert (config.stage.name, config.dataset.name, config.seed) == (stage, "digits", 0)
    assert config_of(*SMALL).stage.teacher == OmegaConf.load(only(digits / "teacher") / "config.yaml").stage


def test_metrics_have_one_row_a_moment_and_count_images(digits):
    for stage, images in (("teacher", [128]), ("guidance", [128]), ("progressive", [128, 256])):
        with (only(digits / stage) / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == COLUMNS
        assert sorted({int(row["images"]) for row in rows}) == images
        assert [int(row["images"]) for row in rows if row["train/loss"]] == images  # rungs add up
        assert {row["rung"] for row in rows} == ({"2", "1"} if stage == "progressive" else {""})


@pytest.mark.parametrize("data", ["digits", "mixture"])
def test_the_grid_is_complete(data, request):
    rows = rows_of(only(request.getfixturevalue(data) / "pipeline"))
    cells = [("teacher", "ddim", steps, w) for w in WEIGHTS for steps in TEACHER_STEPS]
    cells += [("guided", "ddim", steps, w) for w in WEIGHTS for steps in GUIDED_STEPS]
    cells += [("progressive", "ddim", steps, w) for w in WEIGHTS for steps in LADDER[1:]]
    cells += [(model, "unipc", 2, w) for w in WEIGHTS for model in ("teacher", "guided")]
    assert sorted((row["model"], row["sampler"], row["steps"], row["w"]) for row in rows) == sorted(cells)
    assert len({row["protocol"] for row in rows}) == 1
    for row in rows:
        assert row["nfe"] == row["steps"] * (2 if row["model"] == "teacher" else 1)
        assert (row["num_images"], row["seed"]) == (40, 0)
        assert all(isfinite(row[name]) for name in NUMBERS)
        assert 0 <= row["accuracy"] <= 1
        assert row["images_per_second"] > 0
        assert (row["same_noise_rmse"] == 0) == ((row["model"], row["steps"]) == ("teacher", TEACHER_STEPS[0]))
        if data == "mixture":
            assert isfinite(row["exact_rmse"])
            assert 0 < row["energy_floor"] < 1
        else:
            assert row["exact_rmse"] is row["energy_distance"] is row["energy_floor"] is None
        figures = [name for name in (*FIGURES, "same_noise_rmse") if row[name] is not None]
        assert sorted(row["intervals"]) == sorted(figures)
        assert all(low <= row[name] <= high for name, (low, high) in row["intervals"].items())


def test_the_exact_teacher_nears_the_exact_solution(mixture):
    errors = {}
    for row in rows_of(only(mixture / "pipeline")):
        if (row["model"], row["sampler"]) == ("teacher", "ddim"):
            errors.setdefault(row["w"], []).append(row["exact_rmse"])
    for by_steps in errors.values():  # 8, 4, 2 steps
        assert 0 < by_steps[0] < by_steps[1] < by_steps[2]
    assert not (mixture / "teacher").exists()


@pytest.mark.parametrize("data", ["digits", "mixture"])
def test_provenance_names_every_model_and_its_parents(data, request):
    folder = only(request.getfixturevalue(data) / "pipeline")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["protocol"]["id"] == rows_of(folder)[0]["protocol"]
    roles = [(model["model"], model["steps"]) for model in provenance["models"]]
    trained = [("teacher", None)] if data == "digits" else []
    assert roles == [*trained, ("guided", None), ("progressive", 2), ("progressive", 1)]
    hashes = {}
    for model in provenance["models"]:
        path = folder / model["path"]
        assert sha256_of(path) == model["sha256"]
        hashes[model["model"], model["steps"]] = model["sha256"]
        for parent in fewstep.load(path).card.parents:
            assert (path.parent / parent.path).is_file()
            assert parent.sha256 in hashes.values()
    assert [p.method for p in fewstep.load(folder / provenance["models"][-1]["path"]).card.parents] == [
        "progressive",
        "guidance",
        *(role for role, _ in trained),
    ]


@pytest.mark.slow
def test_a_finished_pipeline_is_not_run_again_but_anew(tmp_path):
    settings = ("stage.evaluate.w=[0]", "stage.evaluate.teacher_steps=[1]", "stage.evaluate.guided_steps=[1]")
    folder = pipeline(tmp_path, *settings)
    first = files_below(folder)
    pipeline(tmp_path, *settings)
    for stage in ("pipeline", "teacher", "guidance", "progressive"):
        one, two = sorted((folder / stage).glob("*/"))
        for model in one.glob("*.safetensors"):  # the same settings, the same model
            ours, theirs = load_file(model), load_file(two / model.name)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(files_below(folder)) == 2 * len(first)


@pytest.mark.slow
def test_stages_one_by_one_each_find_the_newest_parent_that_fits(tmp_path):
    stage_settings = {
        "teacher": (),
        "guidance": (),
        "progressive": ("stage.ladder=[4,2,1]",),
        "evaluate": tuple(f"stage.{s.removeprefix('evaluate.')}" for s in GRID if s.startswith("evaluate.")),
    }

    def stage(name: str, *settings: str) -> Path:
        before = set((tmp_path / "digits" / name).glob("*/"))
        run_as_composed(f"stage={name}", *TINY, "trainer.max_images=64", f"outputs={tmp_path}", *settings)
        (made,) = set((tmp_path / "digits" / name).glob("*/")) - before
        return made

    older = stage("teacher")
    newer = stage("teacher", "seed=1")
    other = stage("teacher", "seed=2", "model.network.width=16")  # the newest of all, of another network
    guided = stage("guidance")
    (parent,) = fewstep.load(guided / "model.safetensors").card.parents
    assert (guided / parent.path).resolve() == newer / "model.safetensors" != other / "model.safetensors"
    by_name = stage("guidance", f"teacher={older}")
    (parent,) = fewstep.load(by_name / "model.safetensors").card.parents
    assert (by_name / parent.path).resolve() == older / "model.safetensors"

    ladder = stage("progressive", *stage_settings["progressive"], f"teacher={guided / 'model.safetensors'}")
    further = stage("progressive", "stage.ladder=[2,1]", f"teacher={ladder / 'model-2.safetensors'}")  # from a rung
    assert [p.name for p in further.glob("*.safetensors")] == ["model-1.safetensors"]

    judged = stage("evaluate", *stage_settings["evaluate"], f"teacher={ladder}")
    assert {(row["model"], row["steps"]) for row in rows_of(judged)} == {
        *(("teacher", steps) for steps in TEACHER_STEPS),
        *(("guided", steps) for steps in (*GUIDED_STEPS, 2)),
        *(("progressive", steps) for steps in LADDER[1:]),
    }
    newest = stage("evaluate", *stage_settings["evaluate"])  # of the ladder that was made last
    models = json.loads((newest / "provenance.json").read_text())["models"]
    assert (newest / models[-1]["path"]).resolve() == further / "model-1.safetensors"


def test_a_parent_that_changed_since_is_not_judged_as_if_it_had_not(tmp_path, digits):
    settings = ("stage=evaluate", *TINY, f"teacher={only(digits / 'progressive')}", f"outputs={tmp_path}")
    teacher = only(digits / "teacher") / "model.safetensors"
    kept = teacher.read_bytes()
    try:
        teacher.write_bytes(kept + b"\0")
        with pytest.raises(ValueError, match=r"has changed since.*again"):
            run_as_composed(*settings)
        teacher.rename(teacher.with_name("away"))
        with pytest.raises(ValueError, match="which is gone"):
            run_as_composed(*settings)
    finally:
        teacher.with_name("away").unlink(missing_ok=True)
        teacher.write_bytes(kept)


def test_weights_and_biases_offline_files_are_in_every_run_folder(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    outputs = tmp_path / "outputs"
    run_as_composed("stage=teacher", *TINY, "trainer.max_images=64", "logger=wandb", f"outputs={outputs}")
    folder = only(outputs / "digits" / "teacher")
    (offline,) = (folder / "wandb").glob("offline-run-*")
    (log,) = offline.glob("*.wandb")
    assert log.stat().st_size > 0
    assert (folder / "metrics.csv").is_file()  # beside W&B, not instead
    assert (folder / "model.safetensors").is_file()
