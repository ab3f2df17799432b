"""The recipes are what was published: budgets in updates, ladders, ranges; and what trainer=debug makes of them."""

from typing import Any, cast

import pytest
from omegaconf import DictConfig, OmegaConf
from running import TINY, config_of

from fewstep.methods import Guidance, Progressive, Teacher
from fewstep.runs.config import TOY_STEPS, Settings, as_toy
from fewstep.runs.pipeline import run

HALVINGS = [1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1]
pytest_plugins = ("running",)
PIXELS = {"cifar10": 128, "imagenet64": 2048}  # batch sizes
LATENTS = ("latents", "text")


def stage_of(dataset: str, stage: str):
    return config_of(f"dataset={dataset}", f"stage={stage}").stage


@pytest.mark.parametrize(
    ("dataset", "updates", "learning_rate", "dropout"),
    [("cifar10", 2_000_000, 2e-4, 0.2), ("imagenet64", 400_000, 3e-4, 0.1)],
)
def test_pixel_teachers(dataset: str, updates: int, learning_rate: float, dropout: float) -> None:
    stage = stage_of(dataset, "teacher")
    training = stage.training
    assert stage.label_dropout == 0.1
    assert (training.images, training.batch_size) == (updates * PIXELS[dataset], PIXELS[dataset])
    assert (training.learning_rate, training.ema_decay, training.gradient_clip) == (learning_rate, 0.9999, 1.0)
    assert training.warmup_images == 1000 * PIXELS[dataset]
    assert training.weight == "truncated_snr"
    assert config_of(f"dataset={dataset}").model.network.config.dropout == dropout


@pytest.mark.parametrize(("dataset", "learning_rate"), [("cifar10", 1e-3), ("imagenet64", 3e-4)])
def test_stage_one_of_pixels(dataset: str, learning_rate: float) -> None:
    stage = stage_of(dataset, "guidance")
    assert (stage.w_min, stage.w_max, stage.w_draw) == (0, 4, "uniform")
    assert (stage.training.learning_rate, stage.training.ema_decay) == (learning_rate, 0.9999)
    assert (stage.training.batch_size, stage.training.weight) == (PIXELS[dataset], "snr")


@pytest.mark.parametrize(("dataset", "learning_rate"), [("cifar10", 5e-5), ("imagenet64", 1e-4)])
def test_stage_two_of_pixels(dataset: str, learning_rate: float) -> None:
    """50,000 updates a halving, 100,000 at 2 and at 1 step."""
    stage = stage_of(dataset, "progressive")
    training = stage.training
    assert list(stage.ladder) == HALVINGS
    assert (training.images, training.batch_size) == (50_000 * PIXELS[dataset], PIXELS[dataset])
    assert (stage.few_steps, stage.few_steps_factor) == (2, 2)
    assert (training.learning_rate, training.ema_decay, training.warmup_images) == (learning_rate, 0, 0)
    assert training.weight == "truncated_snr"


@pytest.mark.parametrize(("dataset", "w_min"), [("latents", 0), ("text", 2)])
def test_latents(dataset: str, w_min: float) -> None:
    """From 512 steps, 2,000 updates a halving down to 8 steps and 20,000 at 4, 2 and 1."""
    guidance, progressive = stage_of(dataset, "guidance"), stage_of(dataset, "progressive")
    assert (guidance.w_min, guidance.w_max, guidance.training.weight) == (w_min, 14, "snr_plus_one")
    assert list(progressive.ladder) == HALVINGS[1:]
    training = progressive.training
    assert training.images == 2000 * training.batch_size
    assert (progressive.few_steps, progressive.few_steps_factor, training.ema_decay) == (4, 10, 0)


def test_text_models_have_stable_diffusions_clock() -> None:
    assert config_of("dataset=text").model.native_schedule.kind == "scaled_linear"
    assert "native_schedule" not in config_of("dataset=latents").model


@pytest.mark.parametrize("dataset", [*PIXELS, *LATENTS])
def test_a_toy_is_small_and_nothing_else_changes(dataset: str) -> None:
    before = plain(config_of(f"dataset={dataset}", "trainer=debug"))
    toy = as_toy(before)
    assert toy["trainer"]["max_images"] == before["model"]["toy"]["max_images"] < before["trainer"]["max_images"]
    network, real = toy["model"]["network"]["config"], before["model"]["network"]["config"]
    assert max(network["block_out_channels"]) <= 16
    assert set(network) == set(real)
    stage, real_stage = toy["stage"], before["stage"]
    assert stage["progressive"]["ladder"] == [8, 4, 2, 1]
    grid = stage["evaluate"]
    assert max(*grid["teacher_steps"], *grid["guided_steps"]) == TOY_STEPS
    assert grid["w"] == [real_stage["evaluate"]["w"][0], real_stage["evaluate"]["w"][-1]]
    for name in ("teacher", "guidance", "progressive"):
        assert stage[name]["training"] == real_stage[name]["training"]
    changed = ("model", "stage", "trainer")
    assert {key: toy[key] for key in toy if key not in changed} == {
        key: before[key] for key in before if key not in changed
    }


def plain(config: DictConfig) -> dict[str, Any]:
    """Composed settings as plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


@pytest.mark.parametrize(
    ("given", "expected"),
    [([32, 16, 8, 4], [8, 4]), ([4, 2, 1], [4, 2, 1]), ([64, 32], [64, 32]), ([16, 8], [16, 8])],
)
def test_a_toys_ladder_is_never_cut_below_one_rung(given: list[int], expected: list[int]) -> None:
    settings = Settings.read(config_of("stage=progressive", f"stage.ladder={given}", "trainer=debug"))
    assert settings.stage["ladder"] == expected
    assert settings.trainer.max_images == 1024  # of digits, whose network has no toy variant


@pytest.mark.usefixtures("as_users_run")
def test_only_teachers_train_with_dropout(tmp_path, monkeypatch) -> None:
    """In students it would blur what they copy; Lightning must leave the mode as the method has it."""
    modes: dict[str, set[bool]] = {}
    for method in (Teacher, Guidance, Progressive):

        def recorded(self, batch, nets, draws, *, losses=method.losses, step, phase):
            modes.setdefault(self.name, set()).add(nets.student.network.training)
            return losses(self, batch, nets, draws, step=step, phase=phase)

        monkeypatch.setattr(method, "losses", recorded)
    grid = ("evaluate.num_images=20", "evaluate.w=[0]", "evaluate.teacher_steps=[2]", "evaluate.guided_steps=[2]")
    small = ("trainer.max_images=64", "stage.progressive.ladder=[2,1]", *(f"stage.{setting}" for setting in grid))
    run(Settings.read(config_of(*TINY, *small, "model.network.dropout=0.5", f"outputs={tmp_path}")))
    assert modes == {"teacher": {True}, "guidance": {False}, "progressive": {False}}
