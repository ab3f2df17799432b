"""The W&B workspace, made without any network, and saved to a server of our own."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml
from running import Commands

from fewstep.tracking import names

pytest.importorskip("wandb_workspaces", reason="pip install 'fewstep[workspace]'")
from fewstep.tracking.workspace import as_json, key_in_run, workspace

pytest_plugins = ("running",)
QUESTIONS = ["Is it training?", "Which w?", "Which steps?", "What did it cost?"]
LOGGED = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
LOGGED |= {name(statistic) for name in (names.drift_of, names.of_samples) for statistic in names.SAMPLE_STATISTICS}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def sections(text: str) -> dict[str, list[dict]]:
    found = json.loads(text)["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in found}


def test_a_project_has_panels_by_question(commands: Commands):
    result = commands.fewstep("dashboard", "--project", "mine", "--entity", "me", "--json")
    assert result.status == 0, result
    about = json.loads(result.out)
    assert (about["entity"], about["project"], about["name"]) == ("me", "mine", "fewstep")
    found = sections(result.out)
    assert list(found) == QUESTIONS
    assert all(found.values())
    assert about["spec"]["section"]["settings"]["xAxis"] == "images"


def test_panels_ask_for_what_is_logged_and_for_all_of_it():
    text = as_json(workspace("p", "e", sweep=None, outputs=None, swept=[]))
    panels = [panel for own in sections(text).values() for panel in own]
    lines = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    asked = {metric for config in lines for metric in config.get("metrics", [])}
    assert asked <= LOGGED
    assert {config["xAxis"] for config in lines} == {"images"}
    assert {names.LOSS, names.GAP, names.ALARMS, names.GRADIENT_NORM, names.SAMPLE_FID, names.LEARNING_RATE} <= asked
    families = [config["metricRegex"].removesuffix(".*") for config in lines if "metricRegex" in config]
    logged = (
        names.gap_at("t", 0.0, 0.125),
        names.gap_at("w", 0.0, 1.0),
        names.step_error_at(0.25),
        names.gradient_norm_of("blocks.0"),
    )
    assert len(families) == len(logged)
    for name in logged:
        assert sum(name.startswith(prefix) for prefix in families) == 1, name
    tables = [panel["config"]["userQuery"] for panel in panels if panel["viewType"] == "Vega2"]
    assert len(tables) >= 4
    assert all(names.QUALITY_TABLE in json.dumps(query) for query in tables)


def test_a_sweep_of_ours_shows_its_runs_alone(commands: Commands, tmp_path):
    folder = tmp_path / "outputs" / "sweeps" / "seeds-1"
    folder.mkdir(parents=True)
    swept = {"stage.guidance.w_max": ["2", "4"], "seed": ["0", "1"]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"swept": swept}, sort_keys=False))
    result = commands.fewstep("dashboard", "--outputs", tmp_path / "outputs", "--sweep", "seeds-1", "--json")
    found = sections(result.out)
    assert list(found) == ["Which setting?", *QUESTIONS]
    (parallel,) = (panel for panel in found["Which setting?"] if "Parallel" in panel["viewType"])
    columns = [column["accessor"] for column in parallel["config"]["columns"]]
    assert columns == ["config:stage.value.w_max", "config:seed.value", "summary:samples/fid"]
    (runs,) = json.loads(result.out)["spec"]["section"]["runSets"]
    assert str(folder) in json.dumps(runs["filters"])


def test_a_sweep_of_wandb_is_found_by_its_id(commands: Commands, tmp_path):
    result = commands.fewstep("dashboard", "--outputs", tmp_path, "--sweep", "abc123", "--json")
    (runs,) = json.loads(result.out)["spec"]["section"]["runSets"]
    assert "abc123" in json.dumps(runs["filters"])
    assert "sweep" in json.dumps(runs["filters"])


@pytest.mark.parametrize(
    ("key", "in_its_run"),
    [
        ("stage.guidance.w_max", "stage.w_max"),
        ("stage.progressive.training.images", "stage.training.images"),
        ("stage.tract.training.images", "stage.training.images"),
        ("stage.training.images", "stage.training.images"),
        ("stage.w_max", "stage.w_max"),
        ("seed", "seed"),
        ("+trainer.max_images", "trainer.max_images"),
    ],
)
def test_keys_are_those_of_the_run_of_the_stage(key, in_its_run):
    assert key_in_run(key) == in_its_run


def test_mistakes_are_one_line(commands: Commands, tmp_path):
    commands.fewstep("dashboard", "--outputs", tmp_path).is_one_error("wandb login", "--local", "--json")
    commands.fewstep("dashboard", "--local", "--json").is_one_error("--local", "--json")
    commands.fewstep("dashboard", "--local", "--outputs", tmp_path, "--sweep", "none").is_one_error("none", "sweeps=")


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict]]]:
    """A W&B of our own: its address, and what it was sent."""
    sent: list[dict] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append(asked)
            viewer = {"id": "u", "username": "me", "entity": "me", "flags": "{}", "admin": False, "email": "me@here"}
            viewer["teams"] = {"edges": [{"node": {"name": "me"}}]}
            view = {"view": {"id": "1", "name": "nw-abc-v"}, "inserted": True}
            data = {"viewer": viewer, "upsertView": view, "serverInfo": {"cliVersionInfo": {}, "features": []}}
            body = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    own = HTTPServer(("localhost", 0), Answer)
    threading.Thread(target=own.serve_forever, daemon=True).start()
    yield f"http://localhost:{own.server_port}", sent
    own.shutdown()
    own.server_close()


@pytest.mark.slow
def test_it_is_saved_in_wandb(commands: Commands, server, monkeypatch, tmp_path):
    address, sent = server
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    result = commands.fewstep("dashboard", "--outputs", tmp_path, "--project", "mine", "--entity", "me")
    assert result.status == 0, result
    assert "/me/mine?nw=" in result.out
    (saved,) = (asked["variables"] for asked in sent if "upsertView" in asked["query"])
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("me", "mine", "fewstep")
    spec = json.loads(saved["spec"])
    names_of = [section["name"] for section in spec["section"]["panelBankConfig"]["sections"]]
    assert names_of == QUESTIONS


@pytest.mark.slow
def test_a_server_that_is_not_there_is_one_line(commands: Commands, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    result = commands.fewstep("dashboard", "--outputs", tmp_path, "--entity", "me")
    assert result.status == 2, result
    assert "W&B did not take the workspace" in result.err.strip().splitlines()[-1]
