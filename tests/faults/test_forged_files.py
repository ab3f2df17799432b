"""Files made to do harm: one line, nothing run or allocated; and one bad run folder never stops the others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import TINY, Commands, run_as_composed
from test_fuzzed_files import FACTS, parts, with_card
from test_fuzzed_records import QUALITY as ROWS

from fewstep.artifacts.model_file import ModelCard, save_model
from fewstep.artifacts.run_folder import CONFIG, PRODUCTS, open_run, settings_in
from fewstep.commands.models import latest_student
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.export.card import figures
from fewstep.inference.model import load
from fewstep.networks import Denoiser, ResidualMLP
from fewstep.system.files import sha256_of
from fewstep.training.checkpointing import append_checksum, read_checkpoint

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")


def student(path: Path, **settings: Any) -> Path:
    """A student of two steps that has learnt nothing, in a run folder of its own."""
    arguments = {"shape": (1, 8, 8), "num_classes": 10, "width": 8, "num_blocks": 1, "embedding_dim": 4}
    sampling = Sampling.uniform(2, guidance="input")
    card = ModelCard(
        method="progressive", data=FACTS, prediction="v", schedule=CosineSchedule(), sampling=sampling, w_min=0.0,
        w_max=4.0, images=1000, parents=(), **settings,
    )  # fmt: skip
    save_model(path, Denoiser(ResidualMLP(**arguments, guidance_input=True)), card)
    (path.parent / PRODUCTS).write_text(json.dumps([path.name]))
    (path.parent / CONFIG).write_text("seed: 0\n")
    return path


def at(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value at a place like "data.shape" of a card."""

    def change(card: dict[str, Any]) -> None:
        *outer, last = place.split(".")
        for key in outer:
            card = card[key]
        card[last] = value

    return change


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("data.shape", [1, -8, -8], "shape"),
        ("data.shape", [1, 64], "shape"),
        ("data.shape", [1, 10**6, 10**6], "shape"),
        ("data.shape", [], "shape"),
        ("data.num_classes", -1, "classes"),
        ("data.num_classes", 10**30, "classes"),
        ("data.low", -1e308, "1e+06"),
        ("data.high", 1e308, "1e+06"),
        ("data.name", "\x1b[2J\x1b]0;owned\x07", "control characters"),
        ("data.name", "abc\u202ecba", "control characters"),
        ("method", "\x9b31m", "control characters"),
        ("w_max", 1e308, "w_max"),
        ("w_max", float("inf"), "w_max"),
        ("images", -1, "images"),
        ("images", 10**4000, "images"),
        ("sampling.times", [1e308], "times"),
        ("schedule.log_snr_max", 1e308, "log_snr"),
        ("arguments.width", -8, "width"),
        ("arguments.width", 10**18, ""),
        ("arguments.num_blocks", 10**12, "blocks"),
        ("arguments.shape", {"a": 1}, ""),
        ("parents", [[]], "parents"),
        ("parents", "x", "parents"),
    ],
)
def test_a_forged_card_is_one_line(commands: Commands, tmp_path: Path, place: str, value: Any, word: str):
    path = student(tmp_path / "model-2.safetensors")
    path.write_bytes(with_card(path.read_bytes(), at(place, value)))
    result = commands.fewstep("sample", path, "--num", "2", "--out", tmp_path / "a.png")
    result.is_one_error(str(path), word)
    assert result.err.strip().isprintable()


def test_a_number_of_ten_thousand_digits_and_a_deep_card_are_one_line(commands: Commands, tmp_path: Path):
    path = student(tmp_path / "model-2.safetensors")
    whole = path.read_bytes()
    for text, word in (('{"images": %s}' % ("9" * 10_000), "10000 digits"), ("[" * 50_000, "nested too deeply")):
        header, rest = parts(whole)
        header["__metadata__"]["fewstep"] = text
        encoded = json.dumps(header).encode()
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + rest)
        commands.fewstep("info", path).is_one_error(str(path), word)


# Checkpoints, sealed again -------------------------------------------------------------------------------------------

OWN = (*TINY, "stage=teacher", "trainer.max_images=256", "stage.training.batch_size=32", "trainer.diagnostics=0")


def resealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A checkpoint with other content and a good checksum."""
    content = read_checkpoint(path)
    change(content)
    with path.open("wb") as file:
        torch.save(content, file)
    append_checksum(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("global_step", "x"),
        ("state_dict", [1]),
        ("state_dict", {}),
        ("loops", 3),
        ("loops", {}),
        ("optimizer_states", [{}]),
        ("lr_schedulers", [{"last_epoch": "x"}]),
        ("callbacks.TrainingLog", 3),
        ("progress", "x"),
        ("origin", 3),
    ],
)
def test_a_checkpoint_of_other_types_is_one_line(commands, unfinished: Path, tmp_path: Path, place: str, value: Any):
    shutil.copytree(unfinished, tmp_path / "outputs")
    (last,) = tmp_path.rglob("last.ckpt")
    resealed(last, at(place, value))
    commands.train(*OWN, f"outputs={tmp_path / 'outputs'}").is_one_error(str(last), "delete it")


@pytest.fixture(scope="module")
def unfinished(as_users_run: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs with a teacher whose model is not written yet, though its checkpoint is that of the last step."""
    outputs = tmp_path_factory.mktemp("unfinished")
    run_as_composed(*OWN, f"outputs={outputs}")
    (model,) = outputs.rglob("model.safetensors")
    model.unlink()
    return outputs


# One bad run among others --------------------------------------------------------------------------------------------


def spoiled_card(run: Path) -> None:
    (path,) = run.glob("model-*.safetensors")
    path.write_bytes(with_card(path.read_bytes(), at("data.shape", [1, -8, -8])))


def spoiled(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(text)


@pytest.mark.parametrize(
    "spoil", [spoiled_card, spoiled(PRODUCTS, "[" * 5000), spoiled(PRODUCTS, "3"), spoiled(PRODUCTS, '[{"a": 1}]')]
)
def test_latest_leaves_a_bad_run_out(tmp_path: Path, spoil: Callable[[Path], object]):
    runs = [tmp_path / "digits" / "progressive" / f"2026-01-0{day}_00-00-00" for day in (1, 2)]
    older, newer = (student(run / "model-2.safetensors") for run in runs)
    assert latest_student(tmp_path) == newer
    spoil(runs[1])
    with pytest.warns(UserWarning, match=rf"^{runs[1]}\S* is left out: ") as caught:
        assert latest_student(tmp_path) == older
    assert all("\n" not in str(each.message) for each in caught)


@pytest.mark.parametrize("text", ["[" * 5000, "\x00", "a: *b", "- 3", '"\\x1b[2J"'])
def test_a_bad_config_beside_it_stops_no_run(tmp_path: Path, text: str):
    other = tmp_path / "digits" / "teacher" / "other"
    other.mkdir(parents=True)
    (other / CONFIG).write_text(text)
    (other / "model.safetensors").write_text("")
    with (
        pytest.warns(UserWarning, match=f"^{other} is left out: .*{CONFIG} is damaged"),
        open_run(tmp_path, "digits", "teacher", "seed: 0\n", ["model.safetensors"]) as folder,
    ):
        assert folder.path != other
    with (
        pytest.raises(ValueError, match=f"{CONFIG} is damaged or not of fewstep: .*resume=force"),
        open_run(tmp_path, "digits", "teacher", "seed: 0\n", ["model.safetensors"], name="other"),
    ):
        pass
    with open_run(tmp_path, "digits", "teacher", "seed: 0\n", ["model.safetensors"], name="other", force=True):
        assert settings_in(other) == {"seed": 0}


def test_a_bad_evaluation_beside_it_stops_no_export(tmp_path: Path):
    path = student(tmp_path / "digits" / "progressive" / "now" / "model-2.safetensors")
    for name, text in (("good", provenance_of(path)), ("bad", "[" * 5000), ("worse", '{"models": [3]}')):
        run = tmp_path / "digits" / "pipeline" / name
        run.mkdir(parents=True)
        (run / "provenance.json").write_text(text)
        (run / "quality.json").write_text(json.dumps([ROWS[0] | {"model": "progressive", "steps": 2}]))
    with pytest.warns(UserWarning, match="(bad|worse) is left out") as caught:
        assert [row.fid for row in figures(path, load(path))] == [2.0]
    assert len(caught) == 2


def provenance_of(path: Path) -> str:
    return json.dumps({"models": [{"sha256": sha256_of(path)}], "created": "2026-01-01"})
