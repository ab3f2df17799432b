"""Rows read by worker processes, which are restarted from the next step if one is killed."""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from fewstep.data.shards import Row

MAX_FAILURES = 3  # in a row, without a step between them


def rows_of_steps(
    stream: Callable[[int], IterableDataset[list[Row]]], num_workers: int, start: int, stop: int
) -> Iterator[list[Row]]:
    """The rows of steps start, ..., stop - 1, read by worker processes.

    Args:
        stream: step -> the rows from that step on; each worker gives its own, a list for each step.

    Raises:
        RuntimeError: workers were killed MAX_FAILURES times in a row, or failed themselves.
    """
    step, failures = start, 0
    while step < stop:
        try:
            for rows in read(stream(step), num_workers, stop - step):
                failures = 0
                yield rows
                step += 1
        except RuntimeError as error:
            failures += 1
            if not is_killed(error) or failures == MAX_FAILURES:
                raise
            warnings.warn(f"{str(error).splitlines()[0].rstrip('. ')}; new ones read on from step {step}", stacklevel=2)


def read(stream: IterableDataset[list[Row]], num_workers: int, num_steps: int) -> Iterator[list[Row]]:
    """The rows of `num_steps` steps, from one set of worker processes."""
    handler = signal.getsignal(signal.SIGCHLD)
    # The loader takes one list of rows from each worker in turn, and notices a killed worker while it waits for it.
    loader: Any = iter(DataLoader(stream, batch_size=None, num_workers=num_workers))
    if threading.current_thread() is threading.main_thread():
        # The handler that torch has just installed would raise at any point of the training, which could not resume.
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    for _ in range(num_steps):
        yield list(chain.from_iterable(islice(loader, num_workers)))


def is_killed(error: RuntimeError) -> bool:
    """Whether a worker was killed, rather than raised the error itself."""
    return str(error).startswith("DataLoader worker")
