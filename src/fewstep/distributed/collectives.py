"""The processes of one run: which rows of a batch are this one's, and what all of them agree on.

They all run the same program. What is drawn is drawn for the whole batch by each of them, from the same seed, and each
keeps its rows: the numbers do not depend on how many there are. What is written is written by the first. With one
process every function here is the identity.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

# One that died is noticed at once; this is for one that works alone, like the first when it converts a data set.
PATIENCE = timedelta(days=1)
SPEAK_SECONDS = 5.0  # to wait for the first process to say the same error
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
_board: Store | None = None  # where they leave each other notes, even when one has failed


class OtherProcessFailedError(RuntimeError):
    """Another process of this run failed; `status` is what to exit with."""

    def __init__(self, status: int) -> None:
        super().__init__("another process of this run has ended without a word; the same command goes on")
        self.status = status


def joined() -> bool:
    """Whether this process has met its fellows."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def together(device: str, *, alone: bool = False) -> Iterator[None]:
    """Meet the fellows for as long as the block runs: through gloo, and NCCL besides where `device` is cuda.

    Args:
        alone: meet nobody but be a group of one, which FSDP needs; where nobody else was started.
    """
    global _board
    started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if joined() or not (started or alone):
        yield
        return
    if started:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        _board, number, count = next(iter(rendezvous("env://", timeout=PATIENCE)))
    else:
        _board, number, count = dist.HashStore(), 0, 1  # pyright: ignore[reportPrivateImportUsage]
        os.environ.update(ALONE)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=_board, rank=number, world_size=count, timeout=PATIENCE)
    try:
        yield
        dist.barrier()  # the first one's store is there until all have done
    except BaseException as error:
        if is_loss_of_others(error):
            raise OtherProcessFailedError(1) from error
        if not isinstance(error, OtherProcessFailedError) and _board is not None:
            _board.set("failed", str(number))  # whoever loses contact now knows why
        raise
    finally:
        if device == "cpu" or count == 1 or sys.exc_info()[0] is None:  # NCCL would wait for a process that is gone
            dist.destroy_process_group()
        if not started:
            for name in ALONE:
                del os.environ[name]


def rank() -> int:
    """Number of this process, from 0; before they have met, as it was told at its start."""
    if joined():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if num_processes() > 1 else 0


def num_processes() -> int:
    """How many there are."""
    if joined():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_shares(batch_size: int) -> None:
    """Refuse a batch of which the processes cannot have equal shares.

    Raises:
        ValueError: says both numbers.
    """
    if batch_size % num_processes():
        raise ValueError(
            f"a batch must divide over the processes, got {batch_size} images for {num_processes()}; change "
            "stage.training.batch_size (or trainer.max_images, which caps it) or trainer.devices"
        )


def mine(whole: Tensor) -> Tensor:
    """This process's rows of what belongs to the whole batch: as many for each, in the order of their numbers.

    Raises:
        ValueError: the rows do not divide over the processes.
    """
    if num_processes() == 1:
        return whole
    require_shares(len(whole))
    share = len(whole) // num_processes()
    return whole[rank() * share : (rank() + 1) * share]


def gathered(part: Tensor) -> Tensor:
    """The rows of all processes on each of them, in the order of their numbers; they may be of different counts."""
    if not joined():
        return part
    counts = torch.zeros(num_processes(), dtype=torch.long, device=part.device)
    counts[rank()] = len(part)
    dist.all_reduce(counts)
    most = int(counts.max())
    padded = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(num_processes())]
    dist.all_gather(parts, padded)
    return torch.cat([rows[:count] for rows, count in zip(parts, counts.tolist(), strict=True)])


def part_of(count: int) -> slice:
    """This process's share of `count` things that need not divide: in the order of the processes, as even as can be."""
    share, rest = divmod(count, num_processes())
    start = rank() * share + min(rank(), rest)
    return slice(start, start + share + (rank() < rest))


def all_true(holds: Tensor) -> Tensor:
    """Where it holds on all processes: a truth value in each place, on the CPU."""
    if not joined():
        return holds
    everywhere = holds.int()
    dist.all_reduce(everywhere, dist.ReduceOp.MIN)
    return everywhere.bool()


def summed(value: Tensor) -> Tensor:
    """The sum of what each process has, in each place; on each of them."""
    if not joined():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of what each process has, in each place; on each of them."""
    return summed(value) / num_processes()


def led(value: Callable[[], T]) -> T:
    """What `value` gives on each process, on the first one first: the others find what it has written, like a cache.

    Raises:
        OtherProcessFailedError: on the others, where the first one raised.
    """
    first: list[T] = []
    agreed(lambda: first.append(value()))
    return first[0] if first else value()


def agreed(value: Callable[[], T]) -> T:
    """What `value` gives on the first process, on all of them; the others wait for it and do not call it.

    Raises:
        OtherProcessFailedError: on the others, where the first one raised.
    """
    if not joined():
        return value()
    said: list[tuple[T | None, int]] = [(None, 1)]
    if rank() == 0:
        try:
            said = [(value(), 0)]
        except Exception as error:
            said = [(None, 2 if isinstance(error, ValueError | OSError) else 1)]
            dist.broadcast_object_list(said)
            raise
    dist.broadcast_object_list(said)
    result, failed = said[0]
    if failed:
        raise OtherProcessFailedError(failed)
    return result  # pyright: ignore[reportReturnType] (what the first process made is a T)


def as_said_here(error: BaseException, line: str, seconds: float = SPEAK_SECONDS) -> str | None:
    """The line of an error as this process should say it, so that it is said once; None where another one says it.

    The first process says its own; another one waits a moment for the first to say the same, and says else who it is.
    Before they have met all of a machine fail alike, and the first there speaks.
    """
    if num_processes() == 1:
        return line
    if _board is None:
        return line if os.environ.get("LOCAL_RANK", "0") == "0" else None
    wait, others = timedelta(seconds=seconds), range(1, num_processes())
    same = explained = False
    try:
        explained = _board.check(["failed"])
        _board.set(f"error of {rank()}", line)
        if rank() > 0 and not isinstance(error, OtherProcessFailedError):
            _board.wait(["error of 0"], wait)
            same = _board.get("error of 0").decode() == line
    except dist.DistError:  # the first has nothing to say, or is gone
        pass
    try:
        _board.set(f"heard by {rank()}", "")
        if rank() == 0:  # who may keep the board
            _board.wait([f"heard by {other}" for other in others], wait)
    except dist.DistError:
        pass
    if same or (explained and isinstance(error, OtherProcessFailedError)):
        return None
    return line if rank() == 0 and not isinstance(error, OtherProcessFailedError) else f"rank {rank()}: {line}"


def is_loss_of_others(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
