"""NumPy arrays in .npz and .npy files: which are images and labels, in what layout and range. Nothing is unpickled."""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isqrt, prod
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

TRAIN, HELD_OUT = "train", "val"
SPLITS = {"train": TRAIN, "val": HELD_OUT, "valid": HELD_OUT, "validation": HELD_OUT, "test": "test"}
IMAGES = ("images", "image", "x", "data", "imgs", "pixels", "samples", "arr_0")
LABELS = ("labels", "label", "y", "targets", "target", "classes", "class", "arr_1")
CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, colour, colour and alpha
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))  # that are recognised, in this order
ROWS = 1024  # images looked at or converted at a time
DAMAGE = (BadZipFile, ValueError, EOFError, OSError, zlib.error, KeyError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class StoredArray:
    """An array of a file, of which the header alone has been read.

    Attributes:
        file: .npy, or .npz with the array's `key`. stamp: changes with the file.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stamp: tuple[int, int]

    @cached_property
    def values(self) -> Shaped[np.ndarray, "..."]:
        """The array; one of a .npy file is memory-mapped.

        Raises:
            ValueError: the file is damaged, or the array holds Python objects.
        """
        self.require_plain()
        try:
            if self.file.suffix == ".npy":
                return np.load(self.file, mmap_mode="r", allow_pickle=False)
            with np.load(self.file, allow_pickle=False) as archive:
                return archive[self.key]
        except DAMAGE as error:
            raise damaged(self.file, error) from error

    def require_plain(self) -> None:
        """Raise a ValueError for an array of Python objects."""
        if self.dtype.hasobject:
            raise ValueError(
                f"{self.file} has Python objects in {self.key}, which could run code, and is not opened; save it as an "
                "array of numbers"
            )

    @property
    def title(self) -> str:
        """Key, dtype and shape, for messages."""
        return f"{self.key} {self.dtype} {self.shape}"


def damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is truncated, damaged or no file of NumPy arrays ({error}); replace it")


def arrays_in(root: Path) -> dict[str, StoredArray]:
    """The arrays of a .npz or .npy file, or of a folder of .npy files, by key; that of a .npy file is its name.

    Raises:
        ValueError: there is none, or a file is damaged.
    """
    files = sorted(root.glob("*.npy")) if root.is_dir() else [root]
    try:
        found = [array for file in files for array in headers_of(file)]
    except DAMAGE as error:
        raise damaged(root, error) from error
    if not found:
        raise ValueError(f"{root} must be a .npz or .npy file, or a folder of .npy files, and has no array")
    return {array.key: array for array in found}


def headers_of(file: Path) -> list[StoredArray]:
    """The arrays of one file; raises one of DAMAGE where they are not as long as their headers say."""
    stat = file.stat()
    if file.suffix == ".npy":
        with file.open("rb") as opened:
            shape, dtype = read_header(opened, stat.st_size)
        return [StoredArray(file, file.stem, shape, dtype, (stat.st_size, stat.st_mtime_ns))]
    found = []
    with ZipFile(file) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                with archive.open(info) as opened:
                    shape, dtype = read_header(opened, info.file_size)
                key = info.filename.removesuffix(".npy")
                found.append(StoredArray(file, key, shape, dtype, (info.file_size, info.CRC)))
    return found


def read_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a .npy file of `size` bytes."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if not dtype.hasobject and size - file.tell() != prod(shape) * dtype.itemsize:
        raise ValueError(f"it has {size - file.tell()} bytes of values for {dtype} {shape}")
    return shape, dtype


class Pair(NamedTuple):
    """The images of a split and their labels, None where there are none."""

    images: StoredArray
    labels: StoredArray | None


def pairs_in(arrays: Mapping[str, StoredArray], root: Path) -> dict[str, Pair]:
    """Images and labels of each split, recognised by their keys: images, x, x_train, test_labels, ...

    Where no key is that of images, the only array that can be images is; no split in its key means train.

    Raises:
        ValueError: none, or several, can be the training images, or images are not of numbers or have no pixels.
    """
    found: dict[tuple[str, str], StoredArray] = {}
    for key, array in arrays.items():
        split, role = role_of(key)
        if role and (split, role) not in found:
            found[split, role] = array
    if (TRAIN, "images") not in found:
        shaped = [array for key, array in arrays.items() if len(array.shape) > 2 and role_of(key)[1] != "images"]
        if len(shaped) != 1:
            titles = ", ".join(array.title for array in arrays.values())
            raise ValueError(
                f"{root} must name its images and labels as np.savez(FILE, images=..., labels=...) does, or x_train, "
                f"y_train, x_test and y_test, and has {titles:.300}; save it so"
            )
        found[TRAIN, "images"] = shaped[0]
    splits = [split for split, role in found if role == "images"]
    for images in (found[split, "images"] for split in splits):
        images.require_plain()
        if images.dtype.kind not in "biuf" or 0 in images.shape[1:]:
            raise ValueError(f"{root} must have images of numbers, of one pixel at least, and has {images.title}")
    return {split: Pair(found[split, "images"], found.get((split, "labels"))) for split in splits}


def role_of(key: str) -> tuple[str, str]:
    """The split that a key names, train for none, and whether it is of images or of labels; "" for neither."""
    words = [word for word in re.split(r"[_\W]+", key.lower()) if word]
    splits = [SPLITS[word] for word in words if word in SPLITS]
    name = "_".join(word for word in words if word not in SPLITS)
    role = "images" if name in IMAGES else "labels" if name in LABELS else ""
    return (splits or [TRAIN])[0], role


def layout_of(shape: tuple[int, ...], what: str) -> tuple[str, tuple[int, int, int]]:
    """The layout of an array of images, as "N H W C", and (channels, height, width) of one.

    Raises:
        ValueError: it is none of N H W, N H W C, N C H W, and N rows of a square's pixels.
    """
    if len(shape) == 4 and shape[3] in CHANNELS:
        return "N H W C", (shape[3], shape[1], shape[2])
    if len(shape) == 4 and shape[1] in CHANNELS:
        return "N C H W", (shape[1], shape[2], shape[3])
    if len(shape) == 3:
        return "N H W", (1, shape[1], shape[2])
    if len(shape) == 2 and shape[1] and isqrt(shape[1]) ** 2 == shape[1]:
        return "N rows of a square's pixels", (1, isqrt(shape[1]), isqrt(shape[1]))
    raise ValueError(f"{what} must be images as N H W, N H W C or N C H W, of 1, 3 or 4 channels, got {shape}")


def in_channels_first(values: Shaped[np.ndarray, "..."], layout: str) -> Shaped[np.ndarray, "n c h w"]:
    """Rows of an array in its layout as N C H W."""
    if layout == "N H W C":
        return values.transpose(0, 3, 1, 2)
    if layout == "N C H W":
        return values
    side = isqrt(values.shape[1]) if values.ndim == 2 else values.shape[1]
    return values.reshape(len(values), 1, side, -1)


def range_of(array: StoredArray) -> tuple[float, float]:
    """The range of stored values, of RANGES, that black and white are the ends of.

    8 bits are 0..255, or 0 and 1. Of other numbers it is the first range that holds all values and is more than half
    used, so that 12 bits in 16 are not taken for the dark part of 16.

    Raises:
        ValueError: there is none.
    """
    low, high = (extreme(array, pick) for pick in (min, max))
    if array.dtype == np.uint8 and high > 1:
        return 0.0, 255.0
    for start, end in RANGES:
        if start <= low and high <= end and (max(-low, high) > end / 2 or array.dtype == bool):
            return start, end
    raise ValueError(
        f"the range of {array.title} is not known: values go from {low:g} to {high:g}, which is none of 0..1, "
        "-1..1, 0..255 and 0..65535; say what black and white are with dataset.value_range=[BLACK,WHITE]"
    )


def extreme(array: StoredArray, pick: Any) -> float:
    """The least or the greatest value (`pick` is min or max).

    Raises:
        ValueError: one is no finite number.
    """
    reduce = np.min if pick is min else np.max
    rows = [array.values[start : start + ROWS] for start in range(0, len(array.values), ROWS)]
    found = pick((float(reduce(each)) for each in rows), default=0.0)
    if not np.isfinite(found):
        raise ValueError(f"{array.title} in {array.file} must be finite numbers, and has {found:g}; leave those out")
    return found


def to_bytes(values: Shaped[np.ndarray, "..."], limits: tuple[float, float]) -> UInt8[np.ndarray, "..."]:
    """Values of a range as 0..255, rounded; what lies outside is clipped."""
    low, high = limits
    if values.dtype == np.uint8 and limits == (0.0, 255.0):
        return values
    scaled: Float[np.ndarray, ...] = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)


def class_labels(array: StoredArray, count: int) -> Int[np.ndarray, "count"] | Shaped[np.ndarray, "count"]:
    """One label for each of `count` images: whole numbers from 0, or texts; given so, as a column, or one-hot.

    Raises:
        ValueError: they are of another number or form.
    """
    what, values = f"the labels {array.title} in {array.file}", np.asarray(array.values)
    if len(array.shape) not in (1, 2) or array.shape[0] != count:
        raise ValueError(f"{what} must be one for each of {count:,} images; save them so")
    if values.ndim == 2 and values.shape[1] > 1:
        numbers = values.astype(np.float64) if values.dtype.kind in "biuf" else np.zeros(1)
        if not (np.isin(numbers, (0, 1)).all() and (numbers.sum(-1) == 1).all()):
            raise ValueError(
                f"{what} must be of one class for each image, as numbers or one-hot, and have several columns that are "
                "not; save one of them"
            )
        return numbers.argmax(1)
    values = values.reshape(count)
    if values.dtype.kind in "US":
        return values if values.dtype.kind == "U" else np.char.decode(values, "utf-8", "backslashreplace")
    if values.dtype.kind not in "biuf" or not (np.isfinite(values).all() and (values == values.round()).all()):
        raise ValueError(f"{what} must be whole numbers or texts of classes; save them so")
    if count and not 0 <= values.min() <= values.max() < 2**63:
        raise ValueError(
            f"{what} must be from 0 to 2^63 - 1, and go from {values.min():g} to {values.max():g}; leave unlabelled "
            "images out"
        )
    return values.astype(np.int64)
