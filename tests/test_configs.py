"""Every combination of settings composes; defaults are stated once; a recipe cannot name what is not there."""

from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from running import ROOT, config_of

from fewstep.diffusion.schedule import CosineSchedule
from fewstep.evaluation.grid import EvaluationPlan
from fewstep.methods import Training
from fewstep.training.settings import TrainerSettings

CONF = ROOT / "conf"
STAGES = ("pipeline", "teacher", "guidance", "progressive", "encoder", "evaluate")
TRAINED = STAGES[1:5]
IN_PIPELINE = STAGES[1:4]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_the_groups_are_those_of_the_contract():
    assert sorted(path.name for path in CONF.iterdir() if path.is_dir()) == [
        "dataset",
        "launcher",
        "logger",
        "model",
        "recipe",
        "stage",
        "sweeper",
        "sweeps",
        "trainer",
    ]
    assert set(options("stage")) == set(STAGES)
    assert {"digits", "mixture"} <= set(options("dataset"))
    assert {"cpu", "gpu", "debug"} <= set(options("trainer"))
    assert {"wandb", "csv"} <= set(options("logger"))


@pytest.mark.parametrize(("dataset", "stage"), list(product(options("dataset"), STAGES)))
def test_every_stage_of_every_data_set_composes(dataset, stage):
    config = config_of(f"dataset={dataset}", f"stage={stage}")
    OmegaConf.resolve(config)
    assert (config.dataset.name, config.stage.name) == (dataset, stage)
    network = config_of(f"model={dataset}").model
    assert config.model == network  # the network follows the data
    for name in IN_PIPELINE if stage == "pipeline" else [stage] if stage in TRAINED else []:
        own = config.stage[name] if stage == "pipeline" else config.stage
        assert own.name == name
        assert isinstance(instantiate(own.training), Training)
    assert instantiate(config.schedule) == CosineSchedule()


@pytest.mark.parametrize(
    ("group", "option"), [(group, o) for group in ("model", "trainer", "logger") for o in options(group)]
)
def test_every_option_composes(group, option, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = config_of(f"{group}={option}")
    OmegaConf.resolve(config)
    TrainerSettings(**config.trainer)  # every setting it takes and no other
    assert isinstance(config.logger.wandb, bool)
    assert config.model.prediction in ("x", "eps", "v")


def test_the_bare_command_is_the_pipeline_on_digits():
    config = config_of()
    assert (config.dataset.name, config.stage.name, config.logger.wandb) == ("digits", "pipeline", True)
    assert (config.seed, config.teacher, config.outputs) == (0, None, "outputs")


@pytest.mark.parametrize("recipe", options("recipe"))
def test_a_recipe_is_taken_by_its_stage_and_by_the_pipeline(recipe):
    dataset, stage = recipe.split("_")
    with_recipe = config_of(f"dataset={dataset}", f"stage={stage}")
    without = config_of(f"dataset={dataset}", f"stage={stage}", "~recipe")
    assert with_recipe.stage != without.stage
    assert set(flat(with_recipe.stage)) == set(flat(without.stage))  # it changes values, and adds no key
    if stage not in ("pipeline", "encoder"):  # an encoder is no part of a pipeline
        assert config_of(f"dataset={dataset}", "stage=pipeline").stage[stage] == with_recipe.stage


def flat(config, before: str = "") -> dict[str, object]:
    """Every setting by its full name."""
    found: dict[str, object] = {}
    for key, value in OmegaConf.to_container(config).items() if not isinstance(config, dict) else config.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def test_a_misspelt_key_of_a_recipe_is_an_error(tmp_path: Path):
    """The settings are a closed set for recipes as for the command line."""
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "mine.yaml").write_text("# @package stage\ntraining:\n  imagess: 3\n")
    settings = ["stage=teacher", "recipe=mine", f"hydra.searchpath=[file://{tmp_path}]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        with pytest.raises(ConfigCompositionException):
            compose("config", ["stage=teacher", "stage.training.imagess=3"])
        mine = compose("config", settings)
    with pytest.raises(Exception, match="imagess"):
        instantiate(mine.stage.training)


def test_the_grid_of_the_settings_is_the_default_grid():
    values = OmegaConf.to_container(OmegaConf.load(CONF / "stage" / "evaluate.yaml"))
    assert values.pop("name") == "evaluate"
    assert values.pop("_target_") == "fewstep.evaluation.grid.EvaluationPlan"
    stated = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    assert stated == asdict(EvaluationPlan())
