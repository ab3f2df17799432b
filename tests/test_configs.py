"""Every combination of settings composes; defaults are stated once; a recipe cannot name what is not there."""

from dataclasses import asdict
from functools import cache
from inspect import signature
from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf
from running import ROOT, Commands, config_of

from fewstep.data.facts import DataFacts
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.evaluation.plan import EvaluationPlan
from fewstep.methods import Training
from fewstep.runs.automatic import fitted_to
from fewstep.runs.build import build_method
from fewstep.runs.config import Settings
from fewstep.training.settings import TrainerSettings

pytest_plugins = ("running",)
CONF = ROOT / "conf"
METHODS = (
    *("progressive", "tract", "consistency", "dmd2", "encoder"),
    *("lcm", "ect", "ict", "scm", "meanflow", "flow_map", "boot", "pid", "freeflow", "single_fold", "sfddm", "ddil"),
    *("knowledge_distillation", "reflow", "rdd", "o2mkd", "pi_flow", "dp_dmd", "sid", "add", "ladd"),
    *("flow_trajectory", "noise_aware_judge", "vdd", "em_mixture", "two_guidances"),
)
TRAINED = ("teacher", "guidance", *METHODS)
STAGES = ("pipeline", *TRAINED, "evaluate")


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
    with initialize_config_dir(str(CONF), version_base="1.3"):
        methods = GlobalHydra.instance().config_loader().get_group_options("method")
    assert methods == sorted(METHODS)  # which no files say: they are the stages that a pipeline does not have anyway


@cache
def network_of(dataset: str):
    return config_of(f"model={dataset}").model


# Data set and stage meet in a recipe alone, so that of the other pairs each has to come once.
PAIRS = sorted(
    {pair for pair in product(options("dataset"), STAGES) if "_".join(pair) in options("recipe")}
    | set(product(options("dataset"), ("pipeline", "progressive")))
    | set(product(["digits"], STAGES))
)


@pytest.mark.parametrize(("dataset", "stage"), PAIRS)
def test_every_stage_of_every_data_set_composes(dataset, stage):
    config = config_of(f"dataset={dataset}", f"stage={stage}")
    OmegaConf.resolve(config)
    assert (config.dataset.name, config.stage.name) == (dataset, stage)
    assert config.model == network_of(dataset)  # the network follows the data
    settings, _ = fitted_to(Settings.read(config), DataFacts(dataset, (3, 32, 32), 10, -1.0, 1.0), 1000)
    in_pipeline = ("teacher", "guidance", "progressive")
    for name in in_pipeline if stage == "pipeline" else [stage] if stage in TRAINED else []:
        own = settings.stage[name] if stage == "pipeline" else settings.stage
        assert own["name"] == name
        method = build_method(own)
        assert set(own) - {"_target_"} <= set(signature(type(method)).parameters)
        assert set(own["training"]) == set(signature(Training).parameters)
    assert settings.schedule == CosineSchedule()


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


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_its_place_in_the_pipeline(method: str):
    changed = ("stage.guidance.w_max=6", f"stage.{method}.training.images=300")
    config = config_of(f"method={method}", *changed)
    alone = config_of(f"stage={method}", "stage.training.images=300")
    assert config.stage[method] == alone.stage
    assert config.stage.guidance.w_max == 6
    assert [key for key, value in config.stage.items() if "name" in value and key != "name"] == [
        "teacher", "guidance", method, "evaluate",
    ]  # fmt: skip
    assert Settings.read(config).stages == ("teacher", "guidance", method, "evaluate")
    assert "method" not in alone


def test_settings_of_a_method_are_found_where_they_stand():
    assert config_of("stage.progressive.ladder=[4,2]").stage.progressive.ladder == [4, 2]
    assert config_of("method=tract", "stage.tract.time_schedule=[64,8,1]").stage.tract.time_schedule == [64, 8, 1]
    toy = Settings.read(config_of("method=tract", "stage.tract.time_schedule=[64,8,1]", "trainer=debug"))
    assert toy.of_stage("tract").stage["time_schedule"] == [8, 1]
    with pytest.raises(ConfigCompositionException):
        config_of("method=tract", "stage.progressive.ladder=[4,2]")
    with pytest.raises(ConfigCompositionException, match="method"):
        config_of("stage=tract", "method=tract")


def test_a_method_of_ones_own_is_one_yaml(tmp_path: Path, commands: Commands):
    """In a folder of the user's, `_target_` in a module of the user's; a recipe for it likewise."""
    for group, name, text in [
        ("stage", "own", "name: own\n_target_: my.module.Method\nnumber: 3\n"),
        ("recipe", "digits_own", "# @package stage\nnumber: 4\n"),
    ]:
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(text)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = compose("config", ["method=own", f"hydra.searchpath=[file://{tmp_path}]"])
    assert own.stage.own == {"name": "own", "_target_": "my.module.Method", "number": 4}
    for choice, setting in (("method=own", "stage.own"), ("stage=own", "stage")):
        shown = commands.train("--config-dir", str(tmp_path), choice, f"{setting}.number=5", "--cfg", "job")
        assert (shown.status, "number: 5" in shown.out) == (0, True), shown


def test_an_unknown_method_is_one_error(commands: Commands):
    with pytest.raises(MissingConfigException, match="stage/nothing"):
        config_of("method=nothing")
    commands.train("method=nothing").is_one_error("method/nothing", "stage/nothing", *METHODS)
    commands.train("method=evaluate").is_one_error("method/evaluate", *METHODS)  # which every pipeline has
    commands.train("recipe=digits_pipeline").is_one_error("recipe=digits_pipeline", "dataset=", "~recipe")


def test_help_shows_the_methods(commands: Commands):
    shown = commands.train("--help").out
    assert f"\nmethod: {', '.join(sorted(METHODS))}\n" in shown
    assert "method=tract" in shown


@pytest.mark.parametrize("recipe", options("recipe"))
def test_a_recipe_is_taken_by_its_stage_and_by_the_pipeline(recipe):
    dataset = max((name for name in options("dataset") if recipe.startswith(f"{name}_")), key=len)
    stage = recipe.removeprefix(f"{dataset}_")
    with_recipe = config_of(f"dataset={dataset}", f"stage={stage}")
    without = config_of(f"dataset={dataset}", f"stage={stage}", "~recipe")
    assert with_recipe.stage != without.stage
    assert set(flat(with_recipe.stage)) == set(flat(without.stage))  # it changes values, and adds no key
    method = [f"method={stage}"] if stage in METHODS else []
    pipeline = [f"dataset={dataset}", "stage=pipeline", *method]
    assert config_of(*pipeline).stage[stage] == with_recipe.stage
    assert config_of(*pipeline, "~recipe").stage[stage] == without.stage


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
    (recipe / "own.yaml").write_text("# @package stage\ntraining:\n  imagess: 3\n")
    settings = ["stage=teacher", "recipe=own", f"hydra.searchpath=[file://{tmp_path}]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        with pytest.raises(ConfigCompositionException):
            compose("config", ["stage=teacher", "stage.training.imagess=3"])
        own = compose("config", settings)
    with pytest.raises(ValueError, match="imagess"):
        build_method(Settings.read(own).stage)


def test_the_grid_of_the_settings_is_the_default_grid():
    values = OmegaConf.to_container(OmegaConf.load(CONF / "stage" / "evaluate.yaml"))
    assert values.pop("name") == "evaluate"
    assert values.pop("_target_") == "fewstep.evaluation.grid.EvaluationPlan"
    assert values.pop("models") == []  # of the run, not of the plan
    stated = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    assert stated == asdict(EvaluationPlan())


@pytest.mark.parametrize(
    ("caps", "images"),
    [
        ((), 1000),
        (("trainer.max_images=300",), 300),
        (("trainer.max_steps=5",), 320),
        (("trainer.max_images=50", "trainer.max_steps=5"), 50),
    ],
)
def test_a_budget_is_capped_where_there_are_caps(caps: tuple[str, ...], images: int):
    assert Settings.read(config_of(*caps)).trainer.capped(1000, 64) == images
