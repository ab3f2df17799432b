"""ImageNet-64 from files in the official form: converted once, in parts, and never half."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data import cache, imagenet64
from fewstep.data.generate import generate_imagenet64
from fewstep.data.imagenet64 import ImageNet64Data

pytestmark = pytest.mark.usefixtures("unchecked")
BATCHES, PER_BATCH = 3, 12


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """Four small official files; 36 images to train on, 12 held out."""
    root = tmp_path_factory.mktemp("official") / "imagenet64"
    generate_imagenet64(root, per_batch=PER_BATCH, num_batches=BATCHES)
    return root


@pytest.fixture
def root(official: Path, tmp_path: Path) -> Path:
    """A copy of them to spoil, without a cache."""
    return Path(shutil.copytree(official, tmp_path / "imagenet64"))


def opened(root: Path, **settings) -> ImageNet64Data:
    return ImageNet64Data(root=str(root), **({"batch_size": 5, "stream": "0/teacher"} | settings))


def cache_of(root: Path) -> Path:
    return root.with_name("imagenet64.cache")


def all_images(data: ImageNet64Data) -> torch.Tensor:
    return data.images[torch.arange(len(data.labels))]


def test_the_images_are_those_of_the_official_arrays(root: Path) -> None:
    data = opened(root)
    batches = [np.load(root / f"train_data_batch_{number}.npz", allow_pickle=False) for number in (1, 2, 3)]
    assert set(batches[0].files) == {"data", "labels", "mean"}
    expected = np.concatenate([batch["data"] for batch in batches])
    assert np.array_equal(all_images(data).numpy().reshape(36, -1), expected)
    red, green = expected[17][: 64 * 64].reshape(64, 64), expected[17][64 * 64 : 2 * 64 * 64].reshape(64, 64)
    image = data.images[torch.tensor([17])][0].numpy()
    assert np.array_equal(image[0], red)
    assert np.array_equal(image[1], green)
    assert data.labels.tolist() == [int(label) - 1 for batch in batches for label in batch["labels"]]
    assert data.labels.dtype == torch.int64
    held_out = np.load(root / "val_data.npz", allow_pickle=False)
    x, labels = data.reference()
    assert np.array_equal(((x + 1) * 127.5).round().numpy().reshape(12, -1), held_out["data"])
    assert labels.tolist() == (held_out["labels"] - 1).tolist()
    assert (data.facts.shape, data.facts.num_classes, data.facts.low, data.facts.high) == ((3, 64, 64), 1000, -1, 1)


def test_batch_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    root = tmp_path / "imagenet64"
    generate_imagenet64(root, per_batch=2, num_batches=10)
    last = np.load(root / "train_data_batch_10.npz", allow_pickle=False)["data"]
    assert np.array_equal(all_images(opened(root))[-2:].numpy().reshape(2, -1), last)


def test_compressed_files_give_the_same(root: Path, tmp_path: Path) -> None:
    generate_imagenet64(tmp_path / "packed", per_batch=PER_BATCH, num_batches=BATCHES, compress=True)
    assert torch.equal(all_images(opened(tmp_path / "packed")), all_images(opened(root)))


def test_a_batch_is_a_function_of_its_step_and_an_epoch_has_every_image(root: Path) -> None:
    data = opened(root)
    batches = [data.pixels(step) for step in range(36)]
    again = opened(root)
    for step in (35, 0, 7):
        assert torch.equal(again.pixels(step)[0], batches[step][0])
    epochs = torch.cat([images for images, _ in batches]).flatten(1).reshape(5, 36, -1)
    assert all(len(epoch.unique(dim=0)) == 36 for epoch in epochs)


def test_the_reference_is_capped_evenly(root: Path) -> None:
    whole, some = opened(root).reference(), opened(root, num_reference=4).reference()
    assert torch.equal(some.x, whole.x[[0, 3, 6, 9]])


def test_it_is_converted_once_and_the_source_may_go(root: Path, monkeypatch) -> None:
    first = opened(root).batch(2)
    monkeypatch.setattr(cache, "write_part", None)  # would be called
    assert torch.equal(opened(root).batch(2).x, first.x)
    shutil.rmtree(root)
    assert torch.equal(opened(root).batch(2).x, first.x)


def converted(monkeypatch) -> list[str]:
    """Names of the parts that are converted from now on."""
    names, write = [], cache.write_part

    def noted(folder, part, *settings, **named):
        names.append(part.name)
        return write(folder, part, *settings, **named)

    monkeypatch.setattr(cache, "write_part", noted)
    return names


def interrupt(root: Path, monkeypatch, *, at: int, error: BaseException) -> None:
    """Convert until the read of batch `at` is in the middle."""
    read = imagenet64.read_npz

    def cut(path: Path):
        for chunk in read(path):
            yield chunk
            if path.name == f"train_data_batch_{at}.npz":
                raise error

    with monkeypatch.context() as patched:
        patched.setattr(imagenet64, "read_npz", cut)
        with pytest.raises(type(error)):
            opened(root)


def test_an_interrupted_conversion_resumes(root: Path, official: Path, monkeypatch) -> None:
    interrupt(root, monkeypatch, at=2, error=KeyboardInterrupt())
    folder = cache_of(root)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "train-00000.images", "train-00000.json"]
    killed = folder / ".train-00001.images.77.tmp"  # as SIGKILL leaves it
    killed.mkdir()
    (killed / "content").write_bytes(b"killed here")
    names = converted(monkeypatch)
    data = opened(root)
    assert names == ["train-00001", "train-00002", "val-00000"]
    assert not list(folder.glob(".*.tmp"))
    whole = opened(official, cache=str(root.with_name("other")))
    assert torch.equal(all_images(data), all_images(whole))
    for part in folder.glob("*.images"):
        assert part.read_bytes() == (root.with_name("other") / part.name).read_bytes()


def test_an_array_without_its_record_is_not_used(root: Path, monkeypatch) -> None:
    """Killed between the two writes."""
    opened(root)
    (cache_of(root) / "manifest.json").unlink()
    (cache_of(root) / "train-00001.json").unlink()
    names = converted(monkeypatch)
    opened(root)
    assert names == ["train-00001"]


def test_a_damaged_part_is_converted_again(root: Path, monkeypatch) -> None:
    expected = all_images(opened(root))
    folder = cache_of(root)
    spoil(folder / "train-00002.images")
    (folder / "manifest.json").unlink()
    names = converted(monkeypatch)
    with pytest.warns(UserWarning, match="train-00002.images is damaged, its checksum differs"):
        data = opened(root)
    assert names == ["train-00002"]
    assert torch.equal(all_images(data), expected)


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def test_the_check_finds_a_damaged_part(root: Path) -> None:
    lines = opened(root).check()
    assert f"cache {cache_of(root)}: sha256 of 4 parts" in lines
    assert "training: 4 of 1000 classes, 0 to 9 of each" in lines
    assert "counts: not the full set of 1,281,167 and 50,000" in lines
    spoil(cache_of(root) / "val-00000.images")
    with pytest.raises(ValueError, match=r"val-00000.images is damaged.*delete .*manifest.json"):
        opened(root).check()


def test_labels_are_under_the_checksum_too(root: Path) -> None:
    opened(root)
    path = cache_of(root) / "train-00000.json"
    record = json.loads(path.read_text())
    record["labels"][0] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"train-00000.images is damaged"):
        opened(root).check()


@pytest.mark.parametrize("name", ["train-00001.images", "train-00001.json"])
def test_a_part_that_is_cut_or_gone_is_not_read(root: Path, name: str) -> None:
    opened(root)
    (cache_of(root) / name).unlink()
    with pytest.raises(ValueError, match=r"gone or cut short; delete .*manifest.json"):
        opened(root)


def test_a_new_source_is_converted_where_it_is_new(root: Path, monkeypatch) -> None:
    opened(root)
    generate_imagenet64(root.with_name("more"), per_batch=PER_BATCH + 1, num_batches=1)
    shutil.copy(root.with_name("more") / "train_data_batch_1.npz", root / "train_data_batch_3.npz")
    names = converted(monkeypatch)
    assert len(opened(root).labels) == 37
    assert names == ["train-00002"]
    (root / "train_data_batch_2.npz").unlink()
    assert len(opened(root).labels) == 25
    assert not (cache_of(root) / "train-00002.images").exists()


@pytest.mark.parametrize("moment", ["write", "flush"])
def test_a_full_disk_leaves_nothing_half_written(root: Path, monkeypatch, moment: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    if moment == "write":
        interrupt(root, monkeypatch, at=2, error=OSError(errno.ENOSPC, "no room"))
    else:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left on device"):
                opened(root)
    assert not (cache_of(root) / "manifest.json").exists()
    assert not list(cache_of(root).glob(".*.tmp"))
    names = converted(monkeypatch)
    assert len(opened(root).labels) == 36  # there is room again
    if moment == "write":
        assert names == ["train-00001", "train-00002", "val-00000"]


def rewrite(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **(dict(np.load(path, allow_pickle=False)) | arrays))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1  # within the pixels: only the zip's own CRC knows
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "truncated, damaged"),
        (lambda path: path.write_bytes(b""), "truncated, damaged"),
        (flip_a_byte, "truncated, damaged .*Bad CRC-32"),
        (lambda path: rewrite(path, labels=np.arange(12)), "labels must be 12 numbers from 1 to 1000"),
        (lambda path: rewrite(path, labels=np.arange(1, 4)), "labels must be 12 numbers"),
        (lambda path: rewrite(path, labels=np.array([1001] * 12)), "labels must be 12 numbers"),
        (lambda path: rewrite(path, data=np.zeros((12, 3072), np.uint8)), "images of 12288 values, got 3072"),
        (lambda path: rewrite(path, data=np.zeros((12, 12288), np.float32)), "must be uint8"),
        (lambda path: rewrite(path, data=np.array([[None]])), "must be uint8"),
        (lambda path: np.savez(path, data=np.zeros((12, 12288), np.uint8)), "labels.npy"),
    ],
)
def test_a_damaged_batch_is_named(root: Path, damage, words: str) -> None:
    damage(root / "train_data_batch_2.npz")
    with pytest.raises(ValueError, match=rf"train_data_batch_2.npz.*{words}"):
        opened(root)
    assert not (cache_of(root) / "manifest.json").exists()


def test_missing_files_are_named(root: Path, tmp_path: Path) -> None:
    (root / "val_data.npz").unlink()
    with pytest.raises(ValueError, match=r"not val_data.npz; get the npz files .*image-net.org"):
        opened(root)
    with pytest.raises(ValueError, match=r"is not at .*nothing.*image-net.org.*dataset.root=PATH.*trainer=debug"):
        opened(tmp_path / "nothing")


def test_a_folder_of_images_does_too(root: Path, tmp_path: Path) -> None:
    data, plain = opened(root), tmp_path / "plain"
    for split, images, labels in (
        ("train", all_images(data), data.labels),
        ("val", data.held_out.images[torch.arange(12)], data.held_out.labels),
    ):
        for number, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
            folder = plain / split / f"n{label:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}.png")
    same = opened(plain)
    assert same.facts.num_classes == 4
    assert same.conditions(6).tolist() == data.conditions(6).tolist() == [0, 1, 2, 3, 0, 1]
    by_label = data.labels.argsort(stable=True)
    assert torch.equal(same.labels, data.labels[by_label])
    found = {image.tobytes() for image in all_images(same).numpy()}
    assert found == {image.tobytes() for image in all_images(data).numpy()}
