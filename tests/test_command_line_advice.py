"""What is said of a line that Hydra refuses or reads otherwise than a shell's user would."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from running import config_of

from fewstep.data.digits import DigitsData
from fewstep.runs.advice import explained
from fewstep.runs.build import build_callbacks, build_network, build_training
from fewstep.runs.config import Settings
from fewstep.runs.overrides import hydra_arguments, quoted_value


def refusal(*settings: str) -> str:
    """What a user is told whose settings Hydra refuses."""
    with pytest.raises(ValueError) as refused, explained(settings):  # noqa: PT011
        config_of(*settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["dataset=imagefolder", "root=/x"], "root is no setting here; did you mean dataset.root?"),
        (["root=/x"], "dataset.root is a setting of dataset=arrays, cifar10, "),
        (["stage=teacher", "batch_size=3"], "did you mean stage.training.batch_size?"),
        (["stage=teacher", "stage.training.imagess=3"], "did you mean stage.training.images?"),
        (["stage=teacher", "w_max=3"], "stage.w_max is a setting of stage=add, boot, "),
        (["dataset.rot=3"], "dataset.rot is no setting here; dataset has name, "),
        (["stage=teacher", "stage.training.images==3"], "like 'stage.training.images=\"=3\"'"),
        (['outputs=a"b'], 'like \'outputs="a\\"b"\''),
        (["outputs=/tmp/a(b)"], "like 'outputs=\"/tmp/a(b)\"'"),
    ],
)
def test_a_setting_that_there_is_not_names_those_that_may_be_meant(settings: list[str], words: str):
    assert words in refusal(*settings)


def test_other_errors_of_hydra_stay_its_own():
    with pytest.raises(Exception, match="Could not find 'stage/nonsense'"), explained(["stage=nonsense"]):
        config_of("stage=nonsense")


@pytest.mark.parametrize("name", ["a=b", "a,b", "a (1)", "ü", "a'b", "a:b{c}", "plain"])
def test_a_path_that_exists_needs_no_quotes_of_hydras(tmp_path: Path, name: str):
    path = tmp_path / name
    path.mkdir()
    (argument,) = hydra_arguments([f"teacher={path}"])
    assert config_of(argument).teacher == str(path)


@pytest.mark.parametrize("argument", ["outputs=/new/ü/ä b", "outputs=/new/日本", "+x=é"])
def test_letters_of_other_languages_need_none(argument: str):
    key, _, value = argument.lstrip("+").partition("=")
    assert config_of(quoted_value(argument))[key] == value


def test_the_home_folder_is_what_a_shell_makes_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert quoted_value("dataset.root=~/birds") == "dataset.root=/home/me/birds"


@pytest.mark.parametrize(
    "argument", ["seed=0,1", "stage.ladder=[4,2]", 'name="ü"', "x='a=b'", "seed=${seed}", "~recipe", "-m", "--cfg=ü"]
)
def test_what_hydra_reads_stays(argument: str):
    assert quoted_value(argument) == argument


@pytest.mark.parametrize("argument", ["dataset=null", "stage=null", "outputs=null", "=1"])
def test_no_option_of_a_group_is_none_of_its_options(argument: str):
    with pytest.raises(ValueError, match="must be"):
        hydra_arguments([argument])
    assert hydra_arguments(["sweeps=null"]) == ["sweeps=null"]


def test_callbacks_that_would_accumulate_gradients_are_refused():
    scheduler = {"_target_": "lightning.pytorch.callbacks.GradientAccumulationScheduler", "scheduling": {0: 2}}
    settings = Settings.read(config_of()).trainer
    with pytest.raises(ValueError, match=r"use trainer\.accumulate_grad_batches"):
        build_callbacks(replace(settings, callbacks=(scheduler,)))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=-1", "seed must be a whole number from 0 to 2^63 - 1, got -1"),
        ("seed=12345678901234567890123", "seed must be a whole number from 0 to 2^63 - 1"),
        ("outputs=", "outputs must be text that is not empty, got ''"),
        ("teacher=", "teacher must be text that is not empty or null"),
        ("+X=1", "X is no setting; the settings are dataset, "),
        ("+model.X=1", "model.X is no setting; model has prediction, "),
        ("+trainer.X=1", "trainer.X is no setting; trainer has accelerator, "),
        ("trainer.callbacks=[3]", "trainer.callbacks must be a list of groups of settings"),
        ("~resume", "resume must be given, one of auto, force"),
        ("~model.network", "model.network must be given"),
        ("stage.seeds.teacher=-1", "stage.seeds must be"),
    ],
)
def test_settings_that_are_refused_as_they_are_read(setting: str, words: str):
    with pytest.raises(ValueError, match=words.replace("^", r"\^")) as refused:
        _ = Settings.read(config_of(setting)).seeds
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.network.width=abc", "model.network.width must be a whole number, got 'abc'"),
        ("model.network.dropout=[1]", r"model.network.dropout must be a number, got \[1\]"),
        ("+model.network.X=1", "model.network.X is no setting; model.network has shape, "),
        ("~model.network.width", "model.network.width must be given, a whole number"),
        ("~model.network._target_", "model.network._target_ must be the path of a class"),
        ("stage.training.optimizer.betas=abc", "stage.training.optimizer.betas must be a list of numbers"),
        ("stage.training.optimizer.betas=[2,3]", "stage.training.optimizer cannot be used: Invalid beta"),
        ("+stage.training.optimizer.X=1", "stage.training.optimizer.X is no setting"),
        ("+stage.training.decay.X=1", "stage.training.decay.X is no setting; stage.training.decay has done"),
    ],
)
def test_settings_of_networks_and_optimisers_are_checked_by_their_constructors(setting: str, words: str):
    settings = Settings.read(config_of("stage=teacher", setting))
    build = build_training if "optimizer" in setting or "decay" in setting else None
    with pytest.raises(ValueError, match=words) as refused:
        build_network(settings, DigitsData.facts) if build is None else build(settings.stage["training"])
    assert "\n" not in str(refused.value)


def test_what_waits_in_a_training_is_a_plain_partial() -> None:
    """Hydra's looks at its target in every call, and the learning rate is asked in every step."""
    training = build_training(Settings.read(config_of("stage=teacher")).stage["training"])
    assert type(training.decay) is type(training.optimizer) is partial
    assert training.decay(0.25) == 0.75
