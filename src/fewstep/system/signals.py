"""The signals that ask a run to end: the user's Ctrl-C, a cluster's pre-emption and time-out. Imports nothing slow."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SLURM pre-empts with SIGTERM and warns of a time-out with what `--signal` says: SIGUSR2 from submitit, often SIGUSR1.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
BY_SIGNAL = 128  # exit status of a process ended by signal n, less n, as shells count


class Stopped(BaseException):
    """A run ended because it was asked to, with nothing lost; no Exception, so that nothing on the way swallows it.

    Args:
        number: of the signal.
        place: what was done and saved by then.
    """

    def __init__(self, number: int, place: str | None = None) -> None:
        where = f" {place}" if place else ""
        super().__init__(f"stopped by {signal.Signals(number).name}{where}; the same command resumes the run")
        self.number = number

    @property
    def status(self) -> int:
        """Exit status that says which signal it was."""
        return BY_SIGNAL + self.number


def raise_stopped(number: int, frame: FrameType | None) -> None:
    """Handler that ends the run where it stands: files appear whole or not at all, so that any moment is a good one."""
    if not isinstance(sys.exc_info()[1], Stopped):  # else it is ending: clusters and launchers say it twice
        raise Stopped(number)


@contextmanager
def stop_signals(handler: Callable[[int, FrameType | None], Any] = raise_stopped) -> Iterator[None]:
    """Give the four signals to `handler`, then to whom they went before. Threads cannot: there nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, other in before.items():
            signal.signal(number, signal.SIG_DFL if other is None else other)
