"""What a plan proposes where its command does not fit."""

from pathlib import Path

import pytest
from running import Commands, config_of

from fewstep.data.generate import generate_imagefolder
from fewstep.estimate import plan
from fewstep.estimate.proposal import LONGEST, fits, lighter, scaled, two_digits
from fewstep.estimate.table import Estimate, Row
from fewstep.estimate.trial import Trial
from fewstep.runs.config import Settings

pytest_plugins = ("running",)
DAYS = 86400.0


def estimate_of(seconds: float, memory: int = 1) -> Estimate:
    row = Row("teacher", "measured", memory=memory, device_memory=0, seconds=seconds)
    return Estimate("", 1, (row,), free_memory=100, free_device_memory=0, free_disk=100, outputs=Path(), notes=())


def test_what_fits() -> None:
    assert fits(estimate_of(LONGEST["cpu"]), "cpu")
    assert not fits(estimate_of(LONGEST["cpu"] + 1), "cpu")
    assert fits(estimate_of(DAYS), "gpu")
    assert not fits(estimate_of(1.0, memory=101), "cpu")


def test_the_network_and_the_recipe_are_replaced() -> None:
    typed = ["dataset=cifar10", "model=unet", "model.network.width=3", "plan=true", "recipe=x", "seed=2"]
    assert lighter(typed) == ["dataset=cifar10", "seed=2", "model=auto", "recipe=imagefolder_${stage}"]


def test_budgets_are_scaled_to_what_fits() -> None:
    settings = Settings.read(config_of())
    found = scaled(["dataset=digits", "stage.teacher.training.images=7"], settings, estimate_of(10 * LONGEST["cpu"]))
    assert found is not None
    assert found.seconds == pytest.approx(LONGEST["cpu"])
    budgets = {"teacher": "60000", "guidance": "100000", "progressive": "20000"}
    expected = [f"stage.{stage}.training.images={images}" for stage, images in budgets.items()]
    assert list(found.arguments) == ["dataset=digits", *expected, "stage.evaluate.num_images=200"]
    assert found.line.startswith("this would fit: python train.py dataset=digits stage.teacher.training.images=60000 ")
    alone = scaled([], Settings.read(config_of("stage=tract", "budget=1000000")), estimate_of(2 * LONGEST["cpu"]))
    assert alone is not None
    assert alone.arguments == ("budget=500000",)
    assert scaled([], settings, estimate_of(1000 * LONGEST["cpu"])) is None  # nothing would be left
    assert scaled([], settings, estimate_of(1.0, memory=101)) is None  # it is the memory


@pytest.mark.parametrize(("number", "expected"), [(0.3, 1), (7, 7), (99.9, 99), (12_345, 12_000), (999_999, 990_000)])
def test_numbers_are_round_and_not_larger(number: float, expected: int) -> None:
    assert two_digits(number) == expected


def test_a_plan_ends_with_the_command_that_would_fit(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was planned before: 296 million parameters for a folder of small images."""
    generate_imagefolder(tmp_path / "images", per_class=20)
    tried = lambda job, build, found, *_: Trial("measured", found.parameters / 1e7, 0.0, 1, 0)  # noqa: E731
    monkeypatch.setattr(plan, "try_phase", tried)
    monkeypatch.setattr(plan, "seconds_per_judged_image", lambda *_: 0.0)
    monkeypatch.setattr(plan, "seconds_of_features", lambda *_: 0.0)
    given = ("dataset=imagefolder", f"dataset.root={tmp_path / 'images'}", f"outputs={tmp_path / 'o'}", "stage=teacher")
    large = commands.train(*given, "dataset.size=16", "model=imagenet64", "plan=true", "logger=csv")
    assert large.status == 0, large.err
    line = large.out.strip().splitlines()[-1]
    assert line.startswith("this would fit: python train.py dataset=imagefolder")
    assert "model=auto" in line
    assert "imagenet64" not in line
    fitting = commands.train(*given, "dataset.size=16", "plan=true", "logger=csv")
    assert "this would fit" not in fitting.out
    assert "model=auto: mlp, width 512, 6 blocks: 16 x 16 x 3, 72 images, cpu" in fitting.out
