"""Values of many calls of one function, in order or as they come, with a time limit for each."""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from spoolpool.client.futures import wait
from spoolpool.client.map import ChunkSize, take_apart
from spoolpool.wire import run_chunk


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Submitted task with its calls."""

    future: Future[Any]
    calls: list[tuple[Any, ...]]

    def values(self) -> tuple[list[Any], list[tuple[Any, ...]], BaseException | None]:
        """Return the values, the calls that have to run again, and the exception of a call, if one raised."""
        try:
            value = self.future.result()
        except Exception as error:  # noqa: BLE001  of the call
            before, rest = take_apart(error, self.calls if len(self.calls) > 1 else [])
            return before, rest, None if rest else error
        return (value if len(self.calls) > 1 else [value]), [], None


class Chunks:
    """Calls of a function, submitted in chunks."""

    def __init__(
        self,
        submit: Callable[..., Future[Any]],
        function: Callable[..., Any],
        calls: Iterator[tuple[Any, ...]],
        size: ChunkSize,
    ) -> None:
        self._submit = submit
        self._function = function
        self._calls = calls
        self._size = size
        self._lock = threading.Lock()

    def next(self) -> _Chunk | None:
        """Submit the next chunk; returns None if there are no more calls."""
        with self._lock:  # join() submits the rest while another thread takes values
            calls = list(itertools.islice(self._calls, self._size.next()))
        return self.submit(calls) if calls else None

    def drop(self) -> None:
        """Forget the calls that are not submitted."""
        self._calls = iter(())

    def submit(self, calls: list[tuple[Any, ...]]) -> _Chunk:
        """Submit some calls as one task."""
        if len(calls) == 1:
            future = self._submit(self._function, *calls[0])
        else:
            future = self._submit(run_chunk, self._function, calls)
        self._size.measure(future, len(calls))
        return _Chunk(future, calls)


class ValueIterator:
    """Iterator over the values of ``imap``, also with a time limit. Values are taken by one thread at a time."""

    def __init__(self, chunks: Chunks, ahead: int, *, ordered: bool) -> None:
        self._chunks = chunks
        self._ordered = ordered
        self._pending: deque[_Chunk] = deque()
        """Submitted chunks in order."""
        self._done: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()
        """Chunks in the order of their ends, unless they are ordered."""
        self._values: deque[Any] = deque()
        self._error: BaseException | None = None
        for _ in range(ahead):
            if not self._submit_next():
                break

    def _submit_next(self) -> bool:
        chunk = self._chunks.next()
        if chunk is not None:
            self._add(chunk)
        return chunk is not None

    def _add(self, chunk: _Chunk, *, first: bool = False) -> None:
        if first:
            self._pending.appendleft(chunk)
        else:
            self._pending.append(chunk)
        if not self._ordered:
            done = self._done
            chunk.future.add_done_callback(lambda _: done.put(chunk))

    def submit_all(self) -> None:
        """Submit all calls."""
        while self._submit_next():
            pass

    def cancel(self) -> None:
        """Submit no more calls, and cancel those that are not running."""
        self._chunks.drop()
        for chunk in list(self._pending):
            chunk.future.cancel()

    def rest(self) -> list[Any]:
        """Return all values. The first exception cancels the other calls."""
        try:
            return list(self)
        finally:
            self.cancel()

    def __iter__(self) -> ValueIterator:
        """Return the iterator."""
        return self

    def __next__(self) -> Any:
        """Return the next value, or raise the exception of its call."""
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """Return the next value. Raises ``multiprocessing.TimeoutError`` after ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._values:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if not self._pending:
                raise StopIteration
            self._take(self._await(end))
        return self._values.popleft()

    def _await(self, end: float | None) -> _Chunk:
        """Wait for a chunk and remove it."""
        left = None if end is None else max(0.0, end - time.monotonic())
        if self._ordered:
            if not wait([self._pending[0].future], left).done:
                raise multiprocessing.TimeoutError
            return self._pending.popleft()
        try:
            chunk = self._done.get(timeout=left)
        except queue.Empty:
            raise multiprocessing.TimeoutError from None
        self._pending.remove(chunk)
        return chunk

    def _take(self, chunk: _Chunk) -> None:
        values, rest, self._error = chunk.values()
        self._values.extend(values)
        if self._error is not None and len(chunk.calls) > 1:  # as in the original: it is the end
            self.cancel()
            self._pending.clear()
            return
        for call in reversed(rest):  # one of them was fatal to all
            self._add(self._chunks.submit([call]), first=True)
        self._submit_next()
