"""MNIST and Fashion-MNIST from their published IDX files, and any other data set in the same four files."""

import gzip
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from fewstep.data.facts import DataFacts
from fewstep.data.generate import generate_idx, generated_folder
from fewstep.data.split import Examples, SplitImages, missing_data_error

SPLITS = ("train", "t10k")
KINDS = {"images-idx3": 3, "labels-idx1": 1}  # dimensions of an IDX file of each
UNSIGNED_BYTE = 8  # the type of IDX files that hold pixels or labels


def read_idx(path: Path, dimensions: int) -> UInt8[Tensor, "*sizes"]:
    """The bytes of an IDX file, compressed or not: two zeros, type, number of dimensions, their sizes, the values.

    Raises:
        ValueError: it is truncated, damaged, or of another type or number of dimensions.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file, and is not ({error}); get it again") from error
    header = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    if content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)) or len(content) != header + prod(sizes):
        raise ValueError(
            f"{path} must be an IDX file of bytes in {dimensions} dimensions, with as many bytes as its header says, "
            "and is not; get it again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(sizes)


def find_files(root: Path, split: str) -> list[Path] | None:
    """The files of images and labels of a split below `root`, compressed or not; None where neither is there.

    Raises:
        ValueError: only one of them is there.
    """
    places = [
        [root / f"{split}-{kind}-ubyte{suffix}" for suffix in ("", ".gz")]
        + [root / f"{split}-{kind.replace('-', '.')}-ubyte"]  # as some archives unpack them
        for kind in KINDS
    ]
    files = [next(filter(Path.is_file, candidates), None) for candidates in places]
    if not any(files):
        return None
    found = [file for file in files if file]
    if len(found) < len(files):
        raise ValueError(f"{root} must have images and labels of {split}, and has {found[0].name} alone; add the other")
    return found


def read_split(root: Path, split: str) -> Examples:
    """The examples of a split, images uint8 (N, 1, H, W).

    Raises:
        ValueError: a file is missing, damaged, or has not one label for each image.
    """
    files = find_files(root, split)
    if files is None:
        raise ValueError(f"{root} must have {split}-images-idx3-ubyte and its labels, compressed or not; add them")
    images, labels = (read_idx(file, dimensions) for file, dimensions in zip(files, KINDS.values(), strict=True))
    if len(images) != len(labels):
        raise ValueError(
            f"{root} must have a label for each image of {split}, and has {len(labels):,} for {len(images):,}; "
            "get both files again"
        )
    return Examples(images[:, None], labels.long())


class IdxData(SplitImages):
    """Grey images in four IDX files; those of t10k are held out.

    Args:
        root: the folder of the files. null: the first of `places` that has them.
        num_reference: the most held-out images in the reference.
        generated: use generated files if there are none.

    Raises:
        ValueError: there are no files, or one is missing or damaged.
    """

    dataset: str
    places: Sequence[str]
    advice: str

    def __init__(
        self,
        *,
        batch_size: int,
        stream: str,
        root: str | None = None,
        num_reference: int = 10_000,
        generated: bool = False,
    ) -> None:
        places = [Path(place) for place in ([root] if root else self.places)]
        found = next((place for place in places if find_files(place, SPLITS[0])), None)
        if found is None and generated:
            found = generated_folder(places[0], self.dataset, generate_idx)
        if found is None:
            raise missing_data_error(self.dataset, places[0], self.advice)
        train, held_out = (read_split(found, split) for split in SPLITS)
        num_classes = int(max(split.labels.max() for split in (train, held_out))) + 1
        super().__init__(
            facts=DataFacts(self.dataset, tuple(train.images[torch.arange(1)].shape[1:]), num_classes, -1.0, 1.0),
            train=train,
            held_out=held_out,
            batch_size=batch_size,
            stream=stream,
            num_reference=num_reference,
        )


class FashionMnistData(IdxData):
    """Clothes (Xiao et al. 2017): 60,000 images of 28 x 28 pixels to train on, 10,000 held out, 10 classes."""

    dataset = "fashion_mnist"
    places = ("data/fashion_mnist", "/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw")
    advice = "install Debian's dataset-fashion-mnist, or put the four files of zalandoresearch/fashion-mnist there"


class MnistData(IdxData):
    """Handwritten digits (LeCun et al. 1998), in the same form."""

    dataset = "mnist"
    places = ("data/mnist", "data/MNIST/raw")
    advice = "put its four IDX files there, as torchvision.datasets.MNIST downloads them"
