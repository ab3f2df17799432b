"""fewstep check finds what is known: of exact networks, of wrongly labelled ones, of ones without a working null."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exact import ExactNetwork, schedule_of
from running import Commands, make_chain, run_as_composed
from test_diffusers_folders import unet2d, write

from fewstep.artifacts.model_file import load_model, save_model
from fewstep.diffusion.betas import BetaSchedule
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import KINDS, PredictionKind
from fewstep.networks import Denoiser, Frozen
from fewstep.teachers.checking import Findings, examine

pytest_plugins = ("running",)
LINEAR = BetaSchedule("linear", beta_start=1e-4, beta_end=0.02)


def found_of(
    mixture: GaussianMixture,
    is_really: PredictionKind,
    says: PredictionKind,
    native_schedule: BetaSchedule | None = None,
    null_is: int | None = None,
    has_null: bool = True,
) -> Findings:
    teacher = Frozen(Denoiser(ExactNetwork(mixture, is_really, native_schedule, null_is), says, native_schedule))
    label = torch.arange(300) % mixture.num_classes
    x = mixture.draw(label, torch.Generator().manual_seed(0))
    return examine(teacher, x, label, schedule=schedule_of(native_schedule), has_null=has_null)


@pytest.mark.parametrize("native_schedule", [None, BetaSchedule(), LINEAR], ids=["ours", "stable diffusion", "linear"])
@pytest.mark.parametrize("says", KINDS)
@pytest.mark.parametrize("is_really", KINDS)
def test_the_reading_that_denoises_is_found(
    make_mixture: Callable[..., GaussianMixture],
    is_really: PredictionKind,
    says: PredictionKind,
    native_schedule: BetaSchedule | None,
) -> None:
    mixture = make_mixture(dim=4)
    found = found_of(mixture, is_really, says, native_schedule)
    assert (found.reads_as, found.says) == (is_really, says)
    assert found.denoises
    assert found.null_works
    assert found.worse[is_really] == 1
    assert all(found.worse[kind] > 1.3 for kind in KINDS if kind != is_really)
    assert bool(found.problems) == (is_really != says)
    if found.problems:
        assert found.problems[0].startswith(f"it denoises as {is_really} and says {says}, ")
    for level in found.levels:  # the exact denoiser's error is the least there can be
        assert level.readings[is_really] < 1.1 * level.linear
        assert min(level.readings.values()) == level.readings[is_really]


def test_the_factors_are_those_of_errors_in_any_space(make_mixture: Callable[..., GaussianMixture]) -> None:
    """By hand, at one level: an eps network read as v errs by (its output - v) sigma, and so on."""
    mixture = make_mixture()
    found = found_of(mixture, "eps", "eps")
    assert [level.log_snr for level in found.levels] == sorted((level.log_snr for level in found.levels), reverse=True)
    ratios = [level.readings["v"] / level.readings["eps"] for level in found.levels]
    assert found.worse["v"] == pytest.approx(torch.tensor(ratios).log().mean().exp().item(), rel=1e-5)


def test_where_the_schedule_ends(make_mixture: Callable[..., GaussianMixture]) -> None:
    mixture = make_mixture()
    assert found_of(mixture, "v", "v").has_zero_terminal_snr
    assert found_of(mixture, "v", "v", BetaSchedule(rescale_zero_snr=True)).has_zero_terminal_snr
    diffusion = found_of(mixture, "eps", "eps", BetaSchedule())
    assert not diffusion.has_zero_terminal_snr
    assert diffusion.terminal_alpha == pytest.approx(0.0683, abs=1e-3)
    assert not diffusion.problems  # it can be distilled, and the output says how
    steep = BetaSchedule("linear", beta_start=1e-3, beta_end=0.01, num_timesteps=200)
    levels = found_of(mixture, "eps", "eps", steep).levels
    assert min(level.log_snr for level in levels) > steep.lowest_log_snr


def test_a_schedule_of_hardly_any_noise_is_refused(make_mixture: Callable[..., GaussianMixture]) -> None:
    with pytest.raises(ValueError, match="must reach a log-SNR of 6 to be checked, and this one ends at"):
        found_of(make_mixture(), "eps", "eps", BetaSchedule("linear", 1e-5, 1e-5, num_timesteps=10))


def test_a_null_that_does_not_work_is_found(make_mixture: Callable[..., GaussianMixture]) -> None:
    mixture = make_mixture(num_classes=3)
    well_apart = GaussianMixture(mixture.means * 3, mixture.stds / 4, mixture.weights, mixture.classes)
    good = found_of(well_apart, "v", "v")
    assert good.null_works
    like_a_class = found_of(well_apart, "v", "v", null_is=0)
    assert like_a_class.null_quality is not None
    assert good.null_quality is not None
    assert like_a_class.null_quality > 1 > good.null_quality
    assert like_a_class.problems == ["its null condition does not work: train it with labels dropped"]
    absent = found_of(well_apart, "v", "v", has_null=False)
    assert (absent.null_works, absent.null_quality) == (False, None)
    assert absent.problems == ["it has no null condition, which guidance needs"]
    one = GaussianMixture(mixture.means, mixture.stds, mixture.weights, torch.zeros_like(mixture.classes))
    same = found_of(one, "v", "v")  # of one class: with it or without is the same
    assert same.null_difference == pytest.approx(0, abs=1e-6)
    assert not same.null_works


def test_what_was_not_trained_does_not_denoise(make_mixture: Callable[..., GaussianMixture]) -> None:
    mixture = make_mixture()
    network = ExactNetwork(mixture, "v")
    network.mixture = make_mixture(seed=5)
    label = torch.arange(300) % 3
    x = 4 * mixture.draw(label, torch.Generator().manual_seed(0))  # data in another range
    found = examine(Frozen(Denoiser(network)), x, label, schedule=schedule_of(None), has_null=True)
    assert not found.denoises
    assert "no reading denoises" in found.problems[0]


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, as_users_run: None) -> dict[str, Path]:
    """A teacher of the digits, trained for a second, and the same one that says eps."""
    from running import TINY

    outputs = tmp_path_factory.mktemp("outputs")
    settings = ("trainer.max_images=20000", "stage.training.batch_size=64", "stage.training.warmup_images=0")
    run_as_composed("stage=teacher", *TINY, *settings, "stage.training.learning_rate=3.0e-3", f"outputs={outputs}")
    (file,) = outputs.glob("digits/teacher/*/model.safetensors")
    denoiser, card = load_model(file)
    denoiser.prediction = "eps"
    from dataclasses import replace

    save_model(outputs / "mislabelled.safetensors", denoiser, replace(card, prediction="eps"))
    return {"good": file, "mislabelled": outputs / "mislabelled.safetensors"}


def test_a_trained_teacher_passes(commands: Commands, teacher: dict[str, Path]) -> None:
    shown = commands.fewstep("check", teacher["good"])
    assert shown.status == 0, shown
    assert "denoises as v, as it says; worse are x " in shown.out
    assert "null condition: works" in shown.out
    assert "schedule: ends with zero SNR" in shown.out
    figures = json.loads(commands.fewstep("check", teacher["good"], "--json", "--num", "64").out)
    assert figures["reads_as"] == "v"
    assert figures["worse"]["eps"] > 1.5
    assert figures["problems"] == []


def test_a_mislabelled_teacher_is_refused_after_its_table(commands: Commands, teacher: dict[str, Path]) -> None:
    result = commands.fewstep("check", teacher["mislabelled"])
    result.is_one_error("mislabelled.safetensors", "denoises as v and says eps", "times worse")
    assert "without condition" in result.out


def test_a_foreign_folder_is_checked_without_being_written(commands: Commands, tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    folder = tmp_path / "folder"
    own = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
    write(UNet2DModel(8, 1, 1, block_out_channels=(8,), layers_per_block=1, num_class_embeds=10, **own), folder)
    result = commands.fewstep("check", folder, "--dataset", "digits", "--num", "32")
    result.is_one_error("no reading denoises", "no null condition")
    assert "none (it is called only with a class)" in result.out
    assert "alpha = 0.00635" in result.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing.safetensors",), ["nothing.safetensors"]),
        (("FOLDER",), ["--dataset NAME"]),
        (("FOLDER", "--dataset", "digits"), ["makes 3 channels of size 8", "digits has (1, 8, 8)"]),
        (("FOLDER", "--dataset", "digits", "size"), ["KEY=VALUE", "'size'"]),
        (("FOLDER", "--num", "3"), ["--num must be at least 16"]),
        (("GOOD", "--dataset", "mixture"), ["makes digits", "mixture is (2,)"]),
    ],
)
def test_requests_that_cannot_be_met(
    commands: Commands, teacher: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...], words: list[str]
) -> None:
    write(unet2d(), tmp_path / "folder")
    names = {"FOLDER": str(tmp_path / "folder"), "GOOD": str(teacher["good"])}
    commands.fewstep("check", *(names.get(a, a) for a in arguments)).is_one_error(*words)


def test_students_are_not_checked(commands: Commands, tmp_path: Path) -> None:
    guided = make_chain(tmp_path)["guided"]
    commands.fewstep("check", guided).is_one_error("is a guided model", "fewstep evaluate")
