"""Image files in a folder or a zip, by class, decoded to uint8 squares."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fewstep.data.cache import PART_BYTES, Chunk, Part, Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
CHUNK = 512
HELD_OUT = "val"


class ImageFile(NamedTuple):
    name: str  # below the root, with /
    stamp: tuple[int, int]  # size and modification time, in a zip size and CRC: changes with the file


class ImageFiles:
    """The image files below a folder or in a zip, sorted by name.

    Raises:
        ValueError: there is no image file, or the zip is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._zip = root, None
        if root.is_dir():
            found = [
                ImageFile(path.relative_to(root).as_posix(), stamp(path.stat()))
                for folder, _, names in os.walk(root, followlinks=True)
                for path in (Path(folder, name) for name in names)
                if is_image(path.relative_to(root))
            ]
        else:
            try:
                self._zip = ZipFile(root)
            except BadZipFile as error:
                raise ValueError(
                    f"{root} must be a folder or a zip of images, and is truncated, damaged or no zip; replace it"
                ) from error
            infos = self._zip.infolist()
            found = [
                ImageFile(info.filename, (info.file_size, info.CRC))
                for info in infos
                if is_image(PurePosixPath(info.filename))
            ]
        if not found:
            raise ValueError(f"{root} must hold images ({' '.join(SUFFIXES)}) and has none; is it the right one?")
        self.files = sorted(found)

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.root / name).read_bytes() if self._zip is None else self._zip.read(name)


def stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def is_image(path: Path | PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


class Labelled(NamedTuple):
    file: ImageFile
    label: int


def split_by_class(
    files: Sequence[ImageFile], root: Path, hold_out_every: int
) -> tuple[list[str], list[Labelled], list[Labelled]]:
    """The class names, the training files and the held-out files.

    A file's class is its top-level folder, or the folder below train/ or val/. val/ is held out; without it, every
    `hold_out_every`-th file of each class is. Labels number the sorted class names. A single folder around everything
    is ignored.

    Raises:
        ValueError: a file is in no class folder, a class of val/ is not in train/, or hold_out_every is below 2.
    """
    if hold_out_every < 2:
        raise ValueError(f"dataset.hold_out_every must be at least 2, got {hold_out_every}")
    names = [PurePosixPath(file.name).parts for file in files]
    # One folder around everything, as zips often have.
    while len({parts[0] for parts in names}) == 1 and all(len(parts) > 2 for parts in names) and names[0][0] != "train":
        names = [parts[1:] for parts in names]
    splits: dict[str, list[tuple[str, ImageFile]]] = {"train": [], HELD_OUT: []}
    for parts, file in zip(names, files, strict=True):
        split, rest = (parts[0], parts[1:]) if parts[0] in splits and len(parts) > 2 else ("train", parts)
        if len(rest) < 2:
            raise ValueError(f"{root} must have a folder for each class, and {file.name} is in none; move it into one")
        splits[split].append((rest[0], file))
    classes = sorted({name for name, _ in splits["train"]})
    unknown = sorted({name for name, _ in splits[HELD_OUT]} - set(classes))
    if unknown:
        raise ValueError(f"{root}/{HELD_OUT} has the class {unknown[0]}, which is not among those to train on; add it")
    label = {name: number for number, name in enumerate(classes)}
    train, held_out = ([Labelled(file, label[name]) for name, file in splits[split]] for split in splits)
    if not held_out:
        counts: Counter[int] = Counter()
        examples, train = train, []
        for example in examples:
            counts[example.label] += 1
            (train if counts[example.label] % hold_out_every else held_out).append(example)
    return classes, train, held_out


def image_source(root: Path, *, size: int, hold_out_every: int, strict: bool) -> Source:
    """The images of a folder or zip, cropped to squares of `size` pixels, as the source of a cache."""
    if size < 1:
        raise ValueError(f"dataset.size must be at least 1, got {size}")
    files = ImageFiles(root)
    classes, train, held_out = split_by_class(files.files, root, hold_out_every)
    per_part = max(1, PART_BYTES // (3 * size * size))

    def parts(split: str, examples: Sequence[Labelled]) -> list[Part]:
        found = []
        for start in range(0, len(examples), per_part):
            chosen = examples[start : start + per_part]  # their repr is part of the key of every cache
            key = hashlib.sha256(f"adm crop {size} {strict} {chosen}".encode()).hexdigest()
            chunks = partial(read_chunks, files, chosen, size, strict)
            found.append(Part(f"{split}-{start // per_part:05d}", key, len(chosen), chunks))
        return found

    return Source({"train": parts("train", train), HELD_OUT: parts(HELD_OUT, held_out)}, (3, size, size), classes)


def read_chunks(files: ImageFiles, examples: Sequence[Labelled], size: int, strict: bool) -> Iterator[Chunk]:
    """The images in chunks, decoded in threads; damaged files are skipped.

    Raises:
        ValueError: a file is damaged, and `strict` is true.
    """

    def load(example: Labelled) -> tuple[UInt8[np.ndarray, "3 size size"], str] | None:
        try:
            image = Image.open(BytesIO(files.read(example.file.name)))
            return centre_crop(image, size), image.mode
        except Exception as error:  # a damaged file raises errors of any type
            if strict:
                raise ValueError(
                    f"{files.root}: {example.file.name} is damaged or no image ({error}); replace it, or set "
                    "dataset.strict=false to leave such files out"
                ) from error
            return None

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(examples), CHUNK):
            chosen = examples[start : start + CHUNK]
            loaded = list(zip(chosen, pool.map(load, chosen), strict=True))
            good = [(*decoded, example.label) for example, decoded in loaded if decoded is not None]
            images = np.stack([image for image, _, _ in good]) if good else np.empty((0, 3, size, size), np.uint8)
            labels = np.array([label for _, _, label in good], np.int64)
            yield Chunk(
                images,
                labels,
                skipped=[example.file.name for example, decoded in loaded if decoded is None],
                converted=[mode for _, mode, _ in good if mode != "RGB"],
            )


def centre_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The central square, by ADM's preprocessing (Dhariwal & Nichol 2021, guided-diffusion's image_datasets).

    The image is halved by box averages while its shorter side is at least twice `size`, then resized bicubically to a
    shorter side of `size` (the longer rounded), then cropped. Grey, palette, transparent and 16-bit images are first
    converted to 8-bit RGB.

    Raises:
        ValueError: the pixels are floating-point numbers.
    """
    image = eight_bits(image).convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit image scaled to 8 bits, which Pillow would clip at 255; others unchanged.

    Raises:
        ValueError: the pixels are floating-point numbers, whose range is unknown.
    """
    if image.mode == "F":
        raise ValueError("an image must have pixels of 8 or 16 bits, and one is of mode F; convert it")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
