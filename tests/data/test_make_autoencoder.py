"""The small autoencoder: its images come back, its latents have variance 1, and its loss is the negative ELBO."""

from math import log, pi
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fewstep.data.digits import DigitsData
from fewstep.data.generate import generate_imagefolder
from fewstep.data.make_autoencoder import KL_WEIGHT, AutoencoderSettings, AutoencoderTraining
from fewstep.evaluation.own_features import OwnFeatures
from fewstep.networks.frozen.autoencoder import Autoencoder, write_tiny_autoencoder
from fewstep.runs.build import data_of

pytest_plugins = ("running",)
STEPS, BATCH = 300, 32


def training(seed: int = 0, **changed: int) -> AutoencoderTraining:
    given = {"channels": 4, "downsampling": 2, "width": 8, "images": STEPS * BATCH, "batch_size": BATCH, "seed": seed}
    data = DigitsData(batch_size=BATCH, stream="0/autoencoder")
    return AutoencoderTraining(data, AutoencoderSettings(**(given | changed)), "cpu")


@pytest.fixture(scope="module")
def trained() -> tuple[AutoencoderTraining, list[float]]:
    made = training()
    return made, [error.item() for error in made.steps()]


def test_images_come_back_from_latents_of_variance_one(trained, tmp_path: Path) -> None:
    made, errors = trained
    assert len(errors) == made.num_steps == STEPS
    made.save(tmp_path / "autoencoder")
    opened = Autoencoder.open(tmp_path / "autoencoder")
    held_out = made.source.reference().x
    assert opened.latent_shape(held_out.shape[1:]) == (4, 4, 4)
    mean, variance = opened.encode(held_out)
    latents = opened.latents(mean + variance.sqrt() * torch.randn_like(mean))
    assert latents.std().item() == pytest.approx(1, abs=0.05)
    error = (opened.decode(latents) - held_out).square().mean()
    assert error < 0.2 * held_out.var()
    assert error == pytest.approx(sum(errors[-10:]) / 10, rel=0.2)  # held-out images as well as those trained on
    assert {path.suffix for path in (tmp_path / "autoencoder").iterdir()} == {".json", ".safetensors"}


def test_the_loss_is_a_negative_evidence_lower_bound() -> None:
    """-log N(x; decoded, s^2) + KL = (D / 2 s^2) loss + a constant, of the decoder's variance in the docstring."""
    made = training()
    x = made.source.batch(0).x
    encoded = made.network.encode(x, return_dict=False)[0]
    loss, decoded = made.loss(x)
    values, latents = x[0].numel(), encoded.mean[0].numel()
    variance = KL_WEIGHT * values / (2 * latents)
    likelihood = Normal(decoded, variance**0.5).log_prob(x).flatten(1).sum(1)
    divergence = kl_divergence(Normal(encoded.mean, encoded.std), Normal(0.0, 1.0)).flatten(1).sum(1)
    constant = values / 2 * log(2 * pi * variance)
    wanted = (divergence - likelihood - constant).mean() * 2 * variance / values
    torch.testing.assert_close(loss, wanted)


def test_the_same_seed_trains_the_same_weights(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = training(seed, images=3 * BATCH)
        list(made.steps())
        digests.append(made.save(tmp_path / name).digest)
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_be_trained_is_refused(trained, tmp_path: Path) -> None:
    for wrong, words in (
        ({"downsampling": 3}, "2, 4, 8 or 16, got 3"),
        ({"width": 12}, "multiple of 8, got 12"),
        ({"channels": 0}, "at least 1 channel"),
        ({"batch_size": 0}, "1 <= batch_size <= images"),
        ({"downsampling": 16}, "must divide the sides of the images, 8 x 8 pixels, got 16"),
    ):
        with pytest.raises(ValueError, match=words):
            training(**wrong)
    (tmp_path / "taken").mkdir()
    with pytest.raises(ValueError, match=r"--out .*taken exists"):
        trained[0].save(tmp_path / "taken")


def test_a_training_that_diverged_is_not_kept(tmp_path: Path) -> None:
    made = training(images=BATCH)
    with torch.no_grad():
        made.network.encoder.conv_in.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="has diverged"):
        made.save(tmp_path / "autoencoder")
    assert not (tmp_path / "autoencoder").exists()


def test_the_command_keeps_a_picture_of_all_classes_and_touches_nothing_else(commands, tmp_path: Path) -> None:
    ask = ("data", "autoencoder", "digits", "--images", 64, "--batch-size", 32, "--downsampling", 2)
    (tmp_path / "made.png").mkdir()  # beside it, of somebody
    made = commands.fewstep(*ask, "--out", tmp_path / "made")
    assert made.status == 0, made
    assert "latents 4 x 4 x 4" in made.out
    assert {path.name for path in tmp_path.iterdir()} == {"made", "made.png"}
    files = {"config.json", "diffusion_pytorch_model.safetensors", "decoded.png"}
    assert {path.name for path in (tmp_path / "made").iterdir()} == files
    assert Autoencoder.open(tmp_path / "made").downsampling == 2
    commands.fewstep(*ask, "--out", tmp_path / "made").is_one_error("exists", "another folder")
    (tmp_path / "file").touch()
    commands.fewstep(*ask, "--out", tmp_path / "file" / "x").is_one_error("--out must be a folder", "is a file")
    commands.fewstep("data", "autoencoder", "mixture", "--out", tmp_path / "m").is_one_error("needs images of pixels")


def test_latents_of_packaged_data_have_no_extractor_and_labels_are_the_datas_own(commands, tmp_path: Path) -> None:
    write_tiny_autoencoder(tmp_path / "vae")
    ask = ("latents", "patches", "--autoencoder", tmp_path / "vae", "--num", 8, "--out", tmp_path / "latents")
    assert commands.fewstep(*ask).status == 0
    assert not (tmp_path / "latents/features.safetensors").exists()
    commands.fewstep(*ask, "labels=none").is_one_error("latents keep the labels", "leave out labels=")


@pytest.mark.slow
def test_a_folder_of_images_becomes_latents_and_a_model(commands, tmp_path: Path) -> None:
    """By the commands of docs/own-data.md: autoencoder, latents with an extractor for the figures, chain, figures."""
    generate_imagefolder(tmp_path / "files")
    pixels = data_of("imagefolder", [f"root={tmp_path / 'files'}"], batch_size=1)
    images, autoencoder, latents = ("imagefolder", f"root={tmp_path / 'files'}"), tmp_path / "ae", tmp_path / "latents"
    made = commands.fewstep("data", "autoencoder", *images, "--out", autoencoder, "--images", 256)
    assert made.status == 0, made
    assert "held-out images PSNR" in made.out
    commands.fewstep("data", "autoencoder", *images, "--out", autoencoder).is_one_error("exists", "another folder")
    encoded = commands.fewstep("latents", *images, "--autoencoder", autoencoder, "--out", latents)
    assert encoded.status == 0, encoded
    assert f"python train.py dataset=own_latents dataset.root={latents}" in encoded.out
    features = (latents / "features.safetensors").read_bytes()
    assert commands.fewstep("latents", *images, "--autoencoder", autoencoder, "--out", latents).status == 0
    assert (latents / "features.safetensors").read_bytes() == features
    small = ("trainer=debug", "trainer.features=auto", "trainer.diagnostics=0", "logger=csv")
    few = ("w=[1]", "teacher_steps=[1]", "guided_steps=[2]", "baselines=[]")
    place = (f"dataset.root={latents}", f"outputs={tmp_path / 'outputs'}", "stage.progressive.ladder=[2,1]")
    chain = commands.train("dataset=own_latents", *place, *small, *(f"stage.evaluate.{setting}" for setting in few))
    assert chain.status == 0, chain
    report = next(tmp_path.glob("outputs/own_latents/pipeline/*/report.html")).read_text()
    assert OwnFeatures.read(latents / "features.safetensors", pixels.facts).name in report
