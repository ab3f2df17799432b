"""Pairs of noise and a teacher's sample from it: made once, in checksummed shards, and read as training batches.

A store is a folder of store.json, which says what the pairs are made of, and of shards, each written atomically: an
interrupted making goes on with the missing ones, in any number of processes. A shard holds samples, labels and weights;
its noise follows from the seed and the shard's number. Samples are float16: values below 1 are rounded by at most
2.4e-4, a sixteenth of half a grey level of 8 bits, and a million pairs take half the disk.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.data.batch import Batch, Pairs
from fewstep.data.facts import DataFacts
from fewstep.data.noise import NoiseData, WithoutData, require_classes
from fewstep.diffusion.prediction import Condition
from fewstep.diffusion.schedule import Images
from fewstep.distributed.collectives import all_reduce_sum, local_rows, on_main_process, rank, world_size
from fewstep.system.files import atomic_write, tensor_digest, write_json
from fewstep.system.seeds import seed_for
from fewstep.system.stored import read_json

SHARD = 1024  # pairs: the most that an interruption costs, and what a batch is shuffled among
AT_ONCE = 256  # pairs that a teacher makes at a time
DESCRIPTION = "store.json"
CHECKSUM = "sha256"
FIELDS = ("x", "label", "w")

Make = Callable[[Images, Condition, Float[Tensor, "batch"]], Images]
"""(noise, label, w) -> the teacher's samples."""
Conditions = Callable[[int, int], Condition]
"""(number, count) -> the conditions of a shard."""


def whole_shards(num_pairs: int) -> int:
    """The number of pairs in whole shards: a multiple of SHARD, or itself where it is smaller."""
    return num_pairs - num_pairs % min(SHARD, num_pairs)


def bytes_per_pair(facts: DataFacts) -> int:
    """Of a shard: a sample, its label and its w."""
    values, w = prod(facts.shape), torch.float32.itemsize
    label = torch.long.itemsize if facts.degraded is None else values * torch.float32.itemsize
    return values * torch.float16.itemsize + label + w


@dataclass(frozen=True)
class PairStore:
    """The pairs in a folder.

    Args:
        facts: of the samples. num_pairs: see `whole_shards`.
        seed: names the random numbers. weights: of U[0, 1) the guidance weights.
        origin: what else the pairs depend on, as plain JSON: the teacher and how it is sampled.
        conditions: of each shard, where they are no classes, which are drawn.
    """

    folder: Path
    facts: DataFacts
    num_pairs: int
    seed: str
    weights: Callable[[Float[Tensor, "batch"]], Float[Tensor, "batch"]]
    origin: Mapping[str, Any]
    conditions: Conditions | None = None

    @property
    def shard_size(self) -> int:
        return min(SHARD, self.num_pairs)

    @property
    def num_shards(self) -> int:
        return self.num_pairs // self.shard_size

    @property
    def description(self) -> dict[str, Any]:
        """What store.json says, and what two stores of the same pairs have in common."""
        shape, classes = list(self.facts.shape), self.facts.num_classes
        own = {"num_pairs": self.num_pairs, "seed": self.seed, "shape": shape, "num_classes": classes}
        return json.loads(json.dumps({**self.origin, **own}))

    def path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05}.safetensors"

    def fill(self, make: Make, device: torch.device | str) -> None:
        """Make the missing shards, each process its share. Called by all processes.

        Raises:
            ValueError: the folder's pairs are others, a shard is damaged, or the teacher's samples are not finite.
        """
        for number in on_main_process(self.missing)[rank() :: world_size()]:
            self.write(number, make, device)
        all_reduce_sum(torch.zeros(()))  # wait for the others

    def missing(self) -> list[int]:
        """Numbers of the shards that are to be made; the others are verified.

        Raises:
            ValueError: see `fill`.
        """
        file = self.folder / DESCRIPTION
        if file.is_file():
            self.compare(file)
        else:
            write_json(file, self.description)
        found = [number for number in range(self.num_shards) if self.path(number).is_file()]
        for number in found:
            self.read(number)
        return sorted({*range(self.num_shards)} - {*found})

    def compare(self, file: Path) -> None:
        """Compare store.json with the pairs that are meant.

        Raises:
            ValueError: names what differs.
        """
        found: dict[str, Any] = read_json(file, dict[str, JsonValue], "delete its folder and the pairs are made again")
        ours = self.description
        changed = [
            f"{key} {found.get(key)!r}, not {ours.get(key)!r}"
            for key in ours | found
            if found.get(key) != ours.get(key)
        ]
        if changed:
            raise ValueError(
                f"{self.folder} holds pairs of another teacher or of other settings ({'; '.join(changed)}); delete it, "
                "or give another stage.store"
            )

    def write(self, number: int, make: Make, device: torch.device | str) -> None:
        """Make one shard."""
        noise, label, w = self.starts(number)
        starts = zip(*(each.to(device).split(AT_ONCE) for each in (noise, label, w)), strict=True)
        tensors = {"x": torch.cat([make(*some).cpu() for some in starts]).half(), "label": label, "w": w}
        if not bool(torch.isfinite(tensors["x"]).all()):
            raise ValueError(
                f"a teacher's samples must be finite and within float16, and those for {self.path(number)} are not; "
                "train the teacher again, or use stage.clip_target=true"
            )
        with atomic_write(self.path(number)) as temporary:
            save_file(tensors, temporary, metadata={CHECKSUM: self.checksum(number, tensors)})

    def noise(self, number: int) -> Images:
        """The noise of a shard."""
        return torch.randn(self.shard_size, *self.facts.shape, generator=self.generator(number))

    def generator(self, number: int) -> torch.Generator:
        """Of all that is drawn for a shard, the noise first."""
        return torch.Generator().manual_seed(seed_for(self.seed, "pairs", number))

    def starts(self, number: int) -> tuple[Images, Condition, Float[Tensor, "batch"]]:
        """The noise, labels and weights of a shard."""
        generator = self.generator(number)
        noise = torch.randn(self.shard_size, *self.facts.shape, generator=generator)
        if self.conditions is None:
            label = torch.randint(self.facts.num_classes, (self.shard_size,), generator=generator)
        else:
            label = self.conditions(number, self.shard_size)
        return noise, label, self.weights(torch.rand(self.shard_size, generator=generator)).float()

    def checksum(self, number: int, tensors: Mapping[str, Tensor]) -> str:
        """Hex SHA-256 of what a shard holds and of which shard of which store it is."""
        return sha256(
            f"{json.dumps(self.description, sort_keys=True)} {number} {tensor_digest(tensors)}".encode()
        ).hexdigest()

    def read(self, number: int) -> Pairs:
        """The pairs of a shard, verified.

        Raises:
            ValueError: it is damaged, or of another store.
        """
        path = self.path(number)
        try:
            with safe_open(path, framework="pt") as file:
                written, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in FIELDS}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and the same command makes it again") from error
        if written.get(CHECKSUM) != self.checksum(number, tensors):
            raise ValueError(
                f"{path} is damaged or of another store, its checksum is not that of what it holds; delete it, and the "
                "same command makes it again"
            )
        return Pairs(tensors["x"].float(), tensors["label"], self.noise(number), tensors["w"])


class PairData(WithoutData):
    """Batches of a store's pairs: each epoch takes the shards in a new order, and the pairs of each in a new one.

    So one shard is in memory at a time, and the noise of its pairs is drawn once an epoch.

    Raises:
        ValueError: the conditions are neither classes nor given.
    """

    def __init__(self, store: PairStore, *, batch_size: int, stream: str) -> None:
        super().__init__(store.facts, batch_size=batch_size, stream=stream)
        if store.conditions is None:
            require_classes(store.facts)
        self.store = store
        self._latest: tuple[tuple[int, int], Pairs] | None = None

    def shard(self, epoch: int, place: int) -> Pairs:
        """The pairs of the shard at that place in the epoch's order, shuffled."""
        if self._latest is None or self._latest[0] != (epoch, place):
            generator = torch.Generator().manual_seed(seed_for(self.stream, "order", epoch))
            number = int(torch.randperm(self.store.num_shards, generator=generator)[place])
            generator.manual_seed(seed_for(self.stream, "order", epoch, number))
            order = torch.randperm(self.store.shard_size, generator=generator)
            self._latest = (epoch, place), Pairs(*(each[order] for each in self.store.read(number)))
        return self._latest[1]

    def pairs(self, step: int) -> Pairs:
        """The pairs of that step's batch."""
        size, start, parts = self.store.shard_size, step * self.batch_size, []
        while (missing := (step + 1) * self.batch_size - start) > 0:
            count, row = divmod(start, size)
            parts.append([each[row : row + missing] for each in self.shard(*divmod(count, self.store.num_shards))])
            start += len(parts[-1][0])
        return Pairs(*map(torch.cat, zip(*parts, strict=True)))

    def batch(self, step: int) -> Batch:
        return Batch(*self.pairs(step)[:2])

    def rows(self, step: int) -> Pairs:
        return Pairs(*map(local_rows, self.pairs(step)))


class TrialPairs(WithoutData):
    """Pairs that no teacher made, to find what training on pairs costs before there are any."""

    def batch(self, step: int) -> Batch:
        if self.facts.degraded is None:
            return NoiseData(self.facts, batch_size=self.batch_size, stream=self.stream).batch(step)
        generator = torch.Generator().manual_seed(seed_for(self.stream, "noise", step))
        x, label = torch.randn(2, self.batch_size, *self.facts.shape, generator=generator)
        return Batch(x, label)

    def rows(self, step: int) -> Pairs:
        x, label = map(local_rows, self.batch(step))
        return Pairs(x, label, x, torch.zeros(len(x)))
