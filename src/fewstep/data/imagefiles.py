"""Image files in a folder or a zip, by class, decoded to uint8 squares."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fewstep.data import decode as decoder
from fewstep.data.cache import PART_BYTES, TRAIN, Chunk, Part, Source
from fewstep.data.decode import SUFFIXES, check_background, decode

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
                ImageFile(path.relative_to(root).as_posix(), stamp)
                for path, stamp in files_below(root)
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


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, tuple[int, int]]]:
    """The files below a folder, and size and modification time of each; a link that leads nowhere has (0, 0).

    Links to folders are followed, but not back into one of those `above`, which would never end.
    """
    real = folder.resolve()
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            try:
                stat = entry.stat()
            except OSError:
                yield path, (0, 0)
                continue
            if entry.is_dir():
                yield from files_below(path, (*above, real))
            elif entry.is_file():  # no pipe, which would be waited for
                yield path, (stat.st_size, stat.st_mtime_ns)


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
        most = max(Counter(name for name, _ in splits["train"]).values())
        if most < hold_out_every:
            fewer = f"set dataset.hold_out_every to at most {most}" if most > 1 else "add images"
            raise ValueError(
                f"{root} has at most {most} image(s) of a class, so that none is the {hold_out_every}th, to be "
                f"held out for figures; {fewer}, or a folder {HELD_OUT}/CLASS"
            )
        counts: Counter[int] = Counter()
        examples, train = train, []
        for example in examples:
            counts[example.label] += 1
            (train if counts[example.label] % hold_out_every else held_out).append(example)
    return classes, train, held_out


def image_source(
    root: Path, *, size: int, hold_out_every: int, strict: bool, background: str, channels: str | int
) -> Source:
    """The images of a folder or zip, cropped to squares of `size` pixels, as the source of a cache.

    Args:
        background: that transparent images are put on. channels: 1, 3, or auto, see `Source.auto_channels`.

    Raises:
        ValueError: a setting outside its range, or files that fit no class.
    """
    if size < 1:
        raise ValueError(f"dataset.size must be at least 1, got {size}")
    if channels not in ("auto", 1, 3):
        raise ValueError(f"dataset.channels must be auto, 1 or 3, got {channels!r}")
    if channels == 1 and len(set(check_background(background))) > 1:
        raise ValueError(f"dataset.channels=1 needs a grey dataset.background, got {background!r}; use channels=auto")
    files = ImageFiles(root)
    classes, train, held_out = split_by_class(files.files, root, hold_out_every)
    per_part = max(1, PART_BYTES // (3 * size * size))

    def parts(split: str, examples: Sequence[Labelled]) -> list[Part]:
        found = []
        for start in range(0, len(examples), per_part):
            chosen = examples[start : start + per_part]  # their repr is part of the key of every cache
            settings = f"decoder {decoder.VERSION} {background} {channels} adm crop {size} {strict}"
            key = hashlib.sha256(f"{settings} {chosen}".encode()).hexdigest()
            chunks = partial(read_chunks, files, chosen, size, strict, background)
            found.append(Part(f"{split}-{start // per_part:05d}", key, len(chosen), chunks))
        return found

    splits = {TRAIN: parts(TRAIN, train), HELD_OUT: parts(HELD_OUT, held_out)}
    is_auto = channels == "auto"
    return Source(splits, (1 if channels == 1 else 3, size, size), classes, background, is_auto)


def read_chunks(
    files: ImageFiles, examples: Sequence[Labelled], size: int, strict: bool, background: str
) -> Iterator[Chunk]:
    """The images in chunks, decoded in threads; damaged files are skipped.

    Raises:
        ValueError: a file is damaged, and `strict` is true.
    """

    def load(example: Labelled) -> tuple[UInt8[np.ndarray, "3 size size"], tuple[str, ...]] | None:
        try:
            return decoded_square(files.read(example.file.name), size, background)
        except Exception as error:  # of any type: a zip may be damaged too
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
                notes=[note for _, notes, _ in good for note in notes],
            )


def centre_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The central square of a decoded image, by ADM's preprocessing (Dhariwal & Nichol 2021, guided-diffusion).

    The image is halved by box averages while its shorter side is at least twice `size`, then resized bicubically to a
    shorter side of `size` (the longer rounded), then cropped. Of a grey image the three channels are equal.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB")).transpose(2, 0, 1)


def decoded_square(data: bytes, size: int, background: str) -> tuple[UInt8[np.ndarray, "3 size size"], tuple[str, ...]]:
    """The central square of an image file, and what was changed in it, in words.

    Raises:
        ValueError: see `decode`.
    """
    image, notes = decode(data, background)
    return centre_crop(image, size), (*notes, "enlarged") if min(image.size) < size else notes
