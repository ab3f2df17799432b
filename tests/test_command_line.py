"""What train.py makes of its arguments before Hydra reads them."""

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from fewstep.commands.main import one_line
from fewstep.runs import overrides as command_line
from fewstep.runs.overrides import hydra_arguments


def test_the_arguments_of_wandbs_agent_are_hydras():
    """The agent's own function makes them, in each of the forms that its documentation has for Hydra and for others."""
    values = {"stage.guidance.w_max": 4, "stage.guidance.w_draw": "uniform", "seed": 1, "teacher": None, "plan": False}
    made = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    read = ["stage.guidance.w_max=4", "stage.guidance.w_draw=uniform", "seed=1", "teacher=null", "plan=False"]
    assert hydra_arguments(made["args"]) == read
    assert hydra_arguments(["hydra.mode=RUN", *made["args"]]) == ["hydra.mode=RUN", *read]


@pytest.mark.parametrize(
    "argument", ["--cfg=job", "--config-name=mine", "--multirun", "--help", "-m", "seed=1", "~recipe"]
)
def test_other_arguments_stay(argument: str):
    assert hydra_arguments([argument]) == [argument]


def test_a_preset_is_a_sweep_unless_something_else_is_asked():
    assert hydra_arguments(["sweeps=seeds", "seed=0,1"]) == ["sweeps=seeds", "seed=0,1", "--multirun"]
    for other in (["sweeps=seeds", "--cfg", "job"], ["sweeps=seeds", "hydra.mode=RUN"], ["sweeps=null"], ["seed=0"]):
        assert hydra_arguments(other) == other


@pytest.mark.parametrize("folder", [["--config-dir", "mine"], ["--config-dir=mine"]])
def test_a_folder_of_settings_may_stand_anywhere(folder: list[str]):
    """Hydra's parser refuses settings on both sides of a flag."""
    assert hydra_arguments(["stage=mine", *folder, "seed=1"]) == [*folder, "stage=mine", "seed=1"]
    assert hydra_arguments(["-m", "seed=0,1", *folder]) == [*folder, "-m", "seed=0,1"]


@pytest.mark.parametrize(
    ("argument", "extra"),
    [
        ("launcher=joblib", "launchers"),
        ("launcher=slurm", "launchers"),
        ("hydra/launcher=joblib", "launchers"),
        ("sweeper=optuna", "search"),
        ("sweeps=search", "search"),
    ],
)
def test_a_missing_package_names_the_extra(argument: str, extra: str, monkeypatch):
    monkeypatch.setattr(command_line, "is_installed", lambda package: False)
    with pytest.raises(ValueError, match=rf"fewstep\[{extra}\]"):
        hydra_arguments([argument])


def test_whether_a_package_is_installed():
    assert command_line.is_installed("yaml")
    assert not command_line.is_installed("no_such_package")
    assert not command_line.is_installed("no_such_package.inside")


def test_a_colour_needs_no_quotes() -> None:
    given = ["dataset.background=#ff8000,black,#FFFFFF", "dataset.background='#ff8000'", "name=a#ff8000"]
    assert hydra_arguments(given) == ["dataset.background='#ff8000',black,'#FFFFFF'", *given[1:]]


def test_a_long_line_keeps_its_ends() -> None:
    line = one_line(ValueError(f"model.safetensors: its method must be text, got {'a' * 100_000}; make it again"))
    assert line.startswith("model.safetensors: its method")
    assert line.endswith("a; make it again")
    assert len(line) < 2100
