"""`fewstep upscale`: images of any size by a model of small squares."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import Commands

import fewstep
from fewstep.artifacts.model_file import ModelCard, save_model
from fewstep.data.degradation import enlarge
from fewstep.data.facts import DataFacts, DegradedFacts
from fewstep.diffusion.prediction import Prediction, interpret
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.inference.super_resolution import Tiled, tile_starts
from fewstep.networks import Denoiser, network_class

pytest_plugins = ("running",)
TILE, SCALE = 8, 2


def save(path: Path, sampling: Sampling, **facts) -> Path:
    """A model that has learned nothing, of squares of TILE pixels."""
    torch.manual_seed(0)
    classes = facts.get("num_classes", 0)
    unet = network_class("UNet")(
        shape=(3, TILE, TILE),
        num_classes=classes,
        image_condition=not classes,
        channels=[8, 8],
        num_blocks=1,
        attention=[False, False],
        head_dim=8,
        norm_groups=4,
    )
    data = DataFacts("patches_sr", (3, TILE, TILE), **{"num_classes": 0, "low": -1.0, "high": 1.0} | facts)
    card = ModelCard(
        method="m", data=data, prediction="v", schedule=CosineSchedule(), sampling=sampling, images=1, parents=()
    )
    save_model(path, Denoiser(unet), card)
    return path


@pytest.fixture
def student(tmp_path: Path) -> Path:
    sampling = Sampling("restore", (0.25,), "none")
    return save(tmp_path / "student.safetensors", sampling, degraded=DegradedFacts(SCALE))


def photograph(path: Path, mode: str = "RGB", size: tuple[int, int] = (13, 7)) -> Path:
    bands = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(0).integers(256, size=(size[1], size[0], *bands), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("side", [8, 9, 12, 13, 31, 32])
def test_tiles_cover_all_pixels_and_overlap_by_half(side: int) -> None:
    starts = tile_starts(side, TILE)
    assert (starts[0], starts[-1]) == (0, side - TILE)
    assert all(0 < later - earlier <= TILE // 2 for earlier, later in pairwise(starts))


def test_a_tiled_denoiser_of_single_pixels_is_that_of_the_whole_image() -> None:
    """And one of tiles' means is not: each pixel sees the tiles that it lies in."""
    z, low = torch.randn(2, 2, 3, 13, 21)
    log_snr = torch.tensor([0.5, -1.0])

    def by_pixel(z, log_snr, label, w):
        return interpret("x", z * log_snr[:, None, None, None] + label.square(), z=z, log_snr=log_snr)

    def by_tile(z, log_snr, label, w):
        return Prediction(z=z, v=label.mean((1, 2, 3), keepdim=True).expand_as(z), log_snr=log_snr)

    tiled = Tiled(by_pixel, TILE)(z, log_snr, low, None)
    torch.testing.assert_close(tiled.v, by_pixel(z, log_snr, low, None).v)
    blended = Tiled(by_tile, TILE)(z, log_snr, low, None).v
    torch.testing.assert_close(blended[..., 0, 0], low[..., :TILE, :TILE].mean((1, 2, 3))[:, None].expand(2, 3))
    assert not torch.allclose(blended[..., 0, 0], blended[..., -1, -1], atol=0.01)
    one = z[..., :TILE, :TILE]
    torch.testing.assert_close(Tiled(by_tile, TILE)(one, log_snr, one, None).v, by_tile(one, log_snr, one, None).v)


def test_one_tile_is_the_models_own_sample_and_any_size_is_enlarged(student: Path) -> None:
    model = fewstep.load(student)
    small = torch.rand(2, 3, TILE // SCALE, TILE // SCALE) * 2 - 1
    torch.testing.assert_close(fewstep.upscale(model, small), model.sample(enlarge(small, SCALE)))
    for height, width in ((1, 1), (3, 40), (17, 5)):
        x = fewstep.upscale(model, torch.rand(1, 3, height, width) * 2 - 1)
        assert x.shape == (1, 3, SCALE * height, SCALE * width)
        assert bool(torch.isfinite(x).all())


def test_a_model_of_many_steps_begins_at_the_seeds_noise(tmp_path: Path) -> None:
    model = fewstep.load(save(tmp_path / "t.safetensors", Sampling(guidance="none"), degraded=DegradedFacts(SCALE)))
    small = torch.rand(1, 3, 6, 9) * 2 - 1
    one, again, other = (fewstep.upscale(model, small, steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.usefixtures("as_users_run")
def test_the_command_writes_an_image_of_the_size(commands: Commands, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "large.png"
    for mode, warning in (("RGB", ""), ("L", ""), ("RGBA", "small.png: transparent on white")):
        result = commands.fewstep("upscale", student, photograph(tmp_path / "small.png", mode), "--out", out)
        assert result.status == 0, result
        assert "13 x 7 to 26 x 14, 1 evaluation(s) of each tile" in result.out
        assert warning in result.err
        with Image.open(out) as image:
            assert (image.size, image.mode) == ((26, 14), "RGB")


@pytest.mark.usefixtures("as_users_run")
def test_errors_are_one_line(commands: Commands, student: Path, tmp_path: Path) -> None:
    good, out = photograph(tmp_path / "good.png"), tmp_path / "out.png"
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    classes = save(tmp_path / "classes.safetensors", Sampling(), num_classes=2)
    for arguments, words in (
        ((student, bad, "--out", out), ["bad.png", "no image that can be read whole"]),
        ((student, tmp_path / "none.png", "--out", out), ["none at", "none.png"]),
        ((student, good, "--out", tmp_path / "out.jpg"), ["--out must end in .png or .npz"]),
        ((student, good, "--out", out, "--steps", "2"), ["made for 1 step, got 2"]),
        ((classes, good, "--out", out), ["upscale needs a model that restores", "dataset=patches_sr"]),
        ((good, good, "--out", out), ["safetensors"]),
    ):
        commands.fewstep("upscale", *arguments).is_one_error(*words)
    assert not out.exists()
    commands.fewstep("sample", student, "--out", out).is_one_error("fewstep upscale MODEL")
    commands.fewstep("edit", student, good, "--out", out).is_one_error("fewstep upscale MODEL")


@pytest.mark.usefixtures("as_users_run")
def test_a_chain_whose_stage_has_no_parent_is_refused_before_it_trains(commands: Commands, tmp_path: Path) -> None:
    settings = ("dataset=patches_sr", "trainer=debug", "logger=csv", f"outputs={tmp_path}")
    commands.train(*settings).is_one_error("stage=guidance needs a teacher", "[teacher,flow_trajectory,evaluate]")
    commands.train(*settings, "stage=dmd2").is_one_error("this stage needs a guided student")
    assert not list(tmp_path.glob("**/*.safetensors"))


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_run")
def test_a_pipeline_of_super_resolution_is_judged_by_its_originals(commands: Commands, tmp_path: Path) -> None:
    stages = "stage.stages=[teacher,flow_trajectory,evaluate]"
    settings = ("dataset=patches_sr", "method=flow_trajectory", stages, "trainer=debug", "logger=csv")
    result = commands.train(*settings, f"outputs={tmp_path}")
    assert result.status == 0, result
    (quality,) = tmp_path.glob("patches_sr/pipeline/*/quality.json")
    rows = {(row["model"], row["sampler"], row["steps"]): row for row in json.loads(quality.read_text())}
    own = rows["flow_trajectory", "restore", 1]
    assert rows.keys() >= {("teacher", "ddim", 1)}
    for figure in ("psnr", "ssim", "feature_distance"):
        low, high = own["intervals"][figure]
        assert low <= own[figure] <= high
    assert own["accuracy"] is None  # there are no classes
