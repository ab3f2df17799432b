"""W&B's own sweeps, without a network: the YAML, the agent's arguments, and the run that the agent counts."""

import runpy
import sys
from pathlib import Path

import pytest
import wandb
import yaml
from running import ROOT, Commands

from fewstep.runs import pipeline as run_module
from fewstep.runs.config import Settings
from fewstep.tracking import wandb_agent
from fewstep.tracking.tracker import log_quality
from fewstep.tracking.wandb_run import run_id, start_wandb

pytest_plugins = ("running",)


def described(commands: Commands, *arguments: str) -> dict:
    result = commands.fewstep("wandb-sweep", *arguments)
    assert result.status == 0, result
    return yaml.safe_load(result.out)


def test_a_preset_becomes_a_grid(commands: Commands):
    sweep = described(commands, "guidance_range", "dataset=mixture", "stage.guidance.w_max=1,3")
    assert (sweep["program"], sweep["method"]) == ("train.py", "grid")
    assert sweep["metric"] == {"name": "quality/fid_4_steps", "goal": "minimize"}
    assert sweep["parameters"] == {
        "stage.guidance.w_max": {"values": [1, 3]},
        "stage.guidance.w_draw": {"values": ["uniform", "log_uniform"]},
    }


def test_a_search_becomes_bayes(commands: Commands):
    pytest.importorskip("optuna")
    sweep = described(commands, "search")
    assert sweep["method"] == "bayes"
    rate = sweep["parameters"]["stage.guidance.training.learning_rate"]
    assert rate == {"distribution": "log_uniform_values", "min": 2e-4, "max": 5e-3}


def test_bad_presets(commands: Commands):
    commands.fewstep("wandb-sweep", "nope").is_one_error("PRESET", "nope", "guidance_range")
    commands.fewstep("wandb-sweep", "seeds", "seed=1").is_one_error("sweeps over nothing")


@pytest.mark.parametrize(
    "preset", ["guidance_range", "step_counts", "ablations", "smaller_student", "search", "methods"]
)
def test_what_an_agent_runs_is_composed_as_a_job(preset: str, commands: Commands, monkeypatch):
    """The agent's own functions make its command of the YAML and of values that W&B chose; train.py runs that."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # takes seconds

    if preset == "search":
        pytest.importorskip("optuna")
    sweep = described(commands, preset, "dataset=mixture", "trainer=debug")
    chosen = {key: {"value": own.get("values", [own.get("max")])[-1]} for key, own in sweep["parameters"].items()}
    made = create_sweep_command_args({"args": chosen}) | {"env": [], "interpreter": [], "program": ["train.py"]}
    command = [part for piece in create_sweep_command(sweep["command"]) for part in filled(piece, made)]
    ran: list[Settings] = []
    monkeypatch.setattr(run_module, "run", ran.append)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert not ended.value.code
    (settings,) = ran
    assert (settings.dataset_name, settings.name) == ("mixture", "pipeline")
    guidance = settings.stage["guidance"]
    if preset == "guidance_range":
        assert (guidance["w_max"], guidance["w_draw"]) == (8, "log_uniform")
    if preset == "smaller_student":
        assert guidance["student"] == settings.values["model"]["smaller"]["shallow"]
    if preset == "methods":
        assert settings.stages == ("teacher", "guidance", "ladd", "evaluate")


def filled(piece: str, made: dict[str, list[str]]) -> list[str]:
    return made[piece[2:-1]] if piece.startswith("${") else [piece]


@pytest.fixture
def agent(monkeypatch):
    """The environment that an agent gives a run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "agent456")
    wandb.teardown()
    wandb_agent.agents_run.cache_clear()
    yield
    wandb.teardown()
    wandb_agent.agents_run.cache_clear()


@pytest.mark.usefixtures("agent")
def test_the_agents_run_is_the_one_with_the_figures(tmp_path: Path):
    """Each stage of a pipeline has a run of its own; W&B would take every one for the agent's."""
    teacher = start_wandb(tmp_path / "teacher", group="g", job_type="teacher", config={})
    assert teacher is not None
    assert (teacher.experiment.id, teacher.experiment.sweep_id) == (run_id(tmp_path / "teacher"), None)
    teacher.finish()
    judged = start_wandb(tmp_path / "pipeline", group="g", job_type="evaluate", config={})
    assert judged is not None
    assert (judged.experiment.id, judged.experiment.sweep_id) == ("agent456", "sweep123")
    rows = [{"model": m, "steps": 4, "w": w, "fid": 2 * w} for m in ("teacher", "progressive") for w in (1.0, 2.0)]
    log_quality([judged], rows)
    judged.experiment.log({"end": 1}, step=1)  # a step counts once the next one begins, or the run has ended
    assert judged.experiment.summary["quality/fid_4_steps"] == 3.0
    assert judged.experiment.summary["quality/fid_4_steps_w2"] == 4.0
    judged.finish()
