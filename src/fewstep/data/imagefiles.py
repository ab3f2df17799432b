"""Image files in a folder or a zip, by class, decoded to uint8 squares."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from fewstep.data import decode as decoder
from fewstep.data.cache import PART_BYTES, TRAIN, Chunk, Part, Source
from fewstep.data.decode import SUFFIXES, check_background, decode
from fewstep.data.label_table import read_label_table
from fewstep.data.labels import OWN
from fewstep.system.limits import MOST_SIDE, require_count
from fewstep.system.terminal import printable

CHUNK = 512
HELD_OUT = "val"
MOST_TIMES_AS_LONG = 16
TABLES = (".csv", ".tsv")
UNLABELLED = "unlabelled"  # class of files in no folder, where that is no error


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


@dataclass(frozen=True)
class Decoding:
    """How image files become squares.

    Args:
        size: of the squares, in pixels. strict: refuse damaged files instead of leaving them out.
        background: that transparent images are put on. channels: 1, 3, or auto, see `Source.auto_channels`.

    Raises:
        ValueError: a setting outside its range.
    """

    size: int
    strict: bool
    background: str
    channels: str | int

    def __post_init__(self) -> None:
        require_count(self.size, "dataset.size", most=MOST_SIDE)
        if self.channels not in ("auto", 1, 3):
            raise ValueError(f"dataset.channels must be auto, 1 or 3, got {self.channels!r}")
        if len(set(check_background(self.background))) > 1 and self.channels == 1:
            raise ValueError(
                f"dataset.channels=1 needs a grey dataset.background, got {self.background!r}; use channels=auto"
            )

    @property
    def key(self) -> str:
        """Changes with all that changes pixels."""
        return f"decoder {decoder.VERSION} {self.background} {self.channels} adm crop {self.size} {self.strict}"

    @property
    def per_part(self) -> int:
        """Images in a part of a cache."""
        return max(1, PART_BYTES // (3 * self.size * self.size))

    def source(self, parts: Mapping[str, Sequence[Part]], classes: Sequence[str]) -> Source:
        """The source of a cache of such squares."""
        shape = (1 if self.channels == 1 else 3, self.size, self.size)
        return Source(parts, shape, classes, self.background, self.channels == "auto")

    def made(self, shape: tuple[int, ...]) -> bool:
        """Whether images of that shape are such squares."""
        return shape in [(count, self.size, self.size) for count in (1, 3) if self.channels in ("auto", count)]

    def chunk(
        self, names: Sequence[str], labels: Int[np.ndarray, "count"], read: Callable[[int], bytes], place: Path
    ) -> Chunk:
        """Images decoded in threads; damaged ones are left out.

        Args:
            names: of the files in `place`, for messages. read: the bytes of the file of that number.

        Raises:
            ValueError: one is damaged, and `strict` is true.
        """

        def load(number: int) -> tuple[UInt8[np.ndarray, "3 size size"], tuple[str, ...]] | None:
            try:
                return decoded_square(read(number), self.size, self.background)
            except Exception as error:  # of any type: a zip may be damaged too
                if self.strict:
                    raise ValueError(
                        f"{place}: {names[number]} is damaged or no image ({error}); replace it, or set "
                        "dataset.strict=false to leave such files out"
                    ) from error
                return None

        with ThreadPoolExecutor() as pool:
            loaded = list(pool.map(load, range(len(names))))
        good = [each for each in loaded if each is not None]
        return Chunk(
            np.stack([image for image, _ in good]) if good else np.empty((0, 3, self.size, self.size), np.uint8),
            labels[[each is not None for each in loaded]],
            skipped=[name for name, each in zip(names, loaded, strict=True) if each is None],
            notes=[note for _, notes in good for note in notes],
        )


def split_by_class(
    files: Sequence[ImageFile], root: Path, hold_out_every: int, labels: str = OWN
) -> tuple[list[str], list[Labelled], list[Labelled]]:
    """The class names, the training files and the held-out files.

    A file's class is its top-level folder, or the folder below train/ or val/. val/ is held out; without it, every
    `hold_out_every`-th file of each class is. Labels number the sorted class names. A single folder around everything
    is ignored.

    Args:
        labels: own, the folders; a table, whose classes count, and whose files alone are used; with any other, none
            or made from features, files may be in no class folder.

    Raises:
        ValueError: a file is in no class folder, a class of val/ is not in train/, or hold_out_every is below 2; or see
            `read_label_table`.
    """
    if hold_out_every < 2:
        raise ValueError(f"dataset.hold_out_every must be at least 2, got {hold_out_every}")
    splits: dict[str, list[tuple[str, ImageFile]]] = {TRAIN: [], HELD_OUT: []}
    for (split, name), file in zip(splits_and_classes(files, root, labels), files, strict=True):
        if name is not None:
            splits[split].append((name, file))
    names = {name for name, _ in splits[TRAIN]}
    by_number = Path(labels).suffix in TABLES and all(name.isdecimal() for name in names)
    classes = sorted(names, key=int if by_number else None)
    unknown = sorted({name for name, _ in splits[HELD_OUT]} - set(classes))
    if unknown:
        raise ValueError(f"{root}/{HELD_OUT} has the class {unknown[0]}, which is not among those to train on; add it")
    label = {name: number for number, name in enumerate(classes)}
    train, held_out = ([Labelled(file, label[name]) for name, file in splits[split]] for split in splits)
    if not held_out:
        most = max(Counter(name for name, _ in splits[TRAIN]).values())
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
    return [printable(name) for name in classes], train, held_out


def splits_and_classes(files: Sequence[ImageFile], root: Path, labels: str) -> list[tuple[str, str | None]]:
    """The split of each file, and its class; None for a file that a table of labels leaves out.

    Raises:
        ValueError: a file is in no class folder, where these are the labels.
    """
    names = [PurePosixPath(file.name).parts for file in files]
    # One folder around everything, as zips often have.
    while len({parts[0] for parts in names}) == 1 and all(len(parts) > 2 for parts in names) and names[0][0] != TRAIN:
        names = [parts[1:] for parts in names]

    def split(least: int) -> list[tuple[str, tuple[str, ...]]]:
        is_split = [parts[0] in (TRAIN, HELD_OUT) and len(parts) > least for parts in names]
        return [(parts[0], parts[1:]) if own else (TRAIN, parts) for parts, own in zip(names, is_split, strict=True)]

    if Path(labels).suffix in TABLES:
        inside = root / labels
        path = inside if inside.is_file() and not Path(labels).is_file() else Path(labels).expanduser()
        table = read_label_table(path, [file.name for file in files])
        return [(each, table.get(file.name)) for (each, _), file in zip(split(1), files, strict=True)]
    by_folder = split(2)
    stranger = next((file for (_, rest), file in zip(by_folder, files, strict=True) if len(rest) < 2), None)
    has_flat_split = labels != OWN and any(len(parts) == 2 and parts[0] in (TRAIN, HELD_OUT) for parts in names)
    if stranger is None and not has_flat_split:
        return [(each, rest[0]) for each, rest in by_folder]
    if stranger is not None and labels == OWN:
        raise ValueError(
            f"{root} must have a folder for each class, and {stranger.name} is in none; move it into one, or say "
            "dataset.labels=FILE.csv, a table of file,label, or dataset.labels=none (guidance is off then)"
        )
    return [(each, UNLABELLED) for each, _ in split(1)]


def image_source(root: Path, decoding: Decoding, *, hold_out_every: int, labels: str = OWN) -> Source:
    """The images of a folder or zip, cropped to squares, as the source of a cache.

    Raises:
        ValueError: files that fit no class, see `split_by_class`.
    """
    files = ImageFiles(root)
    classes, train, held_out = split_by_class(files.files, root, hold_out_every, labels)

    def parts(split: str, examples: Sequence[Labelled]) -> list[Part]:
        found = []
        for start in range(0, len(examples), decoding.per_part):
            chosen = examples[start : start + decoding.per_part]  # their repr is part of the key of every cache
            key = hashlib.sha256(f"{decoding.key} {chosen}".encode()).hexdigest()
            chunks = partial(read_chunks, files, chosen, decoding)
            found.append(Part(f"{split}-{start // decoding.per_part:05d}", key, len(chosen), chunks))
        return found

    return decoding.source({TRAIN: parts(TRAIN, train), HELD_OUT: parts(HELD_OUT, held_out)}, classes)


def read_chunks(files: ImageFiles, examples: Sequence[Labelled], decoding: Decoding) -> Iterator[Chunk]:
    """The images in chunks; see `Decoding.chunk`."""
    for start in range(0, len(examples), CHUNK):
        chosen = examples[start : start + CHUNK]
        names = [example.file.name for example in chosen]
        labels = np.array([example.label for example in chosen], np.int64)
        yield decoding.chunk(names, labels, lambda number, names=names: files.read(names[number]), files.root)


def centre_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The central square of a decoded image, by ADM's preprocessing (Dhariwal & Nichol 2021, guided-diffusion).

    The image is halved by box averages while its shorter side is at least twice `size`, then resized bicubically to a
    shorter side of `size` (the longer rounded), then cropped. Of a grey image the three channels are equal. Of an image
    more than 16 times as long as wide the ends are cropped first: else a line of pixels becomes gigabytes.
    """
    left, top = (max(0, side - MOST_TIMES_AS_LONG * min(image.size)) // 2 for side in image.size)
    image = image.crop((left, top, image.width - left, image.height - top))
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
