"""docs/extending.md as its reader follows it: a method and a data set that the package does not know."""

import argparse
import importlib
import inspect
import json
import pkgutil
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from running import TINY, Commands, train_as_typed
from safetensors.torch import load_file

import fewstep.methods
from fewstep.artifacts.model_file import load_model
from fewstep.diffusion.sampling import Sampling
from fewstep.methods import Method
from fewstep.training.checkpointing import SaveCheckpoint, read_checkpoint

pytest_plugins = ("running",)

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
METHODS = ROOT / "src" / "fewstep" / "methods"
FILES = {
    name: text for name, _, text in re.findall(r"^`([\w/.]+)`:\n\n```(python|yaml)\n(.*?)```", PAGE, re.DOTALL | re.M)
}
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
PIPELINE, ALONE, PLAN, SWEEP, LIST, OWN_DATA = COMMANDS

BATCH, IMAGES = 32, 256
GRID = (
    "stage.evaluate.num_images=40",
    "stage.evaluate.w=[0,2]",
    "stage.evaluate.teacher_steps=[4]",
    "stage.evaluate.guided_steps=[4]",
    "stage.evaluate.baselines=[]",
)
LEARNS = (f"batch_size={BATCH}", "warmup_images=0")  # weights that move, so that equality says something
SMALL = (*TINY, f"trainer.max_images={IMAGES}")
SMALL_PIPELINE = (
    *SMALL,
    *(f"stage.{stage}.training.{setting}" for stage in ("teacher", "guidance", "mine") for setting in LEARNS),
    *GRID,
)
SMALL_ALONE = (*SMALL, *(f"stage.training.{setting}" for setting in LEARNS), "trainer.checkpoint_seconds=0")


def arguments(command: str, *settings: str) -> list[str]:
    """What follows `python train.py` or `fewstep`, with further settings: Hydra wants them beside those it has."""
    words = shlex.split(command)
    words = words[2:] if words[0] == "python" else words[1:]
    place = next((number for number, word in enumerate(words) if "=" in word), len(words))
    return [*words[:place], *settings, *words[place:]]


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def project(as_users_run: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the page's files, and what its first command leaves below outputs/."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(sys, "argv", sys.argv)
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        patch.setattr(argparse.ArgumentParser, "error", argparse.ArgumentParser.error)
        with pytest.raises(SystemExit) as ended:
            train_as_typed(*arguments(PIPELINE, *SMALL_PIPELINE))
        assert not ended.value.code
        yield folder
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def test_the_method_is_trained_and_says_so_in_its_card(project: Path) -> None:
    model = only(project, "outputs/digits/mine/*/model-4.safetensors")
    card = load_model(model)[1]
    assert card.method == "mine"
    assert card.sampling == Sampling.uniform(4, guidance="input")
    assert [ancestor.method for ancestor in card.parents] == ["guidance", "teacher"]
    assert (model.parent / "diagnostics.jsonl").read_text().count("gap") > 0
    fewstep.load(model).sample([0, 1], w=1.0)


def test_it_is_evaluated_beside_ours(project: Path) -> None:
    run = only(project, "outputs/digits/pipeline/*/")
    rows = json.loads((run / "quality.json").read_text())
    assert {row["model"] for row in rows} == {"teacher", "guided", "mine"}
    assert {(row["steps"], row["w"]) for row in rows if row["model"] == "mine"} == {(4, 0.0), (4, 2.0)}
    assert "mine" in re.findall(r">\s*(mine)\b", (run / "report.html").read_text())


def test_interrupted_it_ends_as_an_undisturbed_one(
    project: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SaveCheckpoint.on_train_batch_end

    def save_and_stop(self: SaveCheckpoint, trainer: Trainer, *rest: object) -> None:
        whole(self, trainer, *rest)  # pyright: ignore[reportArgumentType]
        if trainer.global_step == 3:
            raise RuntimeError("interrupted")

    line = arguments(ALONE, *SMALL_ALONE)
    assert commands.train(*line, "name=undisturbed").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(SaveCheckpoint, "on_train_batch_end", save_and_stop)
        assert commands.train(*line, "name=interrupted").status == 1
    interrupted = project / "outputs" / "digits" / "mine" / "interrupted"
    assert read_checkpoint(interrupted / "last.ckpt")["global_step"] == 3
    assert not (interrupted / "model-2.safetensors").exists()
    assert commands.train(*line, "name=interrupted").status == 0
    ours, theirs = (
        load_file(interrupted.with_name(name) / "model-2.safetensors") for name in ("interrupted", "undisturbed")
    )
    parent = load_file(only(project, "outputs/digits/guidance/*/model.safetensors"))
    assert all(torch.equal(ours[name], theirs[name]) for name in parent)
    assert not all(torch.equal(ours[name], parent[name]) for name in parent)


def test_its_settings_are_checked_like_ours(project: Path, commands: Commands) -> None:
    line = arguments(ALONE, *SMALL_ALONE)
    commands.train(*line, "stage.steps_in_one=0").is_one_error(
        "stage.steps_in_one must be a whole number of at least 1", "0"
    )
    commands.train(*line, "stage.steps_in_one=many").is_one_error("stage.steps_in_one", "whole number")
    commands.train(*line, "+stage.momentum=1").is_one_error("stage.momentum")


def test_its_oracle(project: Path) -> None:
    module = importlib.import_module("test_my_method")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_it_is_listed(project: Path, commands: Commands) -> None:
    listed = commands.fewstep(*arguments(LIST))
    assert listed.status == 0, listed
    assert re.search(r"\bmine\b", listed.out)
    assert re.search(r"\btract\b", listed.out)


@pytest.mark.slow
def test_it_is_planned(project: Path, commands: Commands) -> None:
    planned = commands.train(*arguments(PLAN, *SMALL_PIPELINE))
    assert planned.status == 0, planned
    assert re.search(r"\bmine 4\b", planned.out)


@pytest.mark.slow
def test_it_is_swept(project: Path, commands: Commands) -> None:
    swept = commands.train(*arguments(SWEEP, *SMALL_PIPELINE))
    assert swept.status == 0, swept
    sweep = only(project, "outputs/sweeps/*/")
    assert {path.name for path in sweep.glob("digits/mine/*/*.safetensors")} == {
        "model-1.safetensors",
        "model-2.safetensors",
    }
    collected = commands.fewstep("collect", sweep)
    assert collected.status == 0, collected
    assert (sweep / "results.csv").read_text().count("mine") >= 2


@pytest.mark.slow
def test_the_data_set_is_trained_on(project: Path, commands: Commands) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(project / "my_data.npz", images=images, labels=np.arange(60) % 3)
    stages = ("teacher", "guidance", "progressive")
    small = (
        "trainer=debug",
        "logger=csv",
        "trainer.max_images=32",
        "trainer.snapshot_images=8",
        "model.network.channels=[16,16]",
        "model.network.head_dim=16",
        "stage.progressive.ladder=[2,1]",
        *(f"stage.{stage}.training.batch_size=16" for stage in stages),
        *(*GRID, "stage.evaluate.num_images=12"),
    )
    trained = commands.train(*arguments(OWN_DATA, *small))
    assert trained.status == 0, trained
    model = only(project, "outputs/tiles/progressive/*/model-1.safetensors")
    assert load_model(model)[1].data.shape == (3, 16, 16)
    assert only(project, "outputs/tiles/pipeline/*/report.html").is_file()


def methods_of_the_package() -> list[type[Method]]:
    """Every method that is not abstract."""
    modules = [importlib.import_module(f"fewstep.methods.{each.name}") for each in pkgutil.iter_modules([str(METHODS)])]
    classes = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    found = [each for each in classes if issubclass(each, Method) and not inspect.isabstract(each)]
    return sorted(found, key=lambda each: each.__name__)


@pytest.mark.parametrize("method", methods_of_the_package(), ids=lambda method: method.__name__)
def test_every_method_has_its_row_in_the_table_of_papers(method: type[Method]) -> None:
    table = (METHODS / "README.md").read_text()
    file = Path(inspect.getfile(method)).name
    rows = [line for line in table.splitlines() if line.startswith(f"| [`{method.__name__}`]({file})")]
    assert len(rows) == 1
    assert method.paper
    papers = re.findall(r"\d{4}\.\d{5}", method.paper)
    assert all(f"https://arxiv.org/abs/{paper}" in rows[0] for paper in papers)
    assert papers or method.paper.split(" (")[0] in rows[0]  # of a paper that is not there
    assert method.certainty


def test_the_table_has_no_other_row() -> None:
    named = re.findall(r"^\| \[`(\w+)`\]", (METHODS / "README.md").read_text(), re.M)
    assert sorted(named) == [method.__name__ for method in methods_of_the_package()]


def test_the_page_names_files_that_exist() -> None:
    for page in (ROOT / "docs" / "extending.md", ROOT / "docs" / "architecture.md", METHODS / "README.md"):
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
        assert links
        assert not [link for link in links if not (page.parent / link).exists()]
