"""The processes of one run: which rows of a batch are this one's, and what all of them agree on.

They all run the same program. What is drawn is drawn for the whole batch by each of them, from the same seed, and each
keeps its rows: the numbers do not depend on how many there are. What is written is written by the first. With one
process every function here is the identity.
"""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")

STARTED_BY = ("RANK", "SLURM_PROCID")  # how torchrun, and srun, tell a process who it is


class OtherProcessFailedError(RuntimeError):
    """The first process failed and has said why; `status` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__("the first process of this run failed, see its error")
        self.status = status


def joined() -> bool:
    """Whether this process has met its fellows."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0; before they have met, as it was told at its start."""
    if joined():
        return dist.get_rank()
    told = next((os.environ[name] for name in STARTED_BY if name in os.environ), "0")
    return int(told) if num_processes() > 1 else 0


def num_processes() -> int:
    """How many there are."""
    if joined():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def mine(whole: Tensor) -> Tensor:
    """This process's rows of what belongs to the whole batch: as many for each, in the order of their numbers.

    Raises:
        ValueError: the rows do not divide over the processes.
    """
    share, rest = divmod(len(whole), num_processes())
    if rest:
        raise ValueError(
            f"a batch must divide over the processes, got {len(whole)} images for {num_processes()}; change "
            "stage.training.batch_size or trainer.devices"
        )
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
