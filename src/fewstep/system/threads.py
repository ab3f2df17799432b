"""OpenMP's threads on a machine that others use too: how they wait for each other, and how many there are.

In GNU's OpenMP, torch's on Linux, a thread that waits for the others spins for milliseconds before it sleeps. On idle
cores that is fastest; where another process needs one of them, spinning takes the time of the very thread that is
waited for, and training falls to a hundredth of its speed. The policy is read once, when the library is loaded. But its
manual says (at GOMP_SPINCOUNT) that threads spin for microseconds only while there are more of them than cores. So
while the cores are contended, idle threads are kept beside those that work.

On cores that are contended from the start fewer threads are faster than many that wait. Their number, on which the last
bits of sums depend, is chosen once.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import floor
from pathlib import Path

import torch

from fewstep.system.hardware import cores

OWN_POLICY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # of the user, which stays
CHECK_SECONDS = 0.25
CONTENDED = 0.1  # seconds that threads wait for a core, in a second, from which on they shall not spin
HOLD_SECONDS = 4.0  # at least so long after the last contention
ENOUGH = 1 << 20  # elements that torch divides over its threads


def seconds_without_core() -> float:
    """How long the threads of this process have waited for a core so far, together; 0 where the system does not say."""
    nanoseconds = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # the thread has ended
            nanoseconds += int(file.read_text().split()[1])
    return nanoseconds / 1e9


class IdleThreads:
    """Threads of OpenMP that do nothing: so many that with one pool that works there are more than cores."""

    def __init__(self) -> None:
        others = torch.get_num_threads() - 1  # in a pool, beside the thread that it serves, which is not counted
        pools = -(-cores() // others) - 1
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._own_pool, daemon=True) for _ in range(pools)]
        for thread in self._threads:
            thread.start()

    def _own_pool(self) -> None:
        torch.zeros(ENOUGH).add_(1)  # a thread's first parallel work makes its pool
        self._end.wait()

    def end(self) -> None:
        """End them, and with them their pools."""
        self._end.set()
        for thread in self._threads:
            thread.join()


def choose_threads(others: float) -> None:
    """Have torch use as many threads as cores are left, unless OMP_NUM_THREADS says how many; says so if that is fewer.

    Args:
        others: cores that other processes keep busy.
    """
    most = torch.get_num_threads()
    count = max(1, min(most, floor(cores() - others + 0.5)))
    if count < most and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count)
        print(f"{count} of {most} threads: others use {others:.1f} cores (OMP_NUM_THREADS={most} uses all)", flush=True)


@contextmanager
def considerate_threads(waited: Callable[[], float] = seconds_without_core) -> Iterator[None]:
    """Have torch's threads spin while they wait for each other only where no other process needs their cores.

    Args:
        waited: seconds that the threads have waited for a core so far.
    """
    if torch.get_num_threads() == 1 or any(name in os.environ for name in OWN_POLICY):
        yield
        return
    end = threading.Event()
    watch = threading.Thread(target=_watch, args=(waited, end), daemon=True)
    watch.start()
    try:
        yield
    finally:
        end.set()
        watch.join()


def _watch(waited: Callable[[], float], end: threading.Event) -> None:
    """Keep idle threads while the cores are contended, until `end`."""
    idle: IdleThreads | None = None
    before, then, until = waited(), time.monotonic(), 0.0
    while not end.wait(CHECK_SECONDS):
        after, now = waited(), time.monotonic()
        if after - before > CONTENDED * (now - then):
            until = now + HOLD_SECONDS
        before, then = after, now
        if idle is None and now < until:
            idle = IdleThreads()
        elif idle is not None and now >= until:
            idle.end()
            idle = None
    if idle is not None:
        idle.end()


@contextmanager
def number_of_threads(count: int) -> Iterator[None]:
    """Have torch use `count` threads in the block.

    That is said to it even where it has as many: MKL may otherwise take fewer for a small product, and round otherwise.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
