"""Run the program inside the test's process, as a user would type it, with networks and budgets of a second.

A pytest plugin too: `pytest_plugins = ("running",)` gives a file its two fixtures.
(PYTEST_DONT_REWRITE: it is imported before it is a plugin.)
"""

import argparse
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jaxtyping
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from fewstep.commands import main as cli

ROOT = Path(__file__).parents[1]
TINY = (
    "model.network.width=32",
    "model.network.num_blocks=1",
    "model.network.embedding_dim=16",
    "trainer=debug",
    "trainer.snapshot_images=20",
    "logger=csv",
)


@cache
def initialized() -> object:
    """Hydra with the configuration of this repository; making it anew takes six times as long as composing."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra


def config_of(*settings: str) -> DictConfig:
    """What `python train.py *settings` is composed of."""
    hydra = initialized()
    instance = GlobalHydra.instance()  # after the other, which leaves a new one
    before, instance.hydra = instance.hydra, hydra  # type: ignore
    try:
        return compose("config", list(settings))
    finally:
        instance.hydra = before


def run_as_composed(*settings: str) -> None:
    """`python train.py *settings` without its command line: what it is composed of, run."""
    from fewstep.runs.config import Settings
    from fewstep.runs.pipeline import run

    run(Settings.read(config_of(*settings)))


def train_as_typed(*settings: str) -> None:
    """`python train.py *settings`, to its exit."""
    torch.set_num_threads(1)
    sys.argv = ["train.py", *settings]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str

    def is_one_error(self, *words: str) -> None:
        """Assert that the user was told one line, which has all of `words`, and exit status 2."""
        assert self.status == 2, self
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self
        assert lines[0].startswith("error: "), self
        for word in words:
            assert word in lines[0], (word, lines[0])


class Commands:
    """`python train.py ...` and `fewstep ...`, without the seconds that a new process takes to import."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd
        # what `guarded` changes in the process is put back after the test
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        monkeypatch.setattr(argparse.ArgumentParser, "error", argparse.ArgumentParser.error)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def train(self, *settings: str) -> Result:
        self.monkeypatch.setattr(sys, "argv", sys.argv)
        return self._result(lambda: train_as_typed(*settings))

    def fewstep(self, *arguments: str | Path) -> Result:
        self.monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, arguments)])
        return self._result(cli.main)

    def _result(self, main: Callable[[], object]) -> Result:
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self.capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)


@pytest.fixture
def commands(as_users_run: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


@pytest.fixture(scope="module")
def as_users_run() -> Iterator[None]:
    """Without the checks of types and shapes that the other tests have: what users see is the code's own behaviour."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def files_below(folder: Path) -> list[str]:
    """Every file below `folder`, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def make_chain(outputs: Path, *settings: str) -> dict[str, Path]:
    """Train a teacher, a guided student and the rungs of 2 and 1 steps below `outputs`; give their files."""
    fast = ("trainer.max_images=256", "stage.training.batch_size=32", "stage.training.warmup_images=0")
    own = [*TINY, *fast, f"outputs={outputs}", *settings]
    for stage in ("teacher", "guidance"):
        run_as_composed(f"stage={stage}", *own)
    run_as_composed("stage=progressive", "stage.ladder=[4,2,1]", *own)
    (teacher,), (guided,) = (
        outputs.glob("*/teacher/*/model.safetensors"),
        outputs.glob("*/guidance/*/model.safetensors"),
    )
    (two,), (one,) = outputs.glob("*/progressive/*/model-2.*"), outputs.glob("*/progressive/*/model-1.*")
    return {"teacher": teacher, "guided": guided, "2": two, "1": one}
