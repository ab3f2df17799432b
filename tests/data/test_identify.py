"""What files probably are: the line that is proposed names a data set that reads them."""

import gzip
from pathlib import Path
from zipfile import ZipFile

import pytest

from fewstep.data.identify import identify
from fewstep.runs.overrides import hydra_arguments

IMAGES = [f"{name}/{number}.png" for name in ("a", "b") for number in range(3)]


def write(root: Path, *names: str, content: bytes = b"") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path: Path, *names: str) -> Path:
    with ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


@pytest.mark.parametrize(
    ("make", "what", "dataset", "labels"),
    [
        (lambda p: write(p, *IMAGES, ".hidden/1.png"), "2 class folder(s) with 6 images", "imagefolder", "own"),
        (lambda p: write(p, *(f"x/{name}" for name in IMAGES)), "2 class folder(s)", "imagefolder", "own"),
        (lambda p: write(p, *(f"train/{name}" for name in IMAGES)), "2 class folder(s)", "imagefolder", "own"),
        (lambda p: write(p, "a/1.png", "a/2.png"), "1 class folder(s) with 2 images", "imagefolder", "own"),
        (lambda p: write(p, "1.JPG", "2.webp"), "2 images without class folders", "imagefolder", "none"),
        (lambda p: write(p, "1.png", *IMAGES), "7 images, 1 of them outside of its 2", "imagefolder", "none"),
        (lambda p: zipped(p, *IMAGES, "__MACOSX/c/1.png"), "zip of 2 class folder(s)", "imagefolder", "own"),
        (lambda p: zipped(p, "x_train.npy", "y_train.npy"), "(x_train, y_train)", "arrays", "own"),
        (lambda p: write(p, "images.npy", "labels.npy"), "NumPy arrays", "arrays", "own"),
        (lambda p: write(p, "dataset_dict.json", "train/data.arrow"), "Hugging Face", "huggingface", "own"),
        (lambda p: write(p, "data/train-0.parquet"), "1 Parquet file(s)", "huggingface", "own"),
        (lambda p: write(p, "cifar-10-batches-py/test_batch"), "CIFAR-10", "cifar10", "own"),
        (lambda p: write(p, "train_data_batch_1.npz"), "ImageNet", "imagenet64", "own"),
        (lambda p: write(p, "latents.json", "labels.npy"), "latents", "own_latents", "own"),
        (lambda p: write(p, "0.tar", "1.tar"), "2 WebDataset shard(s)", "text", "own"),
        (lambda p: write(p, "model.safetensors"), "teacher=", None, "own"),
        (lambda p: write(p, "notes.md", "more.md"), "without images (files: .md)", None, "own"),
        (lambda p: p, "no such file or folder", None, "own"),
    ],
)
def test_files_are_recognised(tmp_path: Path, make, what: str, dataset: str | None, labels: str) -> None:
    path = make(tmp_path / "given")
    guess = identify(path)
    assert (guess.dataset, guess.labels) == (dataset, labels)
    assert what in str(guess.error(path, command="line"))
    assert guess.root in (path, None)


def test_a_table_beside_flat_images_is_proposed(tmp_path: Path) -> None:
    root = write(tmp_path / "given", "1.png", "2.png", "labels.csv")
    assert identify(root).labels == str(root / "labels.csv")


@pytest.mark.parametrize(
    ("content", "what", "dataset"),
    [
        (b"\0\0\x08\x03", "IDX file of images", "mnist"),
        (gzip.compress(b"\0\0\x08\x01", mtime=0), "IDX file of labels", "mnist"),
        (b"\x1f\x8bcut", "damaged .gz", None),
        (b"PAR1", "Parquet", "huggingface"),
        (b"\x93NUMPY", "NumPy array", "arrays"),
        (b"PK\x03\x04cut", "damaged zip", None),
        (b"", "unknown kind", None),
    ],
)
def test_a_file_is_recognised_by_its_first_bytes(
    tmp_path: Path, content: bytes, what: str, dataset: str | None
) -> None:
    (tmp_path / "given").write_bytes(content)
    guess = identify(tmp_path / "given")
    assert what in guess.what
    assert guess.dataset == dataset


def test_torchvisions_folders_are_recognised(tmp_path: Path) -> None:
    for name, dataset in (("MNIST", "mnist"), ("FashionMNIST", "fashion_mnist")):
        root = write(tmp_path / name.lower(), f"{name}/raw/train-images-idx3-ubyte", content=b"\0\0\x08\x03")
        for given in (root, root / name, root / name / "raw"):
            assert identify(given)[1:3] == (dataset, root / name / "raw")
    root = write(tmp_path, "cifar-10-batches-bin/test_batch.bin")
    assert identify(root / "cifar-10-batches-bin").dataset == "cifar10"


def test_a_path_in_the_place_of_a_data_set_is_one_error_with_the_line(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "flat/1.png", "class es, 1/a/1.png", "digits/1.png")
    monkeypatch.chdir(tmp_path)
    for typed, line in [
        ("flat", "`python train.py dataset=imagefolder dataset.root=flat dataset.labels=none` (guidance is off"),
        (f"{tmp_path}/flat", f"dataset.root={tmp_path}/flat "),
        ('"class es, 1"', """dataset=imagefolder 'dataset.root="class es, 1"'`"""),
        ("no/such", "no such file or folder; check the path"),
    ]:
        with pytest.raises(ValueError, match="a data set is named where") as raised:
            hydra_arguments(["seed=1", f"dataset={typed}"])
        assert line in str(raised.value)
    for names in ("digits", "digits,mixture", "my_own", ""):
        assert hydra_arguments([f"dataset={names}"]) == [f"dataset={names}"]
