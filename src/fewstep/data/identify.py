"""What the files at a path probably are, and the settings that read them. Looks at names and first bytes alone."""

import gzip
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

from fewstep.data.decode import SUFFIXES

MOST = 200_000  # files looked at
IDX = {b"\x00\x00\x08\x03": "images", b"\x00\x00\x08\x01": "labels"}
PARQUET, GZIP, ZIP, NPY = b"PAR1", b"\x1f\x8b", b"PK\x03\x04", b"\x93NUMPY"
CIFAR10 = ("cifar-10-batches-py", "cifar-10-batches-bin")
SPLIT_FOLDERS = ("train", "val")


class Guess(NamedTuple):
    """What files probably are, and the data set that reads them.

    Attributes:
        what: in words. dataset: of conf/dataset; None where none reads them. root: as dataset.root has it.
        labels: as dataset.labels has it. advice: what else to do, in words.
    """

    what: str
    dataset: str | None = None
    root: Path | None = None
    labels: str = "own"
    advice: str = ""

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Names and values of the settings of the data set."""
        labels = [] if self.labels == "own" else [("labels", self.labels)]
        return [("root", str(self.root)), *labels]

    def error(self, path: Path, *, command: str, name: str = "", prefix: str = "") -> ValueError:
        """The error of one who named the files where a data set is named, with the line to type.

        Args:
            command: that was typed. name, prefix: before the data set's name and its settings, dataset= and dataset.
        """
        words = f"a data set is named where {path} is, which is {self.what}"
        if self.dataset is None:
            return ValueError(f"{words}; {self.advice}")
        settings = (shlex.quote(f"{prefix}{key}={hydra_value(value)}") for key, value in self.settings)
        advice = f" ({self.advice})" if self.advice else ""
        return ValueError(f"{words}; type `{command} {name}{self.dataset} {' '.join(settings)}`{advice}")


def hydra_value(value: str) -> str:
    """A value as Hydra's grammar of overrides has it: quoted where it is not plain."""
    if re.fullmatch(r"[\w./+~@%-]+", value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def identify(path: Path) -> Guess:
    """What the files at `path` probably are."""
    if not path.exists():
        return Guess("nothing: there is no such file or folder", advice="check the path")
    return identify_folder(path) if path.is_dir() else identify_file(path)


def identify_file(path: Path) -> Guess:
    """What one file probably is."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(GZIP):
        try:
            with gzip.open(path) as unpacked:
                start = unpacked.read(8)
        except (OSError, EOFError):
            return Guess("a damaged .gz file", advice="get it again")
    if kind := IDX.get(start[:4]):
        return of_idx(path.parent, f"an IDX file of {kind}")
    if start.startswith(PARQUET):
        return Guess("a Parquet file", "huggingface", path)
    if start.startswith(NPY):
        return Guess("a NumPy array", "arrays", path, advice="labels: dataset.labels=FILE.npy or dataset.labels=none")
    if start.startswith(ZIP):
        return identify_zip(path)
    if path.suffix == ".arrow":
        return Guess("a file of a saved Hugging Face data set", "huggingface", path.parent)
    if path.suffix.lower() in SUFFIXES:
        return Guess("one image", advice="name the folder that it is in")
    if path.suffix == ".tar" or path.name.endswith((".tar.gz", ".tgz")):
        return of_tar(path)
    if path.suffix in (".csv", ".tsv"):
        return Guess("a table", advice="of labels of an image folder: dataset=imagefolder dataset.labels=FILE.csv")
    return Guess("a file of an unknown kind", advice="`python train.py --help` shows the data sets")


def of_tar(path: Path) -> Guess:
    """An archive: shards of captioned images, or something to unpack."""
    if path.suffix == ".tar":
        return Guess("a WebDataset shard", "text", path.parent)
    return Guess("a packed archive", advice=f"unpack it (tar -xf {path.name}) and name what comes out")


def identify_zip(path: Path) -> Guess:
    """A .npz file, or a zip of images."""
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except BadZipFile:
        return Guess("a damaged zip", advice="get it again")
    if arrays := [name.removesuffix(".npy") for name in names if name.endswith(".npy")]:
        return Guess(f"a file of NumPy arrays ({', '.join(arrays[:6])})", "arrays", path)
    return of_images([PurePosixPath(name) for name in names], path, "a zip") or Guess("a zip without images")


def identify_folder(path: Path) -> Guess:
    """What a folder probably is, by the names in it."""
    names = set(os.listdir(path))
    if "latents.json" in names:
        return Guess("a folder of latents that `fewstep latents` made", "own_latents", path)
    if names & {"dataset_info.json", "dataset_dict.json"}:
        return Guess("a saved Hugging Face data set", "huggingface", path)
    if path.name in CIFAR10 or names & {*CIFAR10}:
        return Guess("a folder of CIFAR-10 as published", "cifar10", path)
    if any(re.fullmatch(r"train_data_batch_\d+\.npz", name) for name in names):
        return Guess("a folder of the npz batches of down-sampled ImageNet", "imagenet64", path)
    for folder in (path, *(path / name / "raw" for name in ("FashionMNIST", "MNIST")), path / "raw"):
        if any(folder.glob("*-idx?-ubyte*")):
            return of_idx(folder, "a folder of IDX files")
    found = files_below(path)
    suffixes = Counter(file.suffix.lower() for file in found)
    if suffixes[".tar"]:
        return Guess(f"a folder of {suffixes['.tar']:,} WebDataset shard(s)", "text", path)
    if suffixes[".parquet"]:
        return Guess(f"a folder of {suffixes['.parquet']:,} Parquet file(s)", "huggingface", path)
    if guess := of_images(found, path, "a folder"):
        return guess
    if suffixes[".npy"]:
        return Guess("a folder of NumPy arrays", "arrays", path)
    if suffixes[".npz"]:
        return Guess("a folder of NumPy files", advice="name one of them")
    if suffixes[".safetensors"]:
        return Guess("a model", advice=f"a model is named by teacher={path}")
    most = ", ".join(suffix or "no suffix" for suffix, _ in suffixes.most_common(3)) or "none"
    return Guess(f"a folder without images (files: {most})", advice="`python train.py --help` shows the data sets")


def files_below(path: Path) -> list[PurePosixPath]:
    """The files below a folder that are not hidden, at most MOST, relative to it."""
    found: list[PurePosixPath] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = PurePosixPath(Path(folder).relative_to(path))
        found += [below / name for name in names if not name.startswith(".")]
        if len(found) > MOST:
            break
    return found


def of_idx(folder: Path, what: str) -> Guess:
    """IDX files, of clothes or digits by the names of the folders."""
    is_fashion = "fashion" in str(folder.resolve()).lower()
    return Guess(
        f"{what} of {'Fashion-MNIST' if is_fashion else 'MNIST'}", "fashion_mnist" if is_fashion else "mnist", folder
    )


def of_images(files: Sequence[PurePosixPath], path: Path, what: str) -> Guess | None:
    """A folder or zip of image files: by class, or flat; None without images."""
    images = [file for file in files if file.suffix.lower() in SUFFIXES and "__MACOSX" not in file.parts]
    if not images:
        return None
    parts = [file.parts for file in images]
    while len({each[0] for each in parts}) == 1 and min(map(len, parts)) > 1 and parts[0][0] not in SPLIT_FOLDERS:
        if path.is_dir() and min(map(len, parts)) == 2:  # one class
            break
        parts = [each[1:] for each in parts]
    parts = [each[1:] if each[0] in SPLIT_FOLDERS and len(each) > 1 else each for each in parts]
    count = f"{'more than ' if len(files) > MOST else ''}{len(images):,} images"
    classes = {each[0] for each in parts if len(each) > 1}
    tables = [file for file in files if file.suffix in (".csv", ".tsv")]
    num_flat = sum(len(each) == 1 for each in parts)
    if not num_flat:
        return Guess(f"{what} of {len(classes):,} class folder(s) with {count}", "imagefolder", path)
    kind = (
        f"{what} of {count} without class folders"
        if num_flat == len(parts)
        else (f"{what} of {count}, {num_flat:,} of them outside of its {len(classes):,} class folders")
    )
    if tables and path.is_dir():
        table = path / tables[0]
        return Guess(f"{kind}, with the table {tables[0]}", "imagefolder", path, str(table))
    advice = "guidance is off then; with a table of labels: dataset.labels=FILE.csv, of rows file,label"
    return Guess(kind, "imagefolder", path, "none", advice)
