"""The signals that stop a run: the user's Ctrl-C, a cluster's pre-emption and time limit. Imports nothing slow."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SLURM pre-empts with SIGTERM and warns of the time limit with `--signal`'s: SIGUSR2 from submitit, often SIGUSR1.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SIGNAL_STATUS = 128  # plus n: exit status of a process ended by signal n, by the shells' convention


class Stopped(BaseException):
    """A run stopped by a signal, its work saved. Not an Exception, so that no handler on the way catches it.

    Args:
        number: of the signal.
        progress: what was done and saved by then, as "at step 5 of 10, which is saved".
    """

    def __init__(self, number: int, progress: str | None = None) -> None:
        at = f" {progress}" if progress else ""
        super().__init__(f"stopped by {signal.Signals(number).name}{at}; the same command resumes the run")
        self.number = number

    @property
    def status(self) -> int:
        """Exit status that tells the signal."""
        return SIGNAL_STATUS + self.number


def raise_stopped(number: int, frame: FrameType | None) -> None:
    """Signal handler that stops the run at once; safe at any moment, since all files are written atomically."""
    if not isinstance(sys.exc_info()[1], Stopped):  # else it is stopping: clusters and launchers send signals twice
        raise Stopped(number)


@contextmanager
def stop_signals(handler: Callable[[int, FrameType | None], Any] = raise_stopped) -> Iterator[None]:
    """Install `handler` for the four signals during the block; no effect outside the main thread, which alone may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
