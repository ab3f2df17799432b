"""A cache of images as uint8 arrays, converted once from the published files and memory-mapped in training.

A cache folder holds parts, each an array NAME.images and a record NAME.json with its labels, its checksum and the key
of its source, and manifest.json, which lists the parts. Every file is written atomically, a record after its array and
the manifest after all records, so an interrupted conversion resumes with the missing parts.
"""

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Int, UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fewstep.data.cache_files import MANIFEST, read_manifest, read_record
from fewstep.data.decode import WHITE, luminance
from fewstep.data.mapped import MappedRows
from fewstep.data.split import Examples
from fewstep.system.files import atomic_write, remove, write_json

FORMAT = 3
TRAIN = "train"
OUTDATED = "is of an earlier version of fewstep, which ignored transparency"
PART_BYTES = 2**29  # of images in a part, where the source has none: the most that an interruption costs


class Chunk(NamedTuple):
    """Consecutive images of a part, uint8 (N, C, H, W), and labels, int64 (N,).

    Attributes:
        skipped: names of damaged files. notes: what the decoder changed, one for each image and change.
    """

    images: UInt8[np.ndarray, "count channels height width"]
    labels: Int[np.ndarray, "count"]
    skipped: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Part:
    """The source of one part.

    Attributes:
        key: changes with the source files and the settings. count: of images, with damaged ones.
    """

    name: str
    key: str
    count: int
    chunks: Callable[[], Iterator[Chunk]] = field(compare=False)


@dataclass(frozen=True)
class Source:
    """The source of a cache.

    Attributes:
        parts: of each split. shape: of an image that is kept; where it has one channel, images of three become grey.
        classes: their names. background: on which transparent images were put.
        auto_channels: one channel is kept where all training images are grey, whatever `shape` says.
    """

    parts: Mapping[str, Sequence[Part]]
    shape: tuple[int, int, int]
    classes: Sequence[str]
    background: str = WHITE
    auto_channels: bool = False

    @property
    def key(self) -> str:
        """Hash of the parts' keys, the shape, the classes and the settings."""
        keys = [[split, [part.key for part in parts]] for split, parts in self.parts.items()]
        settings = [self.shape, list(self.classes), self.background, self.auto_channels]
        return hashlib.sha256(json.dumps([FORMAT, keys, settings]).encode()).hexdigest()


class Cache:
    """A finished cache folder.

    Raises:
        ValueError: a part in the manifest is missing, or has not the length in its record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        self.key, self.shape, self.classes = manifest.key, manifest.shape, list(manifest.classes)
        self.background = manifest.background
        self.skipped: list[str] = []
        self.notes: Counter[str] = Counter()
        self._splits: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for split, parts in manifest.parts.items():
            self._splits[split] = []
            for name in parts:
                record = read_record(folder, name, self.shape)
                if record is None:
                    raise ValueError(
                        f"part {name} of the cache {folder} is gone or cut short; delete {folder / MANIFEST} and run "
                        "the same command again to convert that part anew"
                    )
                self._splits[split].append((name, record))
                self.skipped += record["skipped"]
                self.notes.update(record["notes"])
                self.notes.update(channel_notes(record, self.shape[0]))

    def examples(self, split: str) -> Examples:
        """Images and labels of a split; empty if there is no such split."""
        parts = self._splits.get(split, [])
        labels = torch.tensor([label for _, record in parts for label in record["labels"]], dtype=torch.int64)
        arrays = [
            np.memmap(self.folder / f"{name}.images", np.uint8, "r", shape=(record["count"], *self.shape))
            for name, record in parts
            if record["count"]
        ]
        return Examples(MappedRows(arrays) if arrays else torch.empty(0, *self.shape, dtype=torch.uint8), labels)

    @property
    def changes(self) -> str:
        """The number of images for each thing that was changed in them, in words; "" for none."""
        return ", ".join(f"{count:,} {note}" for note, count in self.notes.most_common())

    def warn(self) -> None:
        """Warn of images that were left out or changed."""
        if self.skipped:
            warnings.warn(
                f"{len(self.skipped)} damaged images were left out; {self.folder}/*.json name them", stacklevel=3
            )
        if self.notes:
            warnings.warn(f"images were changed: {self.changes}", stacklevel=3)

    def verify(self) -> list[str]:
        """Verify the checksum of every part; return a line with their number.

        Raises:
            ValueError: a part has changed since it was written.
        """
        names = [(name, record) for parts in self._splits.values() for name, record in parts]
        for name, record in names:
            if digest(self.folder / f"{name}.images", record["labels"]) != record["sha256"]:
                raise ValueError(
                    f"{self.folder / name}.images is damaged, its checksum differs; delete {self.folder / MANIFEST} "
                    "and run the same command again to convert that part anew"
                )
        return [f"cache {self.folder}: sha256 of {len(names)} parts"]


def cached(folder: Path, source: Source | None) -> Cache:
    """The cache in `folder`, first converted from `source` if it is not finished or has another source.

    Parts of an earlier conversion are kept if their key and checksum match. Without a source, the cache is used as it
    is.

    Raises:
        ValueError: the source is damaged, or the cache is.
        OSError: the disk is full; finished parts are kept.
    """
    if source is not None and stored_key(folder) != source.key:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # a second process waits, and finds it done
            stored = stored_key(folder)
            if stored != source.key:
                if (folder / MANIFEST).is_file():
                    reason = OUTDATED if stored is None else "is of other files or settings"
                    warnings.warn(f"the cache {folder} {reason}: it is made again", stacklevel=2)
                convert(folder, source)
                Cache(folder).warn()
    return Cache(folder)


def stored_key(folder: Path) -> str | None:
    """The key of the source of a finished cache, None if there is none, or one of another version.

    Raises:
        ValueError: manifest.json is damaged, or is not one of a cache.
    """
    if not (folder / MANIFEST).is_file():
        return None
    stored = read_manifest(folder)
    return stored.key if stored.format == FORMAT else None


def convert(folder: Path, source: Source) -> None:
    """Convert the missing parts, then write the manifest.

    With `auto_channels` all is kept in one channel until a training image has colour; then conversion starts anew.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    for split in source.parts:
        for temporary in folder.glob(f".{split}-*.tmp"):  # of a killed process: the lock is ours
            remove(temporary)
    shape, grey = source.shape, (1, *source.shape[1:])
    is_colour = not source.auto_channels or any(has_colour(folder, p, (shape, grey)) for p in source.parts[TRAIN])
    columns = (TextColumn("convert"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        if is_colour or not convert_parts(folder, source, grey, progress, only_grey=True):
            convert_parts(folder, source, shape, progress)
        else:
            shape = grey
    names = {part.name for parts in source.parts.values() for part in parts}
    for file in folder.glob("*.*"):  # removes the parts of other sources, and no other files
        if re.fullmatch(rf"({'|'.join(source.parts)})-\d{{5}}\.(images|json)", file.name) and file.stem not in names:
            file.unlink()
    manifest = {
        "format": FORMAT,
        "key": source.key,
        "shape": shape,
        "classes": list(source.classes),
        "background": source.background,
        "parts": {split: [part.name for part in parts] for split, parts in source.parts.items()},
    }
    write_json(folder / MANIFEST, manifest)


class ColourFoundError(Exception):
    """A training image has colour where all were grey so far."""


def convert_parts(
    folder: Path, source: Source, shape: tuple[int, int, int], progress: Progress, *, only_grey: bool = False
) -> bool:
    """Convert the missing parts to a shape; False, at once, at a training image of colour if `only_grey`."""
    parts = [(part, only_grey and split == TRAIN) for split, parts in source.parts.items() for part in parts]
    task, done = progress.add_task("", total=sum(part.count for part, _ in parts)), 0
    for part, refuse_colour in parts:
        if not is_valid(folder, part, shape):
            try:
                write_part(folder, part, partial(progress.advance, task), shape[0], refuse_colour=refuse_colour)
            except ColourFoundError:
                progress.remove_task(task)
                return False
        done += part.count
        progress.update(task, completed=done)
    return True


def write_part(folder: Path, part: Part, advance: Callable[[int], None], channels: int, *, refuse_colour: bool) -> None:
    """Convert one part; `advance` is called with the number of images of each chunk.

    Raises:
        ColourFoundError: an image has colour, and `refuse_colour` is true.
    """
    labels: list[int] = []
    skipped: list[str] = []
    notes: Counter[str] = Counter()
    grey = 0
    path = folder / f"{part.name}.images"
    (folder / f"{part.name}.json").unlink(missing_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for chunk in part.chunks():
            is_grey = (chunk.images == chunk.images[:, :1]).all((1, 2, 3))
            if refuse_colour and not is_grey.all():
                raise ColourFoundError
            images = luminance(chunk.images) if chunk.images.shape[1] > channels else chunk.images
            file.write(np.ascontiguousarray(images).data)
            labels += chunk.labels.tolist()
            skipped += chunk.skipped
            notes.update(chunk.notes)
            grey += int(is_grey.sum())
            advance(len(chunk.labels) + len(chunk.skipped))
    record = {"key": part.key, "count": len(labels), "sha256": digest(path, labels), "skipped": skipped}
    record |= {"notes": notes, "grey": grey, "labels": labels}
    write_json(folder / f"{part.name}.json", record)


def has_colour(folder: Path, part: Part, shapes: Sequence[tuple[int, int, int]]) -> bool:
    """Whether an earlier conversion of the part, to one of the shapes, found colour in it."""
    records = (read_record(folder, part.name, shape) for shape in shapes)
    return any(record and record["key"] == part.key and record["grey"] < record["count"] for record in records)


def channel_notes(record: Mapping[str, Any], channels: int) -> dict[str, int]:
    """How many images of a part are of other channels than those that are kept, in words."""
    if channels == 1:
        notes = {"of colour made grey": record["count"] - record["grey"]}
    else:
        notes = {"grey, kept in colour": record["grey"]}
    return {note: count for note, count in notes.items() if count}


def is_valid(folder: Path, part: Part, shape: Sequence[int]) -> bool:
    """Whether an earlier conversion finished the part, and it has not changed since."""
    record = read_record(folder, part.name, shape)
    if record is None or record["key"] != part.key:
        return False
    if digest(folder / f"{part.name}.images", record["labels"]) != record["sha256"]:
        warnings.warn(
            f"{folder / part.name}.images is damaged, its checksum differs; it is converted anew", stacklevel=2
        )
        return False
    return True


def digest(path: Path, labels: Sequence[int]) -> str:
    """Hex SHA-256 of the bytes of an array file and its labels."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    found.update(np.asarray(labels, np.int64).tobytes())
    return found.hexdigest()
