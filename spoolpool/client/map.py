"""``map``: calls over iterables, several in a task where they are short, and their values in order."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import Any, Literal

from spoolpool.client import progress_bar
from spoolpool.client.futures import TaskFuture, wait
from spoolpool.wire import run_chunk

Submit = Callable[..., "Future[Any]"]
Call = tuple[Any, ...]

TARGET = 0.1
"""Seconds that a task is to take which is made of short calls: some hundred times what a task itself costs."""

_MOST = 10_000  # calls in a task
_FASTER = 4  # times as many calls as in the tasks that were measured
_FIRST, _AHEAD = 8, 256  # tasks ahead: at first; at most, for short ones


class Sizes:
    """How many calls are to be in the next task; ``fixed``, or what was measured of the last ones."""

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self._measured: deque[tuple[int, float]] = deque(maxlen=8)

    def next(self) -> int:
        """At least 1."""
        if self._fixed is not None:
            return self._fixed
        measured = list(self._measured)  # the thread that collects adds to it
        calls, seconds = sum(count for count, _ in measured), sum(each for _, each in measured)
        if not calls:
            return 1
        largest = max(count for count, _ in measured)
        return max(1, min(_MOST, _FASTER * largest, int(TARGET * calls / max(seconds, 1e-9))))

    def measure(self, future: Future[Any], calls: int) -> None:
        """Learn from a task of so many calls when it is done."""

        def note(done: Future[Any]) -> None:
            if isinstance(done, TaskFuture) and done.seconds is not None:  # else it was not run
                self._measured.append((calls, done.seconds))

        if self._fixed is None:
            future.add_done_callback(note)


class _Ahead:
    """The tasks that were submitted and whose values are still to come, in order."""

    def __init__(self, submit: Submit, function: Callable[..., Any], calls: Iterator[Call], sizes: Sizes) -> None:
        self._submit = submit
        self._function = function
        self._calls = calls
        self._sizes = sizes
        self._packed: deque[bool] = deque()
        self.tasks: deque[Future[Any]] = deque()
        self.drawn: Any = None

    def fill(self, room: int | None) -> None:
        """Submit until so many are ahead, or (None) all that there is."""
        while room is None or len(self.tasks) < room:
            size = self._sizes.next()
            chunk = list(itertools.islice(self._calls, size))
            if not chunk:
                return
            future = (
                self._submit(self._function, *chunk[0]) if size == 1 else self._submit(run_chunk, self._function, chunk)
            )
            self._sizes.measure(future, len(chunk))
            progress_bar.count(self.drawn, [future])
            self.tasks.append(future)
            self._packed.append(size > 1)

    def pop(self) -> bool:
        """The first has given its values; whether they are a list of them."""
        self.tasks.popleft()
        return self._packed.popleft()


def iterate_values(
    submit: Submit,
    function: Callable[..., Any],
    calls: Iterator[Call],
    *,
    chunksize: int | Literal["auto"],
    buffersize: int | None,
    ranks: int,
    end: float | None,
    progress: bool,
) -> Iterator[Any]:
    """The values of calls in order; see :meth:`spoolpool.executor.Executor.map`.

    What may be ahead is submitted at once, the rest when a value is asked for.
    """
    auto = chunksize == "auto"
    ahead = _Ahead(submit, function, calls, Sizes(None if chunksize == "auto" else chunksize))
    room = min(_FIRST, buffersize or _FIRST) if auto else buffersize
    ahead.fill(room)

    def each(room: int | None) -> Iterator[Any]:
        total = None if auto or buffersize is not None else len(ahead.tasks)
        with progress_bar.bar(total) if progress else contextlib.nullcontext() as drawn:
            progress_bar.count(drawn, ahead.tasks)
            ahead.drawn = drawn
            try:
                while ahead.tasks:
                    if auto:
                        assert room is not None
                        room = _patient(ahead, room, buffersize, end)
                    elif room is not None:
                        ahead.fill(len(ahead.tasks) + 1)
                    value = ahead.tasks[0].result(None if end is None else end - time.monotonic())
                    if not ahead.pop():
                        yield value
                    elif ranks > 1:  # each rank has all values of the chunk
                        yield from map(list, zip(*value, strict=True))
                    else:
                        yield from value
            finally:
                for future in ahead.tasks:
                    future.cancel()

    return each(room)


def _patient(ahead: _Ahead, room: int, most: int | None, end: float | None) -> int:
    """Wait for the first task, and let ever more be ahead meanwhile; returns how many may be now.

    As long as tasks come, it is one more for each, up to a number that keeps many groups busy with short calls. Where
    the first one runs and does not come, calls are long, and a task for each does no harm: twice as many every time,
    without an end. Where it waits for a group, nothing is known yet, and nothing more is submitted.
    """
    while not ahead.tasks[0].done():
        left = TARGET if end is None else min(TARGET, end - time.monotonic())
        if left <= 0:
            raise futures.TimeoutError
        if not wait([ahead.tasks[0]], left).done and _runs(ahead.tasks[0]):
            room = 2 * room if most is None else min(2 * room, most)
            ahead.fill(room)
    room = max(room, min(room + 1, most or _AHEAD, _AHEAD))
    ahead.fill(room + 1)  # the first is about to go
    return room


def _runs(future: Future[Any]) -> bool:
    try:
        return future.running()
    except OSError:  # the server is away for a moment
        return False
