"""The process group of a run: what of a batch belongs to this rank, and the collectives over all ranks.

Every rank runs the same program. Random numbers are drawn for the global batch on each rank from the same seed, and
each rank keeps its rows, so results do not depend on the number of processes. Rank 0 writes all files. With one process
every function here is the identity.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

# A rank that died is noticed at once; the timeout is for a rank that works alone for long, like rank 0 converting data.
TIMEOUT = timedelta(days=1)
ERROR_WAIT_SECONDS = 5.0  # for rank 0 to publish its error line
SINGLE_PROCESS_ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
_store: Store | None = None  # the key-value store of the ranks, which outlives a failed collective


class OtherRankFailedError(RuntimeError):
    """Another process of this run failed; `status` is the exit status to end with."""

    def __init__(self, status: int) -> None:
        super().__init__("another process of this run ended without an error message; the same command resumes the run")
        self.status = status


def is_distributed() -> bool:
    """Whether the process group is initialised."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def process_group(device: str, *, single_process: bool = False) -> Iterator[None]:
    """Initialise the process group for the duration of the block: gloo, and NCCL besides where `device` is cuda.

    Without a launcher (RANK and WORLD_SIZE unset) there is no group, unless `single_process` asks for one of size 1,
    which FSDP needs.
    """
    global _store
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if is_distributed() or not (launched or single_process):
        yield
        return
    if launched:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        _store, number, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    else:
        _store, number, count = dist.HashStore(), 0, 1  # pyright: ignore[reportPrivateImportUsage]
        os.environ.update(SINGLE_PROCESS_ENVIRONMENT)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store, rank=number, world_size=count, timeout=TIMEOUT)
    try:
        yield
        dist.barrier()  # rank 0 hosts the store, so it ends last
    except BaseException as error:
        if is_lost_connection(error):
            raise OtherRankFailedError(1) from error
        if not isinstance(error, OtherRankFailedError) and _store is not None:
            _store.set("failed", str(number))  # explains the lost connection to the other ranks
        raise
    finally:
        if device == "cpu" or count == 1 or sys.exc_info()[0] is None:  # NCCL would wait for a process that is gone
            dist.destroy_process_group()
        if not launched:
            for name in SINGLE_PROCESS_ENVIRONMENT:
                del os.environ[name]


def rank() -> int:
    """Rank of this process, from 0; before the group is initialised, the launcher's."""
    if is_distributed():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """Number of processes; before the group is initialised, the launcher's."""
    if is_distributed():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_divisible_batch(batch_size: int) -> None:
    """Raise a ValueError for a global batch that does not divide evenly over the processes."""
    if batch_size % world_size():
        raise ValueError(
            f"a batch must divide over the processes, got {batch_size} images for {world_size()}; change "
            "stage.training.batch_size (or trainer.max_images, which caps it) or trainer.devices"
        )


def local_rows(batch: Tensor) -> Tensor:
    """This rank's rows of a global batch: equal shares in the order of the ranks; see `require_divisible_batch`."""
    if world_size() == 1:
        return batch
    require_divisible_batch(len(batch))
    share = len(batch) // world_size()
    return batch[rank() * share : (rank() + 1) * share]


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, concatenated in the order of the ranks; their numbers may differ."""
    if not is_distributed():
        return rows
    from torchmetrics.utilities.distributed import gather_all_tensors  # takes two seconds to import

    return torch.cat(gather_all_tensors(rows.detach()))


def all_gather_rows_with_gradient(rows: Tensor) -> Tensor:
    """The rows of all ranks, as many of each; the gradient of a row is the sum of what all ranks have for it."""
    return GatherRows.apply(rows) if is_distributed() else rows


class GatherRows(torch.autograd.Function):
    """`all_gather_rows` and, backwards, the sum over the ranks of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return all_gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return local_rows(all_reduce_sum(gradients[0].contiguous()))


def local_slice(count: int) -> slice:
    """This rank's contiguous share of `count` items; shares differ by at most one."""
    share, rest = divmod(count, world_size())
    start = rank() * share + min(rank(), rest)
    return slice(start, start + share + (rank() < rest))


def all_reduce_and(holds: Tensor) -> Tensor:
    """Elementwise logical and over all ranks, of a bool tensor on the CPU."""
    if not is_distributed():
        return holds
    everywhere = holds.int()
    dist.all_reduce(everywhere, dist.ReduceOp.MIN)
    return everywhere.bool()


def all_reduce_sum(value: Tensor) -> Tensor:
    """Elementwise sum over all ranks."""
    if not is_distributed():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(value: Tensor) -> Tensor:
    """Elementwise mean over all ranks."""
    return all_reduce_sum(value) / world_size()


def main_process_first(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 and only then on the others, which find what rank 0 has cached on disk.

    Raises:
        OtherRankFailedError: on the other ranks, where rank 0 raised.
    """
    first: list[T] = []
    on_main_process(lambda: first.append(function()))
    return first[0] if first else function()


def on_main_process(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 alone and broadcast its (picklable) result to all ranks, which wait for it.

    Raises:
        OtherRankFailedError: on the other ranks, where rank 0 raised.
    """
    if not is_distributed():
        return function()
    outcome: list[tuple[T | None, int]] = [(None, 1)]
    if rank() == 0:
        try:
            outcome = [(function(), 0)]
        except Exception as error:
            outcome = [(None, 2 if isinstance(error, ValueError | OSError) else 1)]
            dist.broadcast_object_list(outcome)
            raise
    dist.broadcast_object_list(outcome)
    result, status = outcome[0]
    if status:
        raise OtherRankFailedError(status)
    return result  # pyright: ignore[reportReturnType] (rank 0's result is a T)


def deduplicated_error_line(error: BaseException, line: str, seconds: float = ERROR_WAIT_SECONDS) -> str | None:
    """The error line that this process prints, or None where another prints it: identical errors print once.

    Rank 0 prints its line as it is. Every other rank waits `seconds` for rank 0's line; if its own differs it prints
    it with its rank in front. Before the group is initialised, the first process of each machine prints.
    """
    if world_size() == 1:
        return line
    if _store is None:
        return line if os.environ.get("LOCAL_RANK", "0") == "0" else None
    wait, is_consequence = timedelta(seconds=seconds), isinstance(error, OtherRankFailedError)
    is_explained = is_duplicate = False
    with suppress(dist.DistError):  # rank 0 has no error, or is gone
        is_explained = _store.check(["failed"])
        _store.set(f"error of {rank()}", line)
        if rank() > 0 and not is_consequence:
            _store.wait(["error of 0"], wait)
            is_duplicate = _store.get("error of 0").decode() == line
    with suppress(dist.DistError):
        _store.set(f"read by {rank()}", "")
        if rank() == 0:  # it may host the store, so it ends last
            _store.wait([f"read by {other}" for other in range(1, world_size())], wait)
    if is_duplicate or (is_explained and is_consequence):
        return None
    return line if rank() == 0 and not is_consequence else f"rank {rank()}: {line}"


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
