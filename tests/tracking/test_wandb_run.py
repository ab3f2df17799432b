"""W&B for real, offline: it writes below the run folder, and its failures are warnings."""

import ast
import json
from pathlib import Path

import pytest
from PIL import Image

import fewstep
from fewstep.tracking import wandb_run
from fewstep.tracking.names import IMAGES, LOSS, RUNG, SAMPLE_GRID
from fewstep.tracking.tracker import log_picture, log_quality
from fewstep.tracking.wandb_run import logged_in, run_id, start_wandb


@pytest.fixture(autouse=True)
def stranger(tmp_path, monkeypatch):
    """Nobody is logged in, and what W&B keeps outside the run goes to a folder of the test."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_MODE",
        "WANDB_BASE_URL",
        "WANDB_PROJECT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def test_an_offline_run_is_complete_and_below_the_run_folder(tmp_path, capfd):
    folder = tmp_path / "digits" / "teacher" / "now"
    logger = start_wandb(folder, group="pipeline-1", job_type="teacher", config={"seed": 3})
    assert logger is not None
    run = logger.experiment
    assert run.settings.mode == "offline"
    assert run.offline
    assert (run.project, run.group, run.job_type) == ("fewstep", "pipeline-1", "teacher")
    assert (run.id, run.name, run.config["seed"]) == (run_id(folder), "digits/teacher/now", 3)
    assert run.settings.console == "off"

    logger.log_metrics({IMAGES: 128, LOSS: 0.5}, step=7)
    log_picture([logger], SAMPLE_GRID, Image.new("L", (40, 8)), images=128)
    row = {"model": "teacher", "steps": 4, "w": 0.0, "accuracy": None}
    log_quality([logger], [row | {"intervals": {"fid": [1, 2]}}])
    logger.finish()
    logger.log_metrics({IMAGES: 256, LOSS: 0.4})  # after the end: nothing, not even a warning

    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert (offline / f"run-{run.id}.wandb").stat().st_size > 0
    assert len(list(offline.rglob("*.png"))) == 1
    (table,) = offline.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [["teacher", 4, 0, None, 1, 2]]
    assert capfd.readouterr() == ("", "")


def test_a_failure_is_one_warning_and_then_silence(tmp_path, monkeypatch):
    logger = start_wandb(tmp_path / "run", group="g", job_type="teacher", config={})
    assert logger is not None
    run = logger.experiment
    with monkeypatch.context() as broken:
        broken.setattr(run, "log", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError("the service died")))
        with pytest.warns(UserWarning, match="the service died"):
            logger.log_metrics({IMAGES: 1, LOSS: 0.5})
        logger.log_metrics({IMAGES: 2, LOSS: 0.5})
        log_picture([logger], SAMPLE_GRID, Image.new("L", (8, 8)), images=2)
    run.finish()


def test_a_rungs_first_look_is_not_that_of_the_last_ones_end(tmp_path, monkeypatch):
    look = {IMAGES: 640, "diagnostics/gap": 0.5}
    for rungs in ((4, 2), (4, 2, 1)):  # the second time what W&B has on disk is not logged again
        logger = start_wandb(tmp_path / "run", group="g", job_type="progressive", config={})
        assert logger is not None
        rows = []
        log = logger.experiment.log
        with monkeypatch.context() as seen:
            seen.setattr(
                logger.experiment, "log", lambda row, step, rows=rows, log=log: (rows.append(row), log(row, step))
            )
            for rung in rungs:
                logger.log_metrics(look | {RUNG: rung})
                logger.log_metrics(look | {RUNG: rung})
        logger.finish()
        assert [row[RUNG] for row in rows] == ([4, 2] if len(rungs) == 2 else [1])


def test_no_start_is_no_logger(tmp_path, monkeypatch):
    import wandb

    modes = []

    def refuse(**settings):
        modes.append(settings["mode"])
        raise wandb.errors.CommError("no answer")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.warns(UserWarning, match="no answer"):
        assert start_wandb(tmp_path, group="g", job_type="teacher", config={}) is None
    assert modes == [None, "offline"]  # an unreachable server is tried once, then the run is kept offline


def test_logged_in_by_key_or_netrc(tmp_path, monkeypatch):
    assert not logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert logged_in()


def test_the_id_follows_from_the_folder(tmp_path):
    assert run_id(tmp_path / "a") == run_id(tmp_path / "b" / ".." / "a") != run_id(tmp_path / "b")


def test_wandb_is_imported_only_when_it_is_used():
    for path in Path(fewstep.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            module = node.module if isinstance(node, ast.ImportFrom) else None
            assert not any(str(name).split(".")[0] == "wandb" for name in [*names, module]), path
    assert not hasattr(wandb_run, "wandb")
