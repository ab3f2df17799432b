"""CIFAR-10 from its published files: the binary version, or the python version through a restricted unpickler."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_md5

from fewstep.data.facts import DataFacts
from fewstep.data.generate import generate_cifar10, generated_folder
from fewstep.data.split import Examples, SplitImages, missing_data_error
from fewstep.data.unpickle import read_arrays

NAME = "cifar10"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
PER_FILE = 10_000
VALUES = 3 * 32 * 32
RECORD = 1 + VALUES
MD5 = {name: str(md5) for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list]}  # of the python version
VERSIONS = (("cifar-10-batches-bin", ".bin"), ("cifar-10-batches-py", ""))
ADVICE = (
    "get cifar-10-binary.tar.gz or cifar-10-python.tar.gz at cs.toronto.edu/~kriz/cifar.html and unpack it there, so "
    "that it holds cifar-10-batches-bin or cifar-10-batches-py"
)


def batch_files(root: Path) -> list[Path] | None:
    """The five training files and the test file of either version; None if there are none.

    Raises:
        ValueError: some of the six are missing.
    """
    for folder, suffix in [*VERSIONS, *((".", suffix) for _, suffix in VERSIONS)]:
        files = [root / folder / f"{name}{suffix}" for name in (*TRAIN, TEST)]
        missing = [file for file in files if not file.is_file()]
        if len(missing) < len(files):
            if missing:
                raise ValueError(f"CIFAR-10 has six files, and {missing[0]} is missing; unpack the archive again")
            return files
    return None


def read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of one file of either version.

    Raises:
        ValueError: it is truncated or of another layout, or a label is above 9.
    """
    if path.suffix == ".bin":
        size = path.stat().st_size
        if not size or size % RECORD:
            raise ValueError(f"{path} must be whole records of {RECORD} bytes, and has {size} bytes; get it again")
        records = torch.from_numpy(np.fromfile(path, np.uint8)).reshape(-1, RECORD)
        images, labels = records[:, 1:].clone(), records[:, 0].long()
    else:
        batch = read_arrays(path)
        data, listed = (batch.get(key) if isinstance(batch, dict) else None for key in (b"data", b"labels"))
        if (
            not isinstance(data, np.ndarray)
            or data.shape[1:] != (VALUES,)
            or not isinstance(listed, list)
            or not len(data) == len(listed) > 0
        ):
            raise ValueError(f"{path} must hold data uint8 (N, {VALUES}) and a list of N labels; get it again")
        is_valid = all(type(label) is int and 0 <= label <= 9 for label in listed)
        images, labels = torch.from_numpy(data.copy()), torch.tensor(listed if is_valid else [-1])
    if int(labels.min()) < 0 or int(labels.max()) > 9:
        raise ValueError(f"{path} must have labels from 0 to 9, and has others; get it again")
    return images.reshape(-1, 3, 32, 32), labels


def read_batches(files: list[Path]) -> Examples:
    """The examples of several files, concatenated."""
    images, labels = zip(*map(read_batch, files), strict=True)
    return Examples(torch.cat(images), torch.cat(labels))


class Cifar10Data(SplitImages):
    """50,000 images to train on, the 10,000 of the test file held out; 154 MB in memory.

    Args:
        root: a folder that holds cifar-10-batches-bin or cifar-10-batches-py, or is one of them.
        flip: mirror training images at random.
        generated: use generated files if `root` does not exist.

    Raises:
        ValueError: `root` does not exist, or a file in it is missing or damaged.
    """

    facts = DataFacts(name=NAME, shape=(3, 32, 32), num_classes=10, low=-1.0, high=1.0)

    def __init__(self, *, root: str, batch_size: int, stream: str, flip: bool = False, generated: bool = False) -> None:
        place = Path(root)
        if generated and not place.exists():
            place = generated_folder(place, NAME, generate_cifar10)
        files = batch_files(place)
        if files is None:
            raise missing_data_error(NAME, place, ADVICE)
        self.files = files
        super().__init__(
            facts=self.facts,
            train=read_batches(files[:-1]),
            held_out=read_batches(files[-1:]),
            batch_size=batch_size,
            stream=stream,
            flip=flip,
        )

    def check(self) -> list[str]:
        lines = super().check()
        if (len(self.labels), len(self.held_out.labels)) != (5 * PER_FILE, PER_FILE):
            warnings.warn(f"this is not the whole of CIFAR-10, {5 * PER_FILE:,} and {PER_FILE:,} images", stacklevel=2)
        if self.files[0].suffix == ".bin":
            return [*lines, "md5: not compared; no sums of the binary version's files are published with it"]
        same = sum(check_md5(file, MD5[file.name]) for file in self.files)
        if same < len(self.files):
            warnings.warn(f"the md5 sums of {len(self.files) - same} files are not the official ones", stacklevel=2)
        return [*lines, f"md5: {same} of {len(self.files)} files are the official ones"]
