"""A W&B server that is silent, talks nonsense or refuses the key; and a run that goes on is logged once."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from running import TINY
from wandb_files import BLOCK, HEADER, entries, logged_into, records

from fewstep.tracking import wandb_run
from fewstep.tracking.metrics_file import MetricsFile, read_metrics
from fewstep.tracking.names import IMAGES, LOSS
from fewstep.tracking.tracker import history
from fewstep.tracking.wandb_run import RefusedKeyError, WandbRun, start_wandb

pytest_plugins = ("running",)

ANSWERS = {
    "not JSON": (200, b"<html>It works!</html>"),
    "JSON of another kind": (200, b'{"data": {"viewer": 3, "x": [1]}}'),
    "nothing in it": (200, b'{"data": null}'),
    "broken": (500, b"oops"),
    "refused": (401, b'{"errors": [{"message": "user is not logged in", "code": 401}]}'),
    "forbidden": (403, b'{"errors": [{"message": "permission denied"}]}'),
}


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is logged in, and what W&B keeps outside the run goes to a folder of the test."""
    wandb_run.stop_service()  # it remembers what the environment said when it was first asked
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(WandbRun, "accepted", False)
    monkeypatch.setattr(wandb_run, "INIT_SECONDS", 4.0)
    yield
    wandb_run.stop_service()


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine that gives the same answer to everything, or none."""
    answer = ANSWERS.get(request.param)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if answer is None:
                time.sleep(60)
                return
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield request.param
        running.shutdown()


def settings_of(outputs: Path) -> list[str]:
    return [*TINY, "logger=wandb", "stage=teacher", "dataset=mixture", "stage.training.batch_size=32",
            "trainer.max_images=320", "trainer.log_every_images=32", f"outputs={outputs}"]  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize(
    "server", ["silent", "not JSON", "JSON of another kind", "nothing in it", "broken"], indirect=True
)
def test_training_goes_on_and_its_data_stay_on_disk(commands, server, tmp_path):
    result = commands.train(*settings_of(tmp_path / "outputs"))
    assert result.status == 0, result
    assert "Traceback" not in result.err
    said = [line for line in result.err.splitlines() if line.startswith("warning: W&B ")]
    assert len(said) == 1, result
    assert "data stay on disk" in said[0]
    (folder,) = (tmp_path / "outputs" / "mixture" / "teacher").glob("*/")
    assert (folder / "model.safetensors").is_file()
    images = {row[IMAGES] for row in read_metrics(folder / "metrics.csv") if LOSS in row}
    assert len(images) == 10
    if "did not start online" in said[0]:  # else its service broke down over the answer, and what it held is gone
        assert {x for x, _, name in logged_into(folder) if name == LOSS} == images  # for `wandb sync`


@pytest.mark.parametrize("server", ["refused", "forbidden"], indirect=True)
def test_a_refused_key_is_one_line_before_anything_is_trained(commands, server, tmp_path):
    result = commands.train(*settings_of(tmp_path / "outputs"))
    result.is_one_error("W&B refuses the key", "wandb login --relogin", "WANDB_MODE=offline", "logger=csv")
    assert not [*tmp_path.rglob("*.ckpt")]


def test_a_key_of_another_shape_is_refused_too(commands, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    commands.train(*settings_of(tmp_path / "outputs")).is_one_error("W&B refuses the key", "40+ characters")


@pytest.mark.parametrize("server", ["refused"], indirect=True)
def test_a_key_that_was_good_an_hour_ago_stops_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(WandbRun, "accepted", True)  # an earlier stage of this process was online
    with pytest.warns(UserWarning, match="did not start online"):
        logger = start_wandb(tmp_path / "run", group="g", job_type="teacher", config={})
    assert logger is not None
    assert logger.experiment.offline
    logger.finish()


def start(folder: Path) -> WandbRun:
    logger = start_wandb(folder, group="g", job_type="teacher", config={}, history=partial(history, folder))
    assert logger is not None
    return logger


def killed(folder: Path, rows: int) -> None:
    """Log rows to metrics.csv and W&B, and be killed as by SIGKILL."""
    file, logger = MetricsFile(folder), start(folder)
    for number in range(rows):
        row = {IMAGES: 100.0 * number, LOSS: 1.0}
        file.log_metrics(row)
        logger.log_metrics(row)
    os.kill(os.getpid(), 9)


@pytest.mark.integration
def test_the_same_run_goes_on_with_no_row_twice_and_none_missing(tmp_path):
    import multiprocessing

    folder = tmp_path / "run"
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(folder, 300))
    process.start()
    process.join(60)
    assert process.exitcode == -9
    time.sleep(1)  # W&B's service notices
    (file,) = folder.glob("wandb/*run-*/run-*.wandb")
    file.write_bytes(file.read_bytes()[: 2 * file.stat().st_size // 3])  # it writes in blocks: what comes late is lost
    before = logged_into(folder)
    assert 0 < len({images for images, _, _ in before}) < 300

    metrics, logger = MetricsFile(folder), start(folder)
    metrics.truncate(20000)  # back to the checkpoint
    for number in range(201, 400):
        row = {IMAGES: 100.0 * number, LOSS: 1.0}
        metrics.log_metrics(row)
        logger.log_metrics(row)
    logger.finish()
    files = [*folder.glob("wandb/*run-*/run-*.wandb")]
    assert len(files) == 1  # that of the killed process lacked its end: it was made again
    assert files[0].name == file.name  # the same W&B run
    counts = Counter(entry for path in files for entry in entries(path) if entry[2] == LOSS)
    assert set(counts.values()) == {1}
    assert {images for images, _, _ in counts} == {row[IMAGES] for row in read_metrics(folder / "metrics.csv")}


def test_records_of_a_file_cut_anywhere(tmp_path):
    """As the format has it: pieces in blocks of 32 KiB, of which a record may have several."""
    contents = [b"a" * 10, b"b" * (3 * BLOCK), b"", b"c" * (BLOCK - 30), b"d" * 100]
    file = b":W&B123"
    for content in contents:
        first = True
        while True:
            room = BLOCK - len(file) % BLOCK - HEADER.size
            if room < 0:
                file += bytes(room + HEADER.size)
                continue
            piece, content = content[:room], content[room:]
            kind = (1 if not content else 2) if first else (4 if not content else 3)
            file += HEADER.pack(0, len(piece), kind) + piece
            first = False
            if not content:
                break
    assert list(records(file)) == [b"a" * 10, b"b" * (3 * BLOCK), b"", b"c" * (BLOCK - 30), b"d" * 100]
    for length in range(0, len(file), 997):
        found = list(records(file[:length]))
        assert found == list(records(file))[: len(found)]


def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path):
    folder = tmp_path / "wandb" / "offline-run-1-abc"
    folder.mkdir(parents=True)
    (folder / "run-abc.wandb").write_bytes(b":W&B123" + os.urandom(10000))
    assert isinstance(logged_into(tmp_path), set)
    assert json.dumps(sorted(map(str, logged_into(tmp_path)))) is not None


def test_refusal_is_a_value_error():
    assert issubclass(RefusedKeyError, ValueError)  # which `guarded` makes one line and status 2
