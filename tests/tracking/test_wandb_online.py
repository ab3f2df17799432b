"""A W&B run that is resumed online: the server, one of our own, gets every row once, whatever of them it had."""

import gzip
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fewstep.tracking import wandb_run
from fewstep.tracking.metrics_file import MetricsFile
from fewstep.tracking.names import GAP, IMAGES, LOSS, RUNG
from fewstep.tracking.tracker import history
from fewstep.tracking.wandb_run import WandbRun, start_wandb

VIEWER = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "email": "me@here", "admin": False}
PROJECT = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}


class Server:
    """What W&B's server answers of runs, and the rows of history that it has."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.address = ""

    def answer(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        if "file_stream" in path:
            stream = (asked.get("files") or {}).get("wandb-history.jsonl", {"offset": len(self.rows), "content": []})
            assert stream["offset"] == len(self.rows)
            self.rows += map(json.loads, stream["content"])
            return {"exitcode": None, "limits": {}}
        if "query" not in asked:
            return {}
        name = (asked.get("variables") or {}).get("name")
        run = {"id": "cg==", "name": name, "displayName": name, "config": "{}"}
        match asked.get("operationName"):
            case "RunResumeStatus":
                return {"data": {"model": PROJECT | {"bucket": run | self.progress() if self.rows else None}}}
            case "UpsertBucket":
                bucket = run | {"description": None, "sweepName": None, "project": PROJECT}
                bucket |= {"historyLineCount": len(self.rows)}
                return {"data": {"upsertBucket": {"bucket": bucket, "inserted": not self.rows}}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.address}/{name}"} for name in asked["variables"]["files"]]
                return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
        about = {"cliVersionInfo": {}, "features": [], "latestLocalVersionInfo": None}
        return {"data": {"viewer": VIEWER | {"teams": {"edges": []}}, "serverInfo": about}}

    def progress(self) -> dict[str, Any]:
        """How far the run got."""
        tail = json.dumps([json.dumps(self.rows[-1])])
        history = {"historyLineCount": len(self.rows), "historyTail": tail, "summaryMetrics": "{}"}
        others = {"eventsLineCount": 0, "eventsTail": "[]", "logLineCount": 0}
        return history | others | {"tags": [], "wandbConfig": '{"t": 1}'}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    own = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            asked = json.loads(body) if self.path.endswith(("graphql", "file_stream")) else {}
            answer = json.dumps(own.answer(self.path, asked)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            pass

    wandb_run.stop_service()  # it remembers the environment it began with
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr(WandbRun, "accepted", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        own.address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setenv("WANDB_BASE_URL", own.address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield own
        wandb_run.stop_service()
        running.shutdown()


ROWS = [{IMAGES: 100.0 * n, RUNG: 4 if n <= 5 else 2, LOSS: 1 / n} for n in range(1, 11)]
LOOKS = [{IMAGES: 500.0, RUNG: rung, GAP: 0.125 * rung} for rung in (4, 2)]  # the second is the first of its phase


def live(folder: Path, rows: list[dict[str, float]]) -> WandbRun:
    """Start or resume a run, cut metrics.csv back to the checkpoint before these rows, log them, and end."""
    metrics, looks = MetricsFile(folder), LOOKS if folder.exists() else []
    logger = start_wandb(folder, group="g", job_type="progressive", config={}, history=partial(history, folder, looks))
    assert logger is not None
    metrics.truncate(int(rows[0][IMAGES]) - 100)
    for row in rows:
        metrics.log_metrics(row)
        logger.log_metrics(row)
        for look in LOOKS:
            if look[IMAGES] == row[IMAGES]:
                logger.log_metrics(look)
    logger.finish()
    wandb_run.stop_service()  # ends with its process
    return logger


def logged(server: Server, name: str) -> list[tuple[float, float]]:
    return [(row[IMAGES], row[name]) for row in server.rows if name in row]


def assert_complete(server: Server) -> None:
    assert logged(server, LOSS) == [(row[IMAGES], row[LOSS]) for row in ROWS]
    assert logged(server, GAP) == [(500, 0.5), (500, 0.25)]
    steps = [row["_step"] for row in server.rows]
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.parametrize("had", [3, 5, 6, 8])
def test_the_server_gets_what_it_lacks_and_nothing_twice(server: Server, tmp_path: Path, had: int):
    folder = tmp_path / "run"
    assert not live(folder, ROWS[:8]).experiment.offline
    del server.rows[had:]  # the process was killed before it had sent them
    live(folder, ROWS[4:])
    assert_complete(server)


@pytest.mark.slow
def test_a_run_that_began_offline_goes_on_online(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as offline:
        offline.setenv("WANDB_MODE", "offline")
        live(folder, ROWS[:8])
    assert server.rows == []
    live(folder, ROWS[8:])
    assert_complete(server)
    assert [path.name.partition("-")[0] for path in folder.glob("wandb/*run-*")] == ["run"]  # `wandb sync` adds nothing
