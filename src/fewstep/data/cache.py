"""A cache of images as uint8 arrays, converted once from the published files and memory-mapped in training.

A cache folder holds parts, each an array NAME.images and a record NAME.json with its labels, its checksum and the key
of its source, and manifest.json, which lists the parts. Every file is written atomically, a record after its array and
the manifest after all records, so an interrupted conversion resumes with the missing parts.
"""

import hashlib
import json
import mmap
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Int, UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fewstep.data.split import Examples
from fewstep.system.files import atomic_write, write_json

FORMAT = 2
MANIFEST = "manifest.json"
RECORD = {"key", "count", "sha256", "skipped", "converted", "labels"}
PART_BYTES = 2**29  # of images in a part, where the source has none: the most that an interruption costs
RELEASE_BYTES = 2**27  # after reading about so many, mapped pages are released to the system
FAULT_BYTES = 2**16  # that the system maps around each read


class Chunk(NamedTuple):
    """Consecutive images of a part, uint8 (N, C, H, W), and labels, int64 (N,).

    Attributes:
        skipped: names of damaged files. converted: the mode of each image that was not RGB.
    """

    images: UInt8[np.ndarray, "count channels height width"]
    labels: Int[np.ndarray, "count"]
    skipped: Sequence[str] = ()
    converted: Sequence[str] = ()


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
    """The source of a cache: parts of each split, shape of an image, names of the classes."""

    parts: Mapping[str, Sequence[Part]]
    shape: tuple[int, int, int]
    classes: Sequence[str]

    @property
    def key(self) -> str:
        """Hash of the parts' keys, the shape and the classes."""
        keys = [[split, [part.key for part in parts]] for split, parts in self.parts.items()]
        return hashlib.sha256(json.dumps([FORMAT, keys, self.shape, list(self.classes)]).encode()).hexdigest()


class MappedImages:
    """The images of several memory-mapped files, indexed as one array.

    Pages that were read are released now and then, so that the resident memory of a long training stays bounded; the
    system's page cache keeps what it has room for.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._maps, self._arrays, starts = [], [], [0]
        for path, count in files:
            if not count:
                continue
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            mapped.madvise(mmap.MADV_RANDOM)  # no read-ahead
            self._maps.append(mapped)
            self._arrays.append(np.frombuffer(mapped, np.uint8).reshape(count, *self.shape))
            starts.append(starts[-1] + count)
        self._starts = np.array(starts)
        self._mapped = 0

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Int[Tensor, "batch"]) -> UInt8[Tensor, "batch channels height width"]:
        numbers = index.numpy()
        parts = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = numbers - self._starts[parts]
        images = np.empty((len(numbers), *self.shape), np.uint8)
        for image, part, row in zip(images, parts.tolist(), rows.tolist(), strict=True):
            image[...] = self._arrays[part][row]
        self._mapped += len(numbers) * (prod(self.shape) + FAULT_BYTES)
        if self._mapped > RELEASE_BYTES:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._mapped = 0
        return torch.from_numpy(images)


class Cache:
    """A finished cache folder.

    Raises:
        ValueError: a part in the manifest is missing, or has not the length in its record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = json.loads((folder / MANIFEST).read_text())
        self.key: str = manifest["key"]
        self.shape: tuple[int, ...] = tuple(manifest["shape"])
        self.classes: list[str] = manifest["classes"]
        self.skipped: list[str] = []
        self.converted: Counter[str] = Counter()
        self._splits: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for split, parts in manifest["parts"].items():
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
                self.converted.update(record["converted"])

    def examples(self, split: str) -> Examples:
        """Images and labels of a split; empty if there is no such split."""
        parts = self._splits.get(split, [])
        files = [(self.folder / f"{name}.images", record["count"]) for name, record in parts]
        labels = [torch.tensor(record["labels"], dtype=torch.int64) for _, record in parts]
        return Examples(MappedImages(files, self.shape), torch.cat([torch.zeros(0, dtype=torch.int64), *labels]))

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
            if stored_key(folder) != source.key:
                convert(folder, source)
    return Cache(folder)


def stored_key(folder: Path) -> str | None:
    """The key of the source of a finished cache, None if there is none.

    Raises:
        ValueError: manifest.json is damaged, or is not one of a cache.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    try:
        stored = json.loads(manifest.read_text())
        return stored["key"] if stored["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{manifest} is not that of a cache, or is damaged; delete it, or choose another folder with dataset.cache"
        ) from error


def convert(folder: Path, source: Source) -> None:
    """Convert the missing parts, then write the manifest."""
    (folder / MANIFEST).unlink(missing_ok=True)
    parts = [part for split in source.parts.values() for part in split]
    for split in source.parts:
        for temporary in folder.glob(f".{split}-*.tmp"):  # of a killed process: the lock is ours
            temporary.unlink()
    columns = (TextColumn("convert"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=sum(part.count for part in parts))
        skipped, converted = 0, Counter[str]()
        for part in parts:
            record = valid_record(folder, part, source.shape) or write_part(folder, part, progress, task)
            skipped += len(record["skipped"])
            converted.update(record["converted"])
            progress.update(task, completed=sum(p.count for p in parts[: parts.index(part) + 1]))
    if skipped:
        warnings.warn(f"{skipped} damaged images were left out; {folder}/*.json name them", stacklevel=2)
    if converted:
        warnings.warn(f"{conversions(converted)} became RGB", stacklevel=2)
    names = {part.name for part in parts}
    for file in folder.glob("*.*"):  # removes the parts of other sources, and no other files
        if re.fullmatch(rf"({'|'.join(source.parts)})-\d{{5}}\.(images|json)", file.name) and file.stem not in names:
            file.unlink()
    manifest = {
        "format": FORMAT,
        "key": source.key,
        "shape": source.shape,
        "classes": list(source.classes),
        "parts": {split: [part.name for part in parts] for split, parts in source.parts.items()},
    }
    write_json(folder / MANIFEST, manifest)


def conversions(converted: Counter[str]) -> str:
    """The number of converted images, in all and by mode, in words."""
    modes = ", ".join(f"{count:,} {mode}" for mode, count in sorted(converted.items()))
    return f"{converted.total():,} images of other modes ({modes})" if converted else "no image of another mode"


def write_part(folder: Path, part: Part, progress: Progress, task: Any) -> dict[str, Any]:
    """Convert one part; return its record."""
    labels: list[int] = []
    skipped: list[str] = []
    converted: Counter[str] = Counter()
    path = folder / f"{part.name}.images"
    (folder / f"{part.name}.json").unlink(missing_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for chunk in part.chunks():
            file.write(np.ascontiguousarray(chunk.images).data)
            labels += chunk.labels.tolist()
            skipped += chunk.skipped
            converted.update(chunk.converted)
            progress.advance(task, len(chunk.labels) + len(chunk.skipped))
    record = {"key": part.key, "count": len(labels), "sha256": digest(path, labels), "skipped": skipped}
    record |= {"converted": converted, "labels": labels}
    write_json(folder / f"{part.name}.json", record)
    return record


def valid_record(folder: Path, part: Part, shape: Sequence[int]) -> dict[str, Any] | None:
    """The record of a part that an earlier conversion finished and that has not changed since, else None."""
    record = read_record(folder, part.name, shape)
    if record is None or record["key"] != part.key:
        return None
    if digest(folder / f"{part.name}.images", record["labels"]) != record["sha256"]:
        warnings.warn(
            f"{folder / part.name}.images is damaged, its checksum differs; it is converted anew", stacklevel=2
        )
        return None
    return record


def read_record(folder: Path, name: str, shape: Sequence[int]) -> dict[str, Any] | None:
    """The record of a part, None if it or its array is missing or damaged, or the array has another length."""
    path, images = folder / f"{name}.json", folder / f"{name}.images"
    if not path.is_file() or not images.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        is_complete = images.stat().st_size == record["count"] * prod(shape) and record.keys() >= RECORD
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if is_complete else None


def digest(path: Path, labels: Sequence[int]) -> str:
    """Hex SHA-256 of the bytes of an array file and its labels."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    found.update(np.asarray(labels, np.int64).tobytes())
    return found.hexdigest()
