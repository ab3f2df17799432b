"""A worker for a page whose reader moves a slider faster than the work is done: only the newest request counts."""

from collections.abc import Callable
from functools import partial
from threading import Condition, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """Does `work` for the newest request, in a thread of its own, one after the other.

    Args:
        work: is given a request, and a function that says whether a newer one has come meanwhile. It must not raise.
    """

    def __init__(self, work: Callable[[T, Callable[[], bool]], None]) -> None:
        self._work = work
        self._changed = Condition()
        self._number = 0  # of the newest request
        self._request: T | None = None
        self._closed = False
        Thread(target=self._serve, daemon=True).start()

    def ask(self, request: T) -> None:
        """Want this, and nothing that was wanted before."""
        with self._changed:
            self._number += 1
            self._request = request
            self._changed.notify()

    def close(self) -> None:
        """Work no more."""
        with self._changed:
            self._closed = True
            self._number += 1
            self._changed.notify()

    def _serve(self) -> None:
        number = 0
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._is_past, number))
                if self._closed:
                    return
                number, request = self._number, self._request
            assert request is not None
            self._work(request, partial(self._is_past, number))

    def _is_past(self, number: int) -> bool:
        return self._number != number
