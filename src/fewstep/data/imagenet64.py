"""ImageNet at 64 x 64 pixels: the official down-sampled npz batches, or a folder or zip of images by class."""

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from fewstep.data.cache import Chunk, Part, Source
from fewstep.data.decode import WHITE
from fewstep.data.generate import generate_imagenet64
from fewstep.data.imagefiles import HELD_OUT
from fewstep.data.imagefolder import ImageFolderData

SIZE, CLASSES = 64, 1000
BATCHES = ("train_data_batch_1..10.npz", "val_data.npz")
FULL = {"train": 1_281_167, HELD_OUT: 50_000}
CHUNK = 4096  # images read at a time
ADVICE = (
    f"get the npz files of Imagenet64 ({', '.join(BATCHES)}) at image-net.org (Download, Downsampled ImageNet), or a "
    "folder or zip of its images with train/CLASS and val/CLASS, and put them there"
)


def npz_source(root: Path) -> Source:
    """The official batches in `root` (Chrabaszcz et al. 2017) as the source of a cache.

    Each has `data`, uint8 (N, 12288), the red, green and blue planes of each image, and `labels` in 1..1000, which
    become 0..999 in the order of the ILSVRC devkit (its map_clsloc.txt), not that of the sorted WordNet ids.

    Raises:
        ValueError: a batch is missing, truncated or of another layout.
    """
    train = sorted(root.glob("train_data_batch_*.npz"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0))
    val = root / "val_data.npz"
    if not train or not val.is_file():
        missing = val.name if train else BATCHES[0]
        raise ValueError(f"{root} has npz batches of Imagenet64, but not {missing}; {ADVICE}")
    parts = {
        "train": [npz_part(path, f"train-{number:05d}") for number, path in enumerate(train)],
        HELD_OUT: [npz_part(val, f"{HELD_OUT}-00000")],
    }
    return Source(parts, (3, SIZE, SIZE), [str(number) for number in range(1, CLASSES + 1)])


def npz_part(path: Path, name: str) -> Part:
    """The part of one batch file; its key is made of the CRCs in the zip."""
    try:
        with ZipFile(path) as archive:
            crc = {info.filename: info.CRC for info in archive.infolist()}
            key = hashlib.sha256(f"imagenet64 {crc['data.npy']} {crc['labels.npy']}".encode()).hexdigest()
            with archive.open("data.npy") as file:
                (count, width), _ = npy_header(file)
    except (BadZipFile, KeyError, ValueError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    if width != 3 * SIZE * SIZE:
        raise ValueError(f"{path} must have images of {3 * SIZE * SIZE} values, got {width}; is it the 64 x 64 set?")
    return Part(name, key, count, partial(read_npz, path))


def npy_header(file: Any) -> tuple[tuple[int, int], np.dtype]:
    """Read the header of a .npy file: shape (N, values) and dtype.

    Raises:
        ValueError: it is not a two-dimensional uint8 array in C order.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if len(shape) != 2 or fortran or dtype != np.uint8:
        raise ValueError(f"data must be uint8 (N, {3 * SIZE * SIZE}) in C order, got {dtype} {shape}")
    return shape, dtype


def read_npz(path: Path) -> Iterator[Chunk]:
    """The images of a batch file in chunks, so that it is never wholly in memory.

    Raises:
        ValueError: the file is truncated or damaged (by the zip's CRCs), or a label is outside 1..1000.
    """
    try:
        with ZipFile(path) as archive:
            with archive.open("labels.npy") as file:
                labels = np.lib.format.read_array(file, allow_pickle=False).astype(np.int64)
            with archive.open("data.npy") as file:
                (count, width), _ = npy_header(file)
                if labels.shape != (count,) or not count or labels.min() < 1 or labels.max() > CLASSES:
                    raise ValueError(f"labels must be {count} numbers from 1 to {CLASSES}")
                for start in range(0, count, CHUNK):
                    classes = labels[start : start + CHUNK] - 1
                    pixels = np.frombuffer(file.read(len(classes) * width), np.uint8)
                    yield Chunk(pixels.reshape(len(classes), 3, SIZE, SIZE), classes)
                file.read(1)  # the end, where zipfile compares the CRC
    except (BadZipFile, KeyError, ValueError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is truncated, damaged or not a batch of Imagenet64 ({error}); get it again")


class ImageNet64Data(ImageFolderData):
    """ImageNet-64, converted once; 1,281,167 images to train on, 50,000 of the validation set held out.

    Args:
        root: the folder of the npz batches, or a folder or zip of images by class, which are cropped as in ADM.
        cache: folder for the converted images (16 GB), by default ROOT.cache.
        strict: refuse a damaged image file instead of skipping it with a warning.
        background: that transparent images of a folder or zip are put on: white, black or "#rrggbb".
        flip: mirror training images at random.
        num_reference: the most held-out images in the reference.
        generated: use generated files if `root` does not exist.

    Raises:
        ValueError: `root` does not exist, or has another layout.
    """

    dataset, advice, cache_suffix = "imagenet64", ADVICE, ".cache"
    generate = staticmethod(generate_imagenet64)

    def __init__(
        self,
        *,
        root: str,
        batch_size: int,
        stream: str,
        cache: str | None = None,
        strict: bool = False,
        background: str = WHITE,
        flip: bool = False,
        num_reference: int = 10_000,
        generated: bool = False,
    ) -> None:
        super().__init__(
            root=root,
            size=SIZE,
            batch_size=batch_size,
            stream=stream,
            cache=cache,
            strict=strict,
            background=background,
            channels=3,
            flip=flip,
            num_reference=num_reference,
            generated=generated,
        )

    def source(
        self, root: Path, size: int, hold_out_every: int, strict: bool, background: str, channels: str | int
    ) -> Source:
        if any(root.glob("*_data*.npz")):
            return replace(npz_source(root), background=background)
        return super().source(root, size, hold_out_every, strict, background, channels)

    def check(self) -> list[str]:
        counts = {"train": len(self.labels), HELD_OUT: len(self.held_out.labels)}
        full = "the full set" if counts == FULL else f"not the full set of {FULL['train']:,} and {FULL[HELD_OUT]:,}"
        return [*super().check(), f"counts: {full}"]
