"""WebDataset shards, streamed in an order that is a function of (stream, epoch), so that a position is a number."""

import json
import random
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, groupby, islice, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import with_config
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.handlers import ignore_and_stop
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from fewstep.system.files import atomic_write
from fewstep.system.seeds import seed_for
from fewstep.system.stored import read_json
from fewstep.system.validation import STRICT, Count

INDEX = ".fewstep-index.json"
Raw = dict[str, Any]
"""An undecoded sample: extension -> bytes, and __key__ and __url__."""
IsSample = Callable[[set[str]], bool]
"""Whether files of these extensions make a sample."""
Sample = TypeVar("Sample")
Row = tuple[int, Any]
"""The number of a row among the rows of all steps, and its sample."""


class Shard(NamedTuple):
    """A .tar file and the number of complete samples at its beginning."""

    path: Path
    num_samples: int


class Scan(NamedTuple):
    """What a shard holds, by the names of its files.

    Attributes:
        count: of the complete samples at its beginning. whole: whether it is neither truncated nor damaged.
        scattered: samples whose files do not follow one another, so that they are not among the others.
        lacking: of the samples that are not complete, the extensions of their files and how many have just these.
    """

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # of tuples
    whole: bool
    scattered: int
    lacking: dict[str, int]


@with_config(STRICT)
@dataclass(frozen=True)
class ShardEntry:
    """What is cached of a shard: its size and time, and its `Scan`."""

    stamp: list[int]
    count: Count
    whole: bool
    scattered: Count
    lacking: dict[str, Count]


def open_shards(root: Path, is_sample: IsSample, *, strict: bool) -> list[Shard]:
    """The shards of a folder, sorted by name; their sample counts are cached in a file beside them.

    Raises:
        ValueError: none of them holds a sample; or with `strict`, one is truncated, damaged or unsorted.
    """
    paths = sorted(root.glob("*.tar"))
    index, shards, changed = read_index(root / INDEX), [], False
    for path in paths:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        entry = index.get(path.name, {})
        if entry.get("stamp") != stamp or (strict and not entry.get("whole")):
            found = scan(path, is_sample)
            if strict and not found.whole:
                raise ValueError(
                    f"{path} is truncated or damaged after {found.count} samples; copy it again, or use "
                    "dataset.strict=false"
                )
            entry, changed = {"stamp": stamp, **found._asdict()}, True
        if not entry["whole"]:
            warnings.warn(
                f"{path} is truncated or damaged: only its first {entry['count']} samples are used", stacklevel=2
            )
        elif entry["lacking"]:
            only = ", ".join(f"{number:,} with only {files}" for files, number in entry["lacking"].items())
            warnings.warn(f"{path} has samples without an image or without a caption, left out: {only}", stacklevel=2)
        elif not entry["count"] and not entry["scattered"]:
            warnings.warn(f"{path} is empty", stacklevel=2)
        if entry["scattered"]:
            message = (
                f"{path} has {entry['scattered']} samples whose image and caption do not follow one another, and "
                "cannot be streamed; pack it again, with tar --sort=name"
            )
            if strict:
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)
        index[path.name] = entry
        if entry["count"]:
            shards.append(Shard(path, entry["count"]))
    if not shards:
        raise ValueError(
            f"no shard in {root} holds a sample: each needs an image and its caption, one after the other, under one "
            "name, which ends at the first dot"
        )
    if changed:
        write_index(root / INDEX, index)
    return shards


def read_index(path: Path) -> dict[str, Any]:
    """The cached counts of the shards; empty if the file cannot be read."""
    try:
        index = read_json(path, dict[str, ShardEntry], "the shards are counted anew")
    except (OSError, ValueError):
        return {}
    return {name: asdict(entry) for name, entry in index.items()}


def write_index(path: Path, index: dict[str, Any]) -> None:
    """Cache the counts of the shards, with a warning where the folder cannot be written."""
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(index))
    except OSError as error:
        warnings.warn(f"the shards are counted anew each time, since {path} cannot be written: {error}", stacklevel=2)


def scan(path: Path, is_sample: IsSample) -> Scan:
    """Count the samples of a shard, from its headers."""
    names: list[str] = []
    is_complete = False
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            for member in tar:  # ends without an error at a header that is damaged, truncated or missing
                if member.isfile():
                    names.append(member.name)
            file.seek(tar.offset)
            is_complete = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)  # a tar ends with zeros
    except (tarfile.ReadError, EOFError):
        names = names[:-1]  # the last file has a header but not its content
    number, whole = 0, defaultdict[str, set[str]](set)
    for base, group in groupby(map(base_plus_ext, names), key=itemgetter(0)):
        extensions = {extension.lower() for _, extension in group if extension}
        number += is_sample(extensions)
        whole[base] |= extensions
    scattered = max(0, sum(map(is_sample, whole.values())) - number)
    lacking = Counter(f".{' .'.join(sorted(files))}" for files in whole.values() if files and not is_sample(files))
    return Scan(number, is_complete, scattered, dict(lacking))


def samples_of(shard: Shard, is_sample: IsSample) -> Iterator[Raw]:
    """The samples of a shard, in order.

    Raises:
        ValueError: there are fewer than were counted, so the file has changed.
    """
    with shard.path.open("rb") as stream:
        source = iter([{"url": str(shard.path), "stream": stream}])
        raw = group_by_keys(tar_file_expander(source, handler=ignore_and_stop), handler=ignore_and_stop)
        number = 0
        for sample in islice((s for s in raw if is_sample(set(s))), shard.num_samples):
            number += 1
            yield sample
    if number < shard.num_samples:
        raise ValueError(
            f"{shard.path} had {shard.num_samples} samples and now has {number}; run the same command again"
        )


@dataclass(frozen=True)
class Walk:
    """An endless shuffled stream of samples, one of `num_walks` that divide the shards of each epoch between them.

    Args:
        stream: key of the random numbers. number: of this walk, from 0. buffer: size of the shuffle buffer of a shard.
    """

    shards: Sequence[Shard]
    is_sample: IsSample
    stream: str
    number: int
    num_walks: int
    buffer: int

    def shards_of(self, epoch: int) -> list[Shard]:
        """The shards of this walk in an epoch, in order."""
        order = np.random.default_rng(seed_for(self.stream, "shards", epoch)).permutation(len(self.shards))
        return [self.shards[index] for index in order[self.number :: self.num_walks]]

    def raw_from(self, position: int) -> Iterator[Raw]:
        """The samples from `position` on; the shards before it are not opened."""
        for epoch in count():
            for shard in self.shards_of(epoch):
                if position >= shard.num_samples:
                    position -= shard.num_samples
                    continue
                generator = random.Random(seed_for(self.stream, "within", shard.path.name, epoch))
                shuffled = shuffle(self.buffer, initial=self.buffer, rng=generator)(samples_of(shard, self.is_sample))
                yield from islice(shuffled, position, None)
                position = 0


def decoded(
    raw: Iterator[Raw],
    decode: Callable[[Raw], Sample | None],
    max_damaged: int,
    needed: Iterable[bool] = repeat(True),
) -> Iterator[Sample | None]:
    """Decode a stream of samples; the next good sample replaces a damaged one, so that positions do not shift.

    Args:
        decode: gives None for a damaged sample.
        needed: for each position, whether its sample is; the others are not decoded, and are None.

    Raises:
        ValueError: more than `max_damaged` samples in a row are damaged.
    """
    missing = 0
    for each, is_needed in zip(raw, needed, strict=False):
        if not is_needed and not missing:
            yield None
            continue
        sample = decode(each)
        if sample is None:
            missing += 1
            if missing > max_damaged:
                raise ValueError(
                    f"{missing} samples in a row are damaged, the last in {each['__url__']}; copy the shards again"
                )
            continue
        for _ in range(missing + 1):
            yield sample
        missing = 0


class RowReader:
    """Reads the rows of batches from several walks: row q of all steps is sample q // num_walks of walk q % num_walks.

    Args:
        walks: all of them. decode, max_damaged: see `decoded`. batch_size: of the global batch.
        worker, num_workers: this reader reads every num_workers-th walk, from number `worker` on.
        rank, world_size: of the rows, this reader decodes the equal share of this rank in each step.
    """

    def __init__(
        self,
        walks: Sequence[Walk],
        decode: Callable[[Raw], Any],
        max_damaged: int,
        batch_size: int,
        worker: int = 0,
        num_workers: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.walks, self.decode, self.max_damaged, self.batch_size = walks, decode, max_damaged, batch_size
        self.numbers = range(worker, len(walks), num_workers)
        self.rank, self.local_batch_size = rank, batch_size // world_size
        self._next_step: int | None = None
        self._open: dict[int, Iterator[Any]] = {}

    def rows(self, step: int) -> list[Row]:
        """The rows of a step that are this reader's; consecutive steps read on, any other step reopens the shards."""
        start = step * self.batch_size
        if step != self._next_step:
            self._open = {n: self._samples(n, len(range(n, start, len(self.walks)))) for n in self.numbers}
        self._next_step = step + 1
        numbers = [row for row in range(start, start + self.batch_size) if row % len(self.walks) in self._open]
        read = [(row, next(self._open[row % len(self.walks)])) for row in numbers]
        return [(row, sample) for row, sample in read if self._is_local(row)]

    def _is_local(self, row: int) -> bool:
        return row % self.batch_size // self.local_batch_size == self.rank

    def _samples(self, number: int, position: int) -> Iterator[Any]:
        needed = map(self._is_local, count(position * len(self.walks) + number, len(self.walks)))
        return decoded(self.walks[number].raw_from(position), self.decode, self.max_damaged, needed)


class RowStream(IterableDataset[list[Row]]):
    """The rows of steps start, ..., stop - 1, a list for each step; in a DataLoader, each worker reads its walks.

    Args:
        reader: (worker, num_workers) -> its reader.
    """

    def __init__(self, reader: Callable[[int, int], RowReader], start: int, stop: int) -> None:
        self.reader, self.steps = reader, range(start, stop)

    def __iter__(self) -> Iterator[list[Row]]:
        worker = get_worker_info()
        reader = self.reader(0, 1) if worker is None else self.reader(worker.id, worker.num_workers)
        return map(reader.rows, self.steps)
