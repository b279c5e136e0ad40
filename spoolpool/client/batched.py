"""Futures of lists, which collect the values of many futures as they are done."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from spoolpool.client.futures import DerivedFuture
from spoolpool.system.quantities import read_count

T = TypeVar("T")


def batched(futures: Iterable[Future[T]], n: int) -> list[Future[list[T]]]:
    """Return futures of lists of ``n`` values each (the last list may be shorter), in the order of completion.

    Failed and cancelled calls are put into the last lists whenever they end, so that the first lists are complete. The
    future of a list with failed calls has the exception of the first of them. Cancelling the future of a list does not
    cancel its calls. ``futures`` may be of any executor; duplicates count once. The future of a list may be an
    argument of another call, which waits for it in this process.
    """
    n = read_count("The size of a batch", n, 1)
    given = tuple(dict.fromkeys(futures))  # one for all lists
    lists: list[Future[list[T]]] = [DerivedFuture(given) for _ in range(-(-len(given) // n))]
    batches = _Batches(lists, len(given), n)
    for future in given:
        future.add_done_callback(batches.add)
    return lists


class _Batches:
    """Lists being filled with values, in the threads in which the futures are done."""

    def __init__(self, lists: list[Future[list[Any]]], count: int, n: int) -> None:
        self._lists = lists
        self._left = count
        self._n = n
        self._values: list[Any] = []
        self._failures: list[BaseException] = []
        self._filled = 0
        self._lock = threading.Lock()

    def add(self, future: Future[Any]) -> None:
        """Add the outcome of a future that is done."""
        try:
            error = None
            value = future.result()
        except BaseException as raised:  # noqa: BLE001  of the call, or its cancellation
            error = raised
        with self._lock:
            self._left -= 1
            if error is None:
                self._values.append(value)
            else:
                self._failures.append(error)
            complete = self._complete()
        for batch, content in complete:  # outside of the lock, since callbacks of the batch run here
            if not batch.set_running_or_notify_cancel():
                continue
            if isinstance(content, BaseException):
                batch.set_exception(content)
            else:
                batch.set_result(content)

    def _complete(self) -> list[tuple[Future[list[Any]], list[Any] | BaseException]]:
        """Return the batches that are complete now, under the lock, with their values or their exception."""
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
