"""model=auto, dataset.size=auto and budgets of own data: the rules, and that a run sees numbers and no `auto`."""

from functools import cache
from typing import Any

import pytest
import torch
from running import config_of
from torch.utils.flop_counter import FlopCounterMode

from fewstep.data.facts import DataFacts, TextFacts
from fewstep.networks import Denoiser
from fewstep.runs.automatic import AUTO, fitted, fitted_to
from fewstep.runs.build import build_method, build_network, build_plan
from fewstep.runs.config import Settings
from fewstep.runs.defaults import COST, TABLE, budgets_of, choose, patch_of, row_of

SIDES = (8, 16, 20, 28, 64)
RATE = 75e9  # floating-point operations a second of small networks on two cores, as measured
HOUR = 3600


@cache
def composed(*settings: str) -> Settings:
    return Settings.read(config_of("dataset=imagefolder", *settings))


def facts_of(*shape: int, num_classes: int = 10) -> DataFacts:
    return DataFacts("imagefolder", shape, num_classes, -1.0, 1.0)


def on(device: str, *settings: str) -> Settings:
    own = composed(*settings)
    return own.with_values({"trainer": own.values["trainer"] | {"accelerator": device}})


def network(settings: Settings, facts: DataFacts) -> Denoiser:
    with torch.device("meta"):
        return build_network(settings.of_stage("teacher"), facts)


def of_kind(value: Any, wanted: object) -> bool:
    """Whether a value is, or holds, the wanted one."""
    if isinstance(value, dict | list):
        return any(of_kind(each, wanted) for each in (value.values() if isinstance(value, dict) else value))
    return value == wanted


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("images", [300, 1_000_000])
@pytest.mark.parametrize("side", SIDES)
def test_the_network_fits_the_images_and_the_machine(side: int, images: int, device: str) -> None:
    facts = facts_of(3, side, side)
    settings, lines = fitted_to(on(device), facts, images)
    row = row_of(facts.shape, images, device)  # pyright: ignore[reportArgumentType]
    made = network(settings, facts)
    parameters = sum(weight.numel() for weight in made.parameters())
    assert 100_000 < parameters < (6e6 if device == "cpu" else 100e6)
    chosen = settings.values["model"]["network"]
    if row.backbone == "dit":
        patch = chosen["config"]["patch_size"]
        assert side % patch == 0
        assert 16 <= (side // patch) ** 2 <= row.tokens
    assert lines[1].startswith(f"model=auto: {row.backbone}, width {row.width}, {row.num_blocks} blocks")
    assert lines[1].endswith(f"{side} x {side} x 3, {images:,} images, {device}")
    assert settings.values["dataset"]["size"] == side
    assert not any(of_kind(settings.values[group], AUTO) for group in ("model", "stage"))
    for stage in ("teacher", "guidance", "progressive"):
        training = build_method(settings.stage[stage]).training
        assert training.images // training.batch_size > 300
        assert training.warmup_images < training.images / 10
    build_plan(settings.stage["evaluate"], settings.trainer)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", SIDES)
def test_a_chain_takes_less_than_an_hour_on_two_cores(side: int, channels: int) -> None:
    """At the measured rate of operations: the teacher's, the guided student's and the method's share of the hour."""
    facts = facts_of(channels, side, side)
    settings, _ = fitted_to(composed(), facts, 60_000)
    budgets = budgets_of(facts.shape, 60_000, "cpu")
    made, one = build_network(settings.of_stage("teacher"), facts), torch.zeros(1)
    with FlopCounterMode(display=False) as operations, torch.no_grad():
        made(torch.zeros(1, *facts.shape), one, one.long())
    spent = COST["teacher"] * budgets.teacher + COST["guidance"] * budgets.guidance + budgets.method
    assert 0 < operations.get_total_flops() * spent / RATE < 0.85 * HOUR


def test_latents_of_more_numbers_than_digits_have_a_larger_network() -> None:
    assert choose((4, 4, 4), 900, "cpu").title == choose((1, 8, 8), 900, "cpu").title == "mlp, width 256, 4 blocks"
    assert choose((4, 7, 7), 900, "cpu").title == choose((3, 8, 8), 900, "cpu").title == "mlp, width 512, 6 blocks"


def test_the_table_answers_for_all_data() -> None:
    for device in ("cpu", "gpu"):
        assert TABLE[[row.device for row in TABLE].index(device)].side <= row_of((3, 1000, 900), 10**9, device).side
    assert patch_of((3, 28, 20), 64) is None  # not square
    assert patch_of((3, 29, 29), 64) is None  # one token
    settings, lines = fitted_to(composed(), facts_of(3, 28, 20), 900)
    assert "unet, width 16" in lines[1]
    assert network(settings, facts_of(3, 28, 20)).network.arguments["channels"] == [16, 32, 64]
    _, lines = fitted_to(composed(), facts_of(3, 50, 50), 900)  # of which no level halves twice
    assert "dit, width 128, 4 blocks, patch 10" in lines[1]
    with pytest.raises(ValueError, match=r"model=auto has no network for images of 29 x 29 .* multiple of 4"):
        fitted_to(composed(), facts_of(1, 29, 29), 900)


def test_a_small_data_set_has_a_short_teacher_and_dropout() -> None:
    few, many = (fitted_to(composed(), facts_of(3, 32, 32), images)[0] for images in (100, 60_000))
    teachers = [each.stage["teacher"]["training"] for each in (few, many)]
    assert teachers[0]["images"] == 50_000 < teachers[1]["images"]
    assert teachers[0]["batch_size"] == 32 < teachers[1]["batch_size"]
    assert [each.values["model"]["network"]["dropout"] for each in (few, many)] == [0.1, 0.0]
    assert few.stage["progressive"] == many.stage["progressive"]


def test_what_is_given_stays() -> None:
    given = (
        "model.network.backbone=dit",
        "model.network.width=96",
        "stage.teacher.training.images=7000",
        "stage.evaluate.num_images=9",
        "budget=50000",
    )
    settings, lines = fitted_to(composed(*given, "dataset.size=28"), facts_of(1, 28, 28), 6000)
    config = settings.values["model"]["network"]["config"]
    assert (config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]) == (96, 4)
    assert settings.stage["teacher"]["training"]["images"] == 7000
    assert settings.stage["evaluate"]["num_images"] == 9
    assert settings.stage["progressive"]["training"]["evaluations"] == 50_000
    assert not any("teacher" in line for line in lines)
    other, _ = fitted_to(composed(), facts_of(1, 28, 28), 6000)
    assert other.values["model"]["network"]["channels"] == [16, 32, 64]


def test_a_smaller_student_is_said_in_the_same_words() -> None:
    narrow = composed(
        "model.network.backbone=dit",
        "stage.guidance.student=${model.smaller.narrow}",
        "stage.progressive.student={num_blocks:2}",
    )
    stages = fitted_to(narrow, facts_of(1, 28, 28), 6000)[0].stage
    assert stages["guidance"]["student"]["config"]["num_attention_heads"] == 4
    assert stages["guidance"]["student"]["config"]["attention_head_dim"] == 16
    assert stages["progressive"]["student"]["config"]["num_layers"] == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.network.width=abc", r"model\.network\.width must be a whole number"),
        ("model.network.width=0", "width, num_blocks and patch_size of at least 1"),
        ("model.network.width=100", r"multiple of 8, got width=100"),
        ("model.network.backbone=gan", r"model\.network\.backbone must be one of mlp, dit, unet"),
        ("+model.network.depth=3", r"model\.network\.depth is no setting"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted_to(composed(setting), facts_of(1, 28, 28), 6000)


def test_prompts_have_networks_of_their_own() -> None:
    text = DataFacts("text", (3, 32, 32), 0, -1.0, 1.0, text=TextFacts(4, 8, "0", "nowhere"))
    with pytest.raises(ValueError, match="model=auto is for data with classes"):
        fitted_to(composed(), text, 6000)


def test_settings_without_auto_need_no_data() -> None:
    settings = Settings.read(config_of("dataset=cifar10", "dataset.root=nowhere"))
    assert fitted(settings) == (settings, [])


@pytest.mark.parametrize("method", ["tract", "dmd2", "ect"])
def test_every_method_has_the_same_budget_in_evaluations(method: str) -> None:
    settings, lines = fitted_to(composed(f"method={method}"), facts_of(1, 28, 28), 6000)
    assert settings.stage[method]["training"]["evaluations"] == budgets_of((1, 28, 28), 6000, "cpu").method
    assert f"{method} " in lines[2]
    alone, _ = fitted_to(composed(f"stage={method}"), facts_of(1, 28, 28), 6000)
    assert alone.stage == settings.stage[method]


def test_any_data_may_have_these_recipes() -> None:
    """As a plan proposes it."""
    settings = Settings.read(config_of("dataset=cifar10", "model=auto", "recipe=imagefolder_${stage}"))
    found, _ = fitted_to(settings, DataFacts("cifar10", (3, 32, 32), 10, -1.0, 1.0), 50_000)
    assert found.stage["teacher"]["training"]["images"] == budgets_of((3, 32, 32), 50_000, "cpu").teacher
