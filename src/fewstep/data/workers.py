"""Rows read by worker processes, which are restarted from the next step if one is killed."""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from torch.utils.data import DataLoader

from fewstep.data.shards import Row, WorkerDataset, WorkerRows

MAX_FAILURES = 3  # in a row, without a step between them


def rows_of_steps(workers: Callable[[int], Sequence[WorkerRows]], start: int, stop: int) -> Iterator[list[Row]]:
    """The rows of steps start, ..., stop - 1, read by worker processes.

    Args:
        workers: step -> what each worker reads from that step on.

    Raises:
        RuntimeError: workers were killed MAX_FAILURES times in a row, or failed themselves.
    """
    step, failures = start, 0
    while step < stop:
        try:
            for rows in read(workers(step), stop - step):
                failures = 0
                yield rows
                step += 1
        except RuntimeError as error:
            failures += 1
            if not is_killed(error) or failures == MAX_FAILURES:
                raise
            warnings.warn(f"{str(error).splitlines()[0].rstrip('. ')}; new ones read on from step {step}", stacklevel=2)


def read(workers: Sequence[WorkerRows], num_steps: int) -> Iterator[list[Row]]:
    """The rows of `num_steps` steps, from one set of worker processes."""
    handler = signal.getsignal(signal.SIGCHLD)
    # The loader takes one list of rows from each worker in turn, and notices a killed worker while it waits for it.
    loader: Any = iter(DataLoader(WorkerDataset(workers), batch_size=None, num_workers=len(workers)))
    if threading.current_thread() is threading.main_thread():
        # The handler that torch has just installed would raise at any point of the training, which could not resume.
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    for _ in range(num_steps):
        yield list(chain.from_iterable(islice(loader, len(workers))))


def is_killed(error: RuntimeError) -> bool:
    """Whether a worker was killed, rather than raised the error itself."""
    return str(error).startswith("DataLoader worker")
