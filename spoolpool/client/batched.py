"""Futures of lists: the values of many futures, so many at a time, as they come."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from spoolpool.client.futures import DerivedFuture
from spoolpool.errors import BadRequest

T = TypeVar("T")


def batched(futures: Iterable[Future[T]], n: int) -> list[Future[list[T]]]:
    """Futures of lists of ``n`` values each (of the last one perhaps fewer), in the order in which these are done.

    Calls that fail or are cancelled come last, whenever they end: so the first lists are whole. A list to which such a
    call belongs has the exception of the first of them. To cancel a list is of no consequence for the calls.
    ``futures`` may be of any executor; each is taken once. A list is not itself a call: give its ``result()`` to
    another one, and not its future.
    """
    if n < 1:
        raise BadRequest(f"A batch of {n} futures was asked for; it must be of at least 1.")
    given = list(dict.fromkeys(futures))
    lists: list[Future[list[T]]] = [DerivedFuture(given) for _ in range(-(-len(given) // n))]
    filling = _Filling(lists, len(given), n)
    for future in given:
        future.add_done_callback(filling.take)
    return lists


class _Filling:
    """Puts what is done into lists; called in whatever thread a future is done."""

    def __init__(self, lists: list[Future[list[Any]]], count: int, n: int) -> None:
        self._lists = lists
        self._left = count
        self._n = n
        self._values: list[Any] = []
        self._failures: list[BaseException] = []
        self._filled = 0
        self._lock = threading.Lock()

    def take(self, future: Future[Any]) -> None:
        """One is done."""
        try:
            error = None
            value = future.result()
        except BaseException as raised:  # noqa: BLE001  the call's own, or that it was cancelled
            error = raised
        with self._lock:
            self._left -= 1
            if error is None:
                self._values.append(value)
            else:
                self._failures.append(error)
            full = self._full()
        for batch, content in full:  # outside of the lock: its callbacks may do anything
            if not batch.set_running_or_notify_cancel():
                continue
            if isinstance(content, BaseException):
                batch.set_exception(content)
            else:
                batch.set_result(content)

    def _full(self) -> list[tuple[Future[list[Any]], list[Any] | BaseException]]:
        found: list[tuple[Future[list[Any]], list[Any] | BaseException]] = []
        while self._filled < len(self._lists):
            if len(self._values) >= self._n:
                content: list[Any] | BaseException = self._values[: self._n]
                del self._values[: self._n]
            elif self._left:
                break
            elif failed := self._failures[: self._n - len(self._values)]:
                del self._failures[: len(failed)]
                self._values.clear()
                content = failed[0]
            else:
                content, self._values = self._values, []
            found.append((self._lists[self._filled], content))
            self._filled += 1
        return found
