"""The tasks of a latent model of classes and of a latent model of text, with tiny random companions."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from fewstep.artifacts.model_file import ModelCard, save_model
from fewstep.data.facts import DataFacts
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedule import CosineSchedule
from fewstep.networks import Denoiser, ResidualMLP, TextUNet
from fewstep.networks.frozen.autoencoder import Autoencoder, write_tiny_autoencoder
from fewstep.networks.frozen.text_encoder import TextEncoder, write_tiny_text_encoder

pytest_plugins = ("running",)
pytestmark = pytest.mark.usefixtures("as_users_run")
UNET = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


class Files(NamedTuple):
    model: Path
    encoder: Path
    images: Path
    condition: tuple[str, str]  # two classes or prompts of this model


@pytest.fixture(scope="module", params=["classes", "text"])
def files(request, tmp_path_factory) -> Files:
    """A student of two steps and its encoder, on latents (4, 4, 4) of RGB images of 16 x 16."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tiny_autoencoder(folder / "vae", downsampling=4)
    write_tiny_text_encoder(folder, features=16, tokens=32)
    latent, text = Autoencoder.open(folder / "vae").facts((3, 16, 16)), TextEncoder.open(folder).facts()
    if request.param == "text":
        network = TextUNet(
            shape=[4, 4, 4],
            tokens=text.tokens,
            features=text.features,
            config=UNET,
            guidance_dim=8,
            guidance_input=True,
        )
        facts = DataFacts("scenes", (4, 4, 4), 0, -1000.0, 1000.0, latent, text)
    else:
        network = ResidualMLP(
            shape=[4, 4, 4], num_classes=3, width=32, num_blocks=1, embedding_dim=8, guidance_input=True
        )
        facts = DataFacts("scenes", (4, 4, 4), 3, -1000.0, 1000.0, latent)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    for method, direction in (("progressive", "decode"), ("encoder", "encode")):
        card = ModelCard(
            method=method,
            data=facts,
            prediction="v",
            schedule=CosineSchedule(),
            sampling=Sampling.uniform(2, guidance="input", direction=direction),
            w_min=0.0,
            w_max=4.0,
            images=0,
            parents=(),
        )
        save_model(folder / f"{method}-2.safetensors", Denoiser(network.eval()), card)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels)
    names = ("a red barn", "snow") if request.param == "text" else ("1", "2")
    return Files(folder / "progressive-2.safetensors", folder / "encoder-2.safetensors", folder / "images.npz", names)


def images_in(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["images"]


def made(commands, tmp_path: Path, *arguments: str | Path) -> np.ndarray:
    result = commands.fewstep(*arguments, "--out", tmp_path / "out.npz")
    assert (result.status, result.err) == (0, ""), result
    images = images_in(tmp_path / "out.npz")
    assert (images.dtype, images.shape[1:]) == (np.uint8, (16, 16, 3))
    return images


def as_option(files: Files, name: str) -> tuple[str, str]:
    return ("--label" if name.isdigit() else "--prompt"), name


def test_edit(commands, files, tmp_path):
    condition = as_option(files, files.condition[0])
    other = as_option(files, files.condition[1])
    half = made(commands, tmp_path, "edit", files.model, files.images, *condition)
    assert not np.array_equal(half, made(commands, tmp_path, "edit", files.model, files.images, *other))
    everything = made(commands, tmp_path, "edit", files.model, files.images, *condition, "--strength", "1")
    model = fewstep.load(files.model)
    name = files.condition[0]
    sampled = model.sample([int(name) if name.isdigit() else name] * 3, steps=2)
    assert np.array_equal(everything, np.rint((sampled.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8))
    kept = made(commands, tmp_path, "edit", files.model, files.images, *condition, "--strength", "0")
    assert np.array_equal(kept, images_in(files.images)), "not even decoded"


def test_inpaint_returns_known_pixels_exactly_through_the_autoencoder(commands, files, tmp_path):
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[5:9, 3:6] = 255  # across cells of latents
    Image.fromarray(mask).save(tmp_path / "mask.png")
    condition = as_option(files, files.condition[0])
    filled = made(commands, tmp_path, "inpaint", files.model, files.images, "--mask", tmp_path / "mask.png", *condition)
    given = images_in(files.images)
    assert np.array_equal(filled[:, mask == 0], given[:, mask == 0])
    assert not np.array_equal(filled[:, mask > 0], given[:, mask > 0])


def test_a_latent_is_missing_if_a_pixel_under_it_is(files):
    from fewstep.inference.tasks import _missing_of

    missing = torch.zeros(1, 3, 16, 16, dtype=torch.bool)
    missing[0, 1, 5, 3] = True
    expected = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    expected[0, 0, 1, 0] = True
    assert torch.equal(_missing_of(fewstep.load(files.model), missing), expected)


def test_transfer_and_interpolate(commands, files, tmp_path):
    first, second = files.condition
    encoder = ("--encoder", files.encoder)
    there = made(commands, tmp_path, "transfer", files.model, files.images, "--from", first, "--to", second, *encoder)
    cycle = made(commands, tmp_path, "transfer", files.model, files.images, "--from", first, "--to", first, *encoder)
    assert not np.array_equal(there, cycle)
    ways = made(
        commands,
        tmp_path,
        *("interpolate", files.model, files.images, files.images),
        *("--from", first, "--to", second, "--num", "3", *encoder),
    ).reshape(3, 3, 16, 16, 3)
    difference = np.abs(ways[:, 0].astype(int) - cycle)
    assert difference.max() <= 1, "the first end is the cycle"


def test_a_condition_of_another_kind_is_refused(commands, files, tmp_path):
    out = ("--out", tmp_path / "out.png")
    if files.condition[0].isdigit():
        commands.fewstep("edit", files.model, files.images, "--prompt", "a", *out).is_one_error(
            "classes 0..2", "--label"
        )
        commands.fewstep("edit", files.model, files.images, "--label", "3", *out).is_one_error("0..2", "[3]")
        return
    commands.fewstep("edit", files.model, files.images, "--label", "1", *out).is_one_error("--prompt TEXT")
    commands.fewstep("edit", files.model, files.images, *out).is_one_error("--prompt TEXT")
    commands.fewstep("edit", files.model, files.images, "--prompt", " ", *out).is_one_error("prompt")
    commands.fewstep("transfer", files.model, files.images, "--to", "a", *out).is_one_error("--from TEXT")
