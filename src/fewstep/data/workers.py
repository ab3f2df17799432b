"""Rows read by processes of their own; where one is killed, new ones go on from the step that is due."""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from torch.utils.data import DataLoader

from fewstep.data.shards import Row, Share, Shares

MOST_TRIES = 3  # without a step between them; then something is wrong that does not pass


def rows_of_steps(shares: Callable[[int], Sequence[Share]], start: int, stop: int) -> Iterator[list[Row]]:
    """The rows of steps start, ..., stop - 1, which the shares' processes have read.

    Args:
        shares: what each process reads from a step on; as many for every step.

    Raises:
        RuntimeError: the processes are killed again and again.
    """
    step, tries = start, 0
    while step < stop:
        try:
            for rows in read(shares(step), stop - step):
                tries = 0
                yield rows
                step += 1
        except RuntimeError as error:
            tries += 1
            if not is_killed(error) or tries == MOST_TRIES:
                raise
            warnings.warn(f"{str(error).splitlines()[0].rstrip('. ')}; new ones read on from step {step}", stacklevel=2)


def read(shares: Sequence[Share], steps: int) -> Iterator[list[Row]]:
    """The rows of so many steps, from one generation of processes."""
    before = signal.getsignal(signal.SIGCHLD)
    # One row at a time is asked of each in turn; that one is gone is noticed while it is waited for.
    loader: Any = iter(DataLoader(Shares(shares), batch_size=None, num_workers=len(shares)))
    if threading.current_thread() is threading.main_thread():
        # Torch's own handler would raise wherever the training is, where nobody could go on.
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    for _ in range(steps):
        yield list(chain.from_iterable(islice(loader, len(shares))))


def is_killed(error: RuntimeError) -> bool:
    """Whether it is not the worker's own error but its end."""
    return str(error).startswith("DataLoader worker")
