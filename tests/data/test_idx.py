"""IDX files in their published form, made small; what is not such a file is refused in a line."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.data.generate import generate_idx
from fewstep.data.idx import FashionMnistData, MnistData, read_idx

pytestmark = pytest.mark.usefixtures("unchecked")
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generate_idx(tmp_path / "files", num_train=40, num_test=20)
    return tmp_path / "files"


def opened(root: Path) -> FashionMnistData:
    return FashionMnistData(root=str(root), batch_size=10, stream="0/teacher")


def test_files_are_read_byte_by_byte(root: Path) -> None:
    data = opened(root)
    stored = np.frombuffer((root / IMAGES).read_bytes()[16:], np.uint8).reshape(40, 28, 28)
    assert data.facts.shape == (1, 28, 28)
    assert data.facts.num_classes == 10
    assert torch.equal(data.images[torch.arange(40)][:, 0], torch.from_numpy(stored.copy()))
    assert data.labels.tolist() == list((root / LABELS).read_bytes()[8:])
    assert len(data.reference().x) == 20


def test_compressed_and_renamed_files_hold_the_same(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in root.iterdir():
        (other / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    dotted = tmp_path / "dotted"
    dotted.mkdir()
    for file in root.iterdir():
        (dotted / file.name.replace("-idx", ".idx")).write_bytes(file.read_bytes())
    for copy in (other, dotted):
        assert torch.equal(opened(copy).batch(3).x, opened(root).batch(3).x)


def test_files_are_found_where_torchvision_puts_them(root: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data" / "MNIST").mkdir(parents=True)
    root.rename(tmp_path / "data" / "MNIST" / "raw")
    monkeypatch.chdir(tmp_path)
    data = MnistData(batch_size=10, stream="0/teacher")
    assert data.facts.name == "mnist"
    assert len(data.labels) == 40


def cut(content: bytes) -> bytes:
    return content[:-1]


def of_floats(content: bytes) -> bytes:
    return content[:2] + bytes([13]) + content[3:]


def of_more(content: bytes) -> bytes:
    return content[:4] + (2**31).to_bytes(4, "big") + content[8:]


@pytest.mark.parametrize("damage", [cut, of_floats, of_more, lambda content: content[:5], lambda content: b""])
def test_a_damaged_file_is_named(root: Path, damage) -> None:
    (root / IMAGES).write_bytes(damage((root / IMAGES).read_bytes()))
    with pytest.raises(ValueError, match=f"{IMAGES} must be an IDX file of bytes in 3 dimensions.*get it again"):
        opened(root)


def test_a_damaged_archive_is_named(root: Path) -> None:
    whole = gzip.compress((root / IMAGES).read_bytes())
    (root / IMAGES).unlink()
    for content in (whole[:-20], b"no archive", whole[:40] + b"0000" + whole[44:]):
        (root / f"{IMAGES}.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"images-idx3-ubyte\.gz must be a whole gzip file"):
            opened(root)


def test_images_and_labels_belong_together(root: Path) -> None:
    labels = (root / LABELS).read_bytes()
    (root / LABELS).write_bytes(labels[:4] + (39).to_bytes(4, "big") + labels[8:-1])
    with pytest.raises(ValueError, match="a label for each image of train, and has 39 for 40"):
        opened(root)
    (root / LABELS).unlink()
    with pytest.raises(ValueError, match=f"has {IMAGES} alone; add the other"):
        opened(root)


def test_both_splits_are_needed(root: Path) -> None:
    for file in root.glob("t10k*"):
        file.unlink()
    with pytest.raises(ValueError, match="must have t10k-images-idx3-ubyte and its labels"):
        opened(root)


def test_missing_files_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset=mnist is not at .*torchvision.*dataset\.root=PATH"):
        MnistData(root=str(tmp_path), batch_size=10, stream="0/teacher")


def test_labels_are_vectors(root: Path) -> None:
    assert read_idx(root / LABELS, 1).shape == (40,)
    with pytest.raises(ValueError, match="in 3 dimensions"):
        read_idx(root / LABELS, 3)
