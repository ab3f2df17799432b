"""WebDataset shards, streamed in an order that is a function of (stream, epoch): the place in it is a number."""

import json
import random
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.handlers import ignore_and_stop
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from fewstep.system.files import atomic_write
from fewstep.system.seeds import seed_for

INDEX = ".fewstep-index.json"
Raw = dict[str, Any]
"""A sample as it lies in a shard: extension -> bytes, and __key__ and __url__."""
IsSample = Callable[[set[str]], bool]
"""Whether files of these extensions make a sample."""
Sample = TypeVar("Sample")
Row = tuple[int, Any]
"""A sample and its number among all rows of all steps."""


class Shard(NamedTuple):
    """A .tar file and how many whole samples it begins with."""

    path: Path
    num_samples: int


def open_shards(root: Path, is_sample: IsSample, *, strict: bool) -> list[Shard]:
    """The shards of a folder, in the order of their names; their counts are kept in a file beside them.

    Raises:
        ValueError: none of them holds a sample; or with `strict`, one is cut short or damaged.
    """
    paths = sorted(root.glob("*.tar"))
    known, shards, changed = read_index(root / INDEX), [], False
    for path in paths:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        entry = known.get(path.name, {})
        if entry.get("stamp") != stamp or (strict and not entry.get("whole")):
            number, whole = scan(path, is_sample)
            if strict and not whole:
                raise ValueError(
                    f"{path} is truncated or damaged after {number} samples; copy it again, or use dataset.strict=false"
                )
            entry, changed = {"stamp": stamp, "count": number, "whole": whole}, True
        if not entry["whole"]:
            warnings.warn(
                f"{path} is truncated or damaged: only its first {entry['count']} samples are used", stacklevel=2
            )
        known[path.name] = entry
        if entry["count"]:
            shards.append(Shard(path, entry["count"]))
    if not shards:
        raise ValueError(f"no shard in {root} holds a sample: each needs an image and its caption under one name")
    if changed:
        write_index(root / INDEX, known)
    return shards


def read_index(path: Path) -> dict[str, Any]:
    """What is known of the shards; nothing, if the file cannot be read."""
    try:
        index = json.loads(path.read_text()).items()
        return {name: entry for name, entry in index if entry.keys() >= {"stamp", "count", "whole"}}
    except (OSError, ValueError, AttributeError):
        return {}


def write_index(path: Path, index: dict[str, Any]) -> None:
    """Keep what is known of the shards, where the folder can be written."""
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(index))
    except OSError as error:
        warnings.warn(f"the shards are counted anew each time, since {path} cannot be written: {error}", stacklevel=2)


def scan(path: Path, is_sample: IsSample) -> tuple[int, bool]:
    """How many samples a shard begins with, by its headers alone, and whether it is whole: a shard ends with zeros."""
    names: list[str] = []
    whole = False
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            for member in tar:  # ends without a word where a header is damaged, cut or not there
                if member.isfile():
                    names.append(member.name)
            file.seek(tar.offset)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.ReadError, EOFError):
        # The header of the last file was there, and the file itself was not.
        names = names[:-1]
    number, key, extensions = 0, None, set[str]()
    for name in [*names, ""]:
        prefix, extension = base_plus_ext(name)
        if prefix != key or not name:
            number += is_sample(extensions)
            key, extensions = prefix, set()
        if extension:
            extensions.add(extension.lower())
    return number, whole


def samples_of(shard: Shard, is_sample: IsSample) -> Iterator[Raw]:
    """The samples of a shard, in its order.

    Raises:
        ValueError: there are fewer than were counted: the file has changed.
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
    """One of `num_walks` endless walks, `number`, that share the shards of each epoch between them.

    Args:
        stream: names the order. buffer: samples of a shard that are shuffled with each other.
    """

    shards: Sequence[Shard]
    is_sample: IsSample
    stream: str
    number: int
    num_walks: int
    buffer: int

    def shards_of(self, epoch: int) -> list[Shard]:
        """This walk's shards in an epoch, in order."""
        order = np.random.default_rng(seed_for(self.stream, "shards", epoch)).permutation(len(self.shards))
        return [self.shards[index] for index in order[self.number :: self.num_walks]]

    def raw_from(self, place: int) -> Iterator[Raw]:
        """Samples number `place`, place + 1, ...: shards before it are not opened."""
        for epoch in count():
            for shard in self.shards_of(epoch):
                if place >= shard.num_samples:
                    place -= shard.num_samples
                    continue
                chance = random.Random(seed_for(self.stream, "within", shard.path.name, epoch))
                shuffled = shuffle(self.buffer, initial=self.buffer, rng=chance)(samples_of(shard, self.is_sample))
                yield from islice(shuffled, place, None)
                place = 0


def filled(
    raw: Iterator[Raw],
    decode: Callable[[Raw], Sample | None],
    patience: int,
    wanted: Iterable[bool] = repeat(True),
) -> Iterator[Sample | None]:
    """Samples as `decode` makes them; it gives None for a damaged one, whose place the next good one takes, so that
    places stay what they are.

    Args:
        wanted: of each place, whether its sample is; None stands in the others, which are not decoded.

    Raises:
        ValueError: `patience` samples in a row are damaged.
    """
    missing = 0
    for each, here in zip(raw, wanted, strict=False):
        if not here and not missing:
            yield None
            continue
        sample = decode(each)
        if sample is None:
            missing += 1
            if missing > patience:
                raise ValueError(
                    f"{missing} samples in a row are damaged, the last in {each['__url__']}; copy the shards again"
                )
            continue
        for _ in range(missing + 1):
            yield sample
        missing = 0


class Walks:
    """Rows of batches out of several walks: row q of all rows is sample q // num_walks of walk q % num_walks.

    Args:
        walks: all of them. decode, patience: see `filled`.
        batch_size: rows of a step over all shares. share, shares: which walks are taken here: every shares-th.
        rank, ranks: whose rows are, of all processes': an equal part of each step's, in order.
    """

    def __init__(
        self,
        walks: Sequence[Walk],
        decode: Callable[[Raw], Any],
        patience: int,
        batch_size: int,
        share: int = 0,
        shares: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.rank, self.part = rank, batch_size // ranks
        self.walks, self.decode, self.patience, self.batch_size = walks, decode, patience, batch_size
        self.numbers = range(share, len(walks), shares)
        self._next_step: int | None = None
        self._open: dict[int, Iterator[Any]] = {}

    def place(self, step: int, number: int) -> int:
        """How many samples of walk `number` come before that step."""
        return max(0, -(-(step * self.batch_size - number) // len(self.walks)))

    def rows(self, step: int) -> list[Row]:
        """(q, sample) of this share in that step; steps in turn read on, others begin anew."""
        if step != self._next_step:
            self._open = {n: self._begin(n, self.place(step, n)) for n in self.numbers}
        self._next_step = step + 1
        rows = []
        for number in self.numbers:
            start, stop = self.place(step, number), self.place(step + 1, number)
            rows += [
                (place * len(self.walks) + number, sample)
                for place, sample in zip(range(start, stop), self._open[number], strict=False)
                if self.is_wanted(place, number)
            ]
        return sorted(rows, key=lambda row: row[0])

    def is_wanted(self, place: int, number: int) -> bool:
        """Whether that sample of walk `number` is of this process."""
        return (place * len(self.walks) + number) % self.batch_size // self.part == self.rank

    def _begin(self, number: int, place: int) -> Iterator[Any]:
        wanted = (self.is_wanted(each, number) for each in count(place))
        return filled(self.walks[number].raw_from(place), self.decode, self.patience, wanted)


class Share:
    """What one process reads: for each step its rows."""

    def __init__(self, walks: Walks, start: int, stop: int) -> None:
        self.walks, self.start, self.stop = walks, start, stop

    def __iter__(self) -> Iterator[list[Row]]:
        return map(self.walks.rows, range(self.start, self.stop))


class Shares(IterableDataset[Any]):
    """One share for each worker; a DataLoader asks its workers in turn."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares = shares

    def __iter__(self) -> Iterator[list[Row]]:
        worker = get_worker_info()
        assert worker is not None
        return iter(self.shares[worker.id])
