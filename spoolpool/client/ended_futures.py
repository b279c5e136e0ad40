"""Futures in the order of their ends, for a task that executes other tasks while it waits for them."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from spoolpool.system.backoff import Backoff

T = TypeVar("T")

_FIRST_POLL, _LAST_POLL = 0.0005, 0.1  # seconds between two attempts to run a task, growing


class EndedFutures(Generic[T]):
    """Ends of futures, noticed as ``wait`` of the standard library does.

    Each future is looked at once, however often a task is executed meanwhile: a task may wait for very many.
    """

    def __init__(self, awaited: Iterable[Future[T]], assist: Callable[[], bool]) -> None:
        """``assist`` executes a task; it returns False if there was none."""
        self._awaited: tuple[Any, ...] = tuple(awaited)
        self._assist = assist
        self._ended: SimpleQueue[Future[T]] = SimpleQueue()
        self._backoff = Backoff(_FIRST_POLL, _LAST_POLL)
        self.add_result = self.add_exception = self.add_cancelled = self._ended.put  # called by the futures

    def __enter__(self) -> EndedFutures[T]:
        for each in self._awaited:
            with each._condition:
                if each._state in (CANCELLED_AND_NOTIFIED, FINISHED):
                    self._ended.put(each)
                else:
                    each._waiters.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._awaited:
            with each._condition:
                if self in each._waiters:
                    each._waiters.remove(self)

    def next(self, end: float | None) -> Future[T] | None:
        """Return the next one, and execute tasks meanwhile; returns None at the monotonic time ``end``."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ended.get_nowait()
            left = _LAST_POLL if end is None else end - time.monotonic()
            if left <= 0:
                return None
            if self._assist():
                self._backoff.reset()
                continue
            with contextlib.suppress(queue.Empty):
                return self._ended.get(timeout=min(left, self._backoff.next()))

    def rest(self) -> Iterator[Future[T]]:
        """Yield those that have ended and were not returned yet."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._ended.get_nowait()
