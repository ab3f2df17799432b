"""The autoencoder is diffusers' own, with its scaling; a folder that is not whole says what is missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from fewstep.networks.frozen.autoencoder import Autoencoder, write_tiny_autoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "vae"
    write_tiny_autoencoder(folder)
    return folder


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "vae"))


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_it_encodes_and_decodes_as_diffusers_does(folder: Path) -> None:
    ours, theirs = Autoencoder.open(folder), AutoencoderKL.from_pretrained(folder).eval()
    x = images()
    with torch.no_grad():
        posterior = theirs.encode(x).latent_dist
        mean, variance = ours.encode(x)
        torch.testing.assert_close(mean, posterior.mean)
        torch.testing.assert_close(variance, posterior.var)
        z = torch.randn(3, 4, 8, 8)
        torch.testing.assert_close(ours.decode(z), theirs.decode(z / theirs.config.scaling_factor).sample)


def test_latents_are_shifted_then_scaled_and_decoding_undoes_it(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"shift_factor": 0.5, "scaling_factor": 2.0}))
    autoencoder, plain = Autoencoder.open(own), Autoencoder.open(own)
    z = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(autoencoder.latents(z), (z - 0.5) * 2)
    torch.testing.assert_close(autoencoder.decode((z - 0.5) * 2), plain.network.decode(z).sample)
    torch.testing.assert_close(autoencoder.encode_mean(images()), (autoencoder.encode(images())[0] - 0.5) * 2)


def test_a_pipeline_folder_will_do_and_the_facts_say_what_it_is(folder: Path) -> None:
    autoencoder = Autoencoder.open(folder.parent)
    facts = autoencoder.facts((3, 32, 64))
    assert (facts.image_shape, facts.scaling_factor, facts.shift_factor) == ((3, 32, 64), 0.18215, 0.0)
    assert facts.autoencoder == str(folder.resolve())
    assert autoencoder.latent_shape((3, 32, 64)) == (4, 8, 16)
    with pytest.raises(ValueError, match="sides divisible by 4"):
        autoencoder.facts((3, 30, 32))
    with pytest.raises(ValueError, match="3 channels"):
        autoencoder.encode(torch.zeros(1, 1, 32, 32))


def test_the_digest_is_of_the_weights_alone(own: Path, tmp_path: Path) -> None:
    autoencoder = Autoencoder.open(own)
    autoencoder.network.save_pretrained(tmp_path / "again")
    assert Autoencoder.open(tmp_path / "again").digest == autoencoder.digest
    write_tiny_autoencoder(tmp_path / "other", seed=1)
    facts = autoencoder.facts((3, 32, 32))
    assert Autoencoder.of(facts, tmp_path / "again").digest == facts.sha256
    with pytest.raises(ValueError, match=r"must be the one that the model was made with.*--autoencoder FOLDER"):
        Autoencoder.of(facts, tmp_path / "other")
    shutil.rmtree(own)
    with pytest.raises(ValueError, match=r"no longer in .*--autoencoder FOLDER"):
        Autoencoder.of(facts)


def test_what_is_missing_or_damaged_is_said(own: Path, tmp_path: Path) -> None:
    whole = (own / WEIGHTS).read_bytes()
    (own / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        Autoencoder.open(own)
    (own / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"a \.safetensors file is missing"):
        Autoencoder.open(own)
    (own / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin, a pickle"):
        Autoencoder.open(own)
    (own / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        Autoencoder.open(own)
    with pytest.raises(ValueError, match="is missing; nothing is downloaded"):
        Autoencoder.open(tmp_path / "nowhere")


def test_weights_of_another_shape_are_refused_by_name(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"latent_channels": 8}))
    with pytest.raises(ValueError, match=r"quant_conv|conv_out|conv_in"):
        Autoencoder.open(own)


def test_weights_that_lack_a_tensor_are_refused_by_name(own: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(own / WEIGHTS)
    del tensors["decoder.conv_out.weight"]
    save_file(tensors, own / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"decoder\.conv_out\.weight"):
        Autoencoder.open(own)


def test_latents_normalised_by_channel_are_refused(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"latents_mean": [0.0] * 4}))
    with pytest.raises(ValueError, match="latents_mean"):
        Autoencoder.open(own)
