"""Latents on disk are the autoencoder's; made with interruptions, they are the same; damage is found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.data.batches import from_uint8
from fewstep.data.digits import DigitsData
from fewstep.data.generate_text import some_patches
from fewstep.data.latents import MANIFEST, LatentsData
from fewstep.data.make_latents import UNFINISHED, make_latents
from fewstep.networks.frozen.autoencoder import Autoencoder, write_tiny_autoencoder

pytest_plugins = ("running",)
COUNT, PER_FILE = 20, 8


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    write_tiny_autoencoder(folder)
    return folder


@pytest.fixture(scope="module")
def made(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    make(vae, folder)
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "latents"))


def make(vae: Path, out: Path, stop_after: int | None = None) -> list[int]:
    done = []
    for number in make_latents(some_patches(COUNT), Autoencoder.open(vae), out, batch_size=3, per_file=PER_FILE):
        done.append(number)
        if stop_after is not None and len(done) == stop_after:
            break
    return done


def opened(root: Path, batch_size: int = 8, stream: str = "0/teacher") -> LatentsData:
    return LatentsData(root=str(root), batch_size=batch_size, stream=stream)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_latents_are_sampled_from_the_moments_of_the_autoencoder(made: Path, vae: Path) -> None:
    data, autoencoder, source = opened(made, batch_size=COUNT), Autoencoder.open(vae), some_patches(COUNT)
    mean, variance = autoencoder.encode(from_uint8(source.images[torch.arange(COUNT)]))
    torch.testing.assert_close(
        data.images[torch.arange(COUNT)].float(), torch.stack([mean, variance], 1), rtol=1e-3, atol=1e-4
    )
    # Each batch is one epoch: over many, an image's latents have its mean and variance.
    visits = []
    for step in range(400):
        order = data._epoch_order(step)
        visits.append(data.batch(step).x[order.argsort()])
    drawn = torch.stack(visits) / autoencoder.scaling_factor
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=float(5 * variance.max().sqrt() / 20))
    torch.testing.assert_close(drawn.var(0).mean(), variance.mean(), rtol=0.02, atol=0)


def test_labels_stay_with_their_images_and_batches_depend_on_the_step_alone(made: Path) -> None:
    data, again, source = opened(made), opened(made), some_patches(COUNT)
    order = data._epoch_order(0)
    assert torch.equal(data.batch(0).label, source.labels[order[:8]])
    first = [data.batch(step) for step in range(4)]
    for step in (3, 0, 2):
        assert torch.equal(again.batch(step).x, first[step].x)
    assert not torch.equal(opened(made, stream="0/guidance").batch(0).x, first[0].x)


def test_the_facts_lead_back_to_the_images(made: Path, vae: Path) -> None:
    data = opened(made)
    assert data.facts.shape == (4, 8, 8)
    assert data.facts.latent == Autoencoder.open(vae).facts((3, 32, 32))
    assert data.evaluation_facts.name == "patches"
    assert data.facts.pixels.shape == (3, 32, 32)
    reference, source = data.reference(), some_patches(COUNT).reference()
    torch.testing.assert_close(reference.x, source.x)
    assert torch.equal(reference.label, source.label)
    decoded = data.decode(data.batch(0).x)
    assert decoded.shape == (8, 3, 32, 32)
    assert float(decoded.abs().max()) <= 1
    assert any("decoded" in line for line in data.check())


def test_an_interrupted_conversion_resumes_and_ends_the_same(made: Path, vae: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    make(vae, out, stop_after=5)  # within the second file
    assert sorted(path.name for path in out.iterdir()) == ["latents-00000.npy", UNFINISHED]
    with pytest.raises(ValueError, match="resumes after an interruption"):
        opened(out)
    begun = (out / "latents-00000.npy").stat().st_mtime_ns
    assert make(vae, out)[0] == PER_FILE  # the first file is not made again
    assert (out / "latents-00000.npy").stat().st_mtime_ns == begun
    assert contents(out) == contents(made)
    assert not (out / UNFINISHED).exists()


def test_a_full_disk_leaves_nothing_that_reads_as_complete(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = np.save, []

    def full(file: object, array: np.ndarray, **options: bool) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(file, array, **options)

    out = tmp_path / "latents"
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        make(vae, out)
    assert sorted(path.name for path in out.iterdir()) == ["latents-00000.npy", UNFINISHED]
    make(vae, out)
    assert len(opened(out).labels) == COUNT


def test_a_folder_of_other_latents_is_left_alone(own: Path, tmp_path: Path) -> None:
    write_tiny_autoencoder(tmp_path / "other", seed=1)
    before = contents(own)
    with pytest.raises(ValueError, match=r"autoencoder_sha256.*choose another --out"):
        make(tmp_path / "other", own)
    assert contents(own) == before


def test_damage_is_found(own: Path) -> None:
    shard = own / "latents-00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"latents-00001\.npy is missing, truncated or damaged"):
        opened(own)
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"latents-00001\.npy has changed"):
        opened(own).check()
    shard.unlink()
    with pytest.raises(ValueError, match=r"latents-00001\.npy is missing"):
        opened(own)
    (own / MANIFEST).write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format is 99"):
        opened(own)


def test_a_changed_file_is_encoded_again(own: Path, made: Path, vae: Path) -> None:
    shard = own / "latents-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"#")
    killed = own / ".latents-00002.npy.1.tmp"
    killed.mkdir()
    (killed / "content").write_bytes(b"of a killed process")
    with pytest.warns(UserWarning, match=r"latents-00001\.npy has changed since it was made, and is made anew"):
        make(vae, own)
    assert contents(own) == contents(made)
    assert not list(own.glob(".*.tmp"))
    opened(own).check()


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("latents-00000.npy", np.zeros((PER_FILE, 2, 4, 9, 9), np.float16), "must be float16"),
        ("latents-00000.npy", np.zeros((PER_FILE - 1, 2, 4, 8, 8), np.float16), "must be float16"),
        ("latents-00000.npy", np.zeros((PER_FILE, 2, 4, 8, 8)), "must be float16"),
        ("latents-00000.npy", np.zeros((), np.float16), "must be float16"),
        ("labels.npy", np.zeros(COUNT, np.float32), "for their labels"),
        ("labels.npy", np.zeros(COUNT - 1, np.int64), "for their labels"),
        ("labels.npy", np.full(COUNT, 99), "labels of latents run from 0 to 1"),
    ],
)
def test_arrays_of_another_form_are_refused(own: Path, name: str, array: np.ndarray, words: str) -> None:
    np.save(own / name, array)
    with pytest.raises(ValueError, match=words):
        opened(own)


@pytest.mark.parametrize("key", ["files", "per_file", "source", "autoencoder"])
def test_a_manifest_that_lacks_something_is_named(own: Path, key: str) -> None:
    about = json.loads((own / MANIFEST).read_text())
    del about[key]
    (own / MANIFEST).write_text(json.dumps(about))
    with pytest.raises(ValueError, match=rf"latents.json cannot be read \(it has no {key}\)"):
        opened(own)


def test_digits_are_no_images_for_an_autoencoder_of_colours(vae: Path, tmp_path: Path) -> None:
    source = DigitsData(batch_size=1, stream="facts")
    with pytest.raises(ValueError, match="3 channels"):
        list(make_latents(source, Autoencoder.open(vae), tmp_path / "latents"))
    assert not (tmp_path / "latents").exists()


def test_the_command_makes_them_and_prints_the_rate(commands, vae: Path, tmp_path: Path) -> None:
    write_tiny_autoencoder(tmp_path / "coarse", downsampling=8)
    from fewstep.data import patches

    commands.monkeypatch.setattr(patches, "corners", few_corners)
    made = commands.fewstep("latents", "patches", "--autoencoder", tmp_path / "coarse", "--out", tmp_path / "out")
    assert made.status == 0, made
    assert "latents 4 x 4 x 4 of 32 images of patches" in made.out
    assert len(opened(tmp_path / "out").labels) == 32
    options = ("--autoencoder", tmp_path / "coarse", "--out", tmp_path / "few", "--num", 8)
    assert commands.fewstep("latents", "patches", *options).status == 0
    few = opened(tmp_path / "few")
    assert torch.equal(few.labels, opened(tmp_path / "out").labels[::4])
    some = opened(tmp_path / "out").images[torch.arange(0, 32, 4)]
    torch.testing.assert_close(few.images[torch.arange(8)], some, rtol=1e-2, atol=1e-3)
    refused = commands.fewstep("latents", "patches", "--autoencoder", tmp_path / "none", "--out", tmp_path / "out")
    refused.is_one_error("config.json is missing")
    commands.fewstep("latents", "mixture", "--autoencoder", vae, "--out", tmp_path / "out").is_one_error("use patches")


def few_corners(shape, size, columns, stride):
    return torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(4))


def test_errors_of_missing_files_say_how_to_make_them(commands, tmp_path: Path) -> None:
    refused = commands.train(
        "dataset=latents", "stage=teacher", "logger=csv", f"dataset.root={tmp_path / 'none'}", f"outputs={tmp_path}"
    )
    refused.is_one_error("fewstep latents patches", "trainer=debug")
