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
TIMEOUT = timedelta(days=1)
ERROR_WAIT_SECONDS = 5.0  # to wait for the first process to say the same error
SINGLE_PROCESS_ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
_board: Store | None = None  # where they leave each other notes, even when one has failed


class OtherRankFailedError(RuntimeError):
    """Another process of this run failed; `status` is what to exit with."""

    def __init__(self, status: int) -> None:
        super().__init__("another process of this run has ended without a word; the same command goes on")
        self.status = status


def is_distributed() -> bool:
    """Whether this process has met its fellows."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def process_group(device: str, *, alone: bool = False) -> Iterator[None]:
    """Meet the fellows for as long as the block runs: through gloo, and NCCL besides where `device` is cuda.

    Args:
        alone: meet nobody but be a group of one, which FSDP needs; where nobody else was started.
    """
    global _board
    started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if is_distributed() or not (started or alone):
        yield
        return
    if started:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        _board, number, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    else:
        _board, number, count = dist.HashStore(), 0, 1  # pyright: ignore[reportPrivateImportUsage]
        os.environ.update(SINGLE_PROCESS_ENVIRONMENT)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=_board, rank=number, world_size=count, timeout=TIMEOUT)
    try:
        yield
        dist.barrier()  # the first one's store is there until all have done
    except BaseException as error:
        if is_lost_connection(error):
            raise OtherRankFailedError(1) from error
        if not isinstance(error, OtherRankFailedError) and _board is not None:
            _board.set("failed", str(number))  # whoever loses contact now knows why
        raise
    finally:
        if device == "cpu" or count == 1 or sys.exc_info()[0] is None:  # NCCL would wait for a process that is gone
            dist.destroy_process_group()
        if not started:
            for name in SINGLE_PROCESS_ENVIRONMENT:
                del os.environ[name]


def rank() -> int:
    """Number of this process, from 0; before they have met, as it was told at its start."""
    if is_distributed():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """How many there are."""
    if is_distributed():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_divisible_batch(batch_size: int) -> None:
    """Refuse a batch of which the processes cannot have equal shares.

    Raises:
        ValueError: says both numbers.
    """
    if batch_size % world_size():
        raise ValueError(
            f"a batch must divide over the processes, got {batch_size} images for {world_size()}; change "
            "stage.training.batch_size (or trainer.max_images, which caps it) or trainer.devices"
        )


def local_rows(whole: Tensor) -> Tensor:
    """This process's rows of what belongs to the whole batch: as many for each, in the order of their numbers.

    Raises:
        ValueError: the rows do not divide over the processes.
    """
    if world_size() == 1:
        return whole
    require_divisible_batch(len(whole))
    share = len(whole) // world_size()
    return whole[rank() * share : (rank() + 1) * share]


def all_gather_rows(part: Tensor) -> Tensor:
    """The rows of all processes on each of them, in the order of their numbers; they may be of different counts."""
    if not is_distributed():
        return part
    counts = torch.zeros(world_size(), dtype=torch.long, device=part.device)
    counts[rank()] = len(part)
    dist.all_reduce(counts)
    most = int(counts.max())
    padded = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([rows[:count] for rows, count in zip(parts, counts.tolist(), strict=True)])


def local_slice(count: int) -> slice:
    """This process's share of `count` things that need not divide: in the order of the processes, as even as can be."""
    share, rest = divmod(count, world_size())
    start = rank() * share + min(rank(), rest)
    return slice(start, start + share + (rank() < rest))


def all_reduce_and(holds: Tensor) -> Tensor:
    """Where it holds on all processes: a truth value in each place, on the CPU."""
    if not is_distributed():
        return holds
    everywhere = holds.int()
    dist.all_reduce(everywhere, dist.ReduceOp.MIN)
    return everywhere.bool()


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of what each process has, in each place; on each of them."""
    if not is_distributed():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean of what each process has, in each place; on each of them."""
    return all_reduce_sum(value) / world_size()


def main_process_first(value: Callable[[], T]) -> T:
    """What `value` gives on each process, on the first one first: the others find what it has written, like a cache.

    Raises:
        OtherProcessFailedError: on the others, where the first one raised.
    """
    first: list[T] = []
    on_main_process(lambda: first.append(value()))
    return first[0] if first else value()


def on_main_process(value: Callable[[], T]) -> T:
    """What `value` gives on the first process, on all of them; the others wait for it and do not call it.

    Raises:
        OtherProcessFailedError: on the others, where the first one raised.
    """
    if not is_distributed():
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
        raise OtherRankFailedError(failed)
    return result  # pyright: ignore[reportReturnType] (what the first process made is a T)


def deduplicated_error_line(error: BaseException, line: str, seconds: float = ERROR_WAIT_SECONDS) -> str | None:
    """The line of an error as this process should say it, so that it is said once; None where another one says it.

    The first process says its own; another one waits a moment for the first to say the same, and says else who it is.
    Before they have met all of a machine fail alike, and the first there speaks.
    """
    if world_size() == 1:
        return line
    if _board is None:
        return line if os.environ.get("LOCAL_RANK", "0") == "0" else None
    wait, others = timedelta(seconds=seconds), range(1, world_size())
    same = explained = False
    try:
        explained = _board.check(["failed"])
        _board.set(f"error of {rank()}", line)
        if rank() > 0 and not isinstance(error, OtherRankFailedError):
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
    if same or (explained and isinstance(error, OtherRankFailedError)):
        return None
    return line if rank() == 0 and not isinstance(error, OtherRankFailedError) else f"rank {rank()}: {line}"


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
