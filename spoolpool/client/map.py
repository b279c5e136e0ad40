"""``map``: calls over iterables, several of them in a task if they are short, and their values in order."""

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
from spoolpool.client.durations import Durations
from spoolpool.client.futures import TaskFuture, wait
from spoolpool.client.preview import LABEL_LIMIT, summary
from spoolpool.errors import BadRequest, DependencyFailed, NotPicklable, NotUnpicklable, TaskTimeout, WorkerLost
from spoolpool.system.user_code import describe_value
from spoolpool.wire import run_chunk, values_before

Submit = Callable[..., "Future[Any]"]
Call = tuple[Any, ...]
Label = str | Callable[..., str]

TARGET = 0.1
"""Duration of a task of short calls in seconds: about a hundred times the overhead of a task."""

_MOST = 10_000  # calls in a task
_GROWTH = 4  # largest ratio of the calls in the next task to those in the largest measured one
_OF_THE_TASK = (WorkerLost, TaskTimeout, NotPicklable, NotUnpicklable, DependencyFailed)
_FIRST, _AHEAD = 8, 256  # tasks submitted ahead: at first; at most, for short tasks


class ChunkSize:
    """Number of calls in the next task: ``fixed``, or adapted to the durations of the last tasks."""

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self._most = _MOST
        self.durations = Durations()
        """Measured durations."""

    @property
    def is_measured(self) -> bool:
        """Whether the duration of a task is known."""
        return self.durations.mean is not None

    def within(self, seconds: float) -> int:
        """Return the number of calls that take so long by the measurements; 0 if there are none."""
        mean = self.durations.mean
        return 0 if mean is None else int(seconds / max(mean, 1e-9))

    def limited(self, most: int) -> ChunkSize:
        """Return a size with the same measurements, present and future, and at most so many calls in a task."""
        size = ChunkSize(self._fixed)
        size._most, size.durations = min(most, _MOST), self.durations
        return size

    def next(self) -> int:
        """Return the number of calls, at least 1."""
        if self._fixed is not None:
            return self._fixed
        return max(1, min(self._most, int(_GROWTH * self.durations.largest), self.within(TARGET)))

    def add(self, calls: int, seconds: float) -> None:
        """Take the duration of a task of this number of calls into account."""
        self.durations.add(calls, seconds)

    def measure(self, future: Future[Any], calls: int) -> None:
        """Take the duration of a task of this number of calls into account, once it is done."""

        def add(done: Future[Any]) -> None:
            if isinstance(done, TaskFuture) and done.seconds is not None:  # else the task was not run
                self.add(calls, done.seconds)

        if self._fixed is None:
            future.add_done_callback(add)


class _Ahead:
    """Submitted tasks whose values were not yet yielded, in order."""

    def __init__(
        self, submit: Submit, function: Callable[..., Any], calls: Iterator[Call], size: ChunkSize, label: Label
    ) -> None:
        self._submit = submit
        self._function = function
        self._calls = calls
        self._size = size
        self._label = label
        self._chunks: deque[list[Call]] = deque()
        self.tasks: deque[Future[Any]] = deque()
        self.bar: Any = None

    def fill(self, room: int | None) -> None:
        """Submit calls until ``room`` tasks are ahead; all calls if None."""
        while room is None or len(self.tasks) < room:
            size = self._size.next()
            chunk = list(itertools.islice(self._calls, size))
            if not chunk:
                return
            function, args = (self._function, chunk[0]) if size == 1 else (run_chunk, (self._function, chunk))
            future = self._submit(function, *args, **self._options(chunk))
            self._size.measure(future, len(chunk))
            progress_bar.count(self.bar, [future])
            self.tasks.append(future)
            self._chunks.append(chunk if size > 1 else [])

    def _options(self, chunk: list[Call]) -> dict[str, Any]:
        """Return the arguments of ``submit`` that give a task its label."""
        label = self._label
        if not label:
            return {}
        if callable(label):
            ends = [label(*call) for call in (chunk[0], *chunk[-1:] * (len(chunk) > 1))]
            if not all(isinstance(each, str) for each in ends):
                raise BadRequest(f"label() returned {describe_value(ends)}: it must return a text.")
            label = summary(ends, LABEL_LIMIT)
        return {"resource_dict": {"label": label}}

    def pop(self) -> list[Call]:
        """Remove the first task; returns its calls if its result is the list of their values, else nothing."""
        self.tasks.popleft()
        return self._chunks.popleft()

    def cancel(self) -> None:
        """Cancel the tasks whose values will not be fetched."""
        for future in self.tasks:
            future.cancel()


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
    label: Label = "",
    may_share: bool = True,
) -> Iterator[Any]:
    """Return an iterator over the values of calls in order; see :meth:`spoolpool.executor.Executor.map`.

    The first tasks are submitted before the return, and the others while values are fetched. ``end`` is a monotonic
    time. Without ``may_share`` each call has its own task.
    """
    auto = chunksize == "auto"
    size = ChunkSize(1 if not may_share else None if chunksize == "auto" else chunksize)
    ahead = _Ahead(submit, function, calls, size, label)
    room = min(_FIRST, buffersize or _FIRST) if auto else buffersize
    ahead.fill(room)

    def values(room: int | None) -> Iterator[Any]:
        total = None if auto or buffersize is not None else len(ahead.tasks)
        with progress_bar.bar(total) if progress else contextlib.nullcontext() as bar:
            progress_bar.count(bar, ahead.tasks)
            ahead.bar = bar
            try:
                while ahead.tasks:
                    if auto:
                        assert room is not None
                        room = _wait_for_first(ahead, room, buffersize, end)
                    elif room is not None:
                        ahead.fill(len(ahead.tasks) + 1)
                    first = ahead.tasks[0]
                    try:
                        value = first.result(_left(end))
                    except Exception as error:
                        chunk = ahead.pop() if first.done() else []
                        before, rest = take_apart(error, chunk)
                        yield from _handed_over(before)
                        if not rest:
                            raise
                        apart = _Ahead(submit, function, iter(rest), ChunkSize(1), label)
                        try:
                            apart.fill(buffersize or _AHEAD)
                        except RuntimeError:  # after the shutdown of the executor
                            raise error from None
                        yield from _one_by_one(apart, buffersize or _AHEAD, end)
                        continue
                    if not ahead.pop():
                        value = [value]
                    elif ranks > 1:  # a list of each rank's values of the chunk
                        value = [*map(list, zip(*value, strict=True))]
                    del first  # it refers to the value
                    yield from _handed_over(value)
            finally:
                ahead.cancel()

    return values(room)


def _handed_over(values: list[Any]) -> Iterator[Any]:
    """Yield values without a further reference to them, so that the caller decides how long each of them lives."""
    values.reverse()
    while values:
        yield values.pop()


def _left(end: float | None) -> float | None:
    return None if end is None else end - time.monotonic()


def take_apart(error: Exception, chunk: list[Call]) -> tuple[list[Any], list[Call]]:
    """Return the values of a chunk that failed, up to the call that raised, and the calls that have to run again.

    If a call raised, the values before it are known, and none has to. The others failed for the sake of one of them,
    if the error is of the task: its workers died in all attempts, one group of several ranks after the other; the
    ``time_limit`` of a call is over; a value or an argument cannot be pickled or unpickled; or a dependency failed.
    """
    if not chunk:
        return [], []
    before = values_before(error)
    if before is None:
        return [], chunk if isinstance(error, _OF_THE_TASK) else []
    # the limit began with the first call
    return before, chunk[len(before) :] if before and isinstance(error, TaskTimeout) else []


def _one_by_one(ahead: _Ahead, room: int, end: float | None) -> Iterator[Any]:
    """Yield the values of calls whose task failed as a whole: each has a task of its own now."""
    try:
        while ahead.tasks:
            value = [ahead.tasks[0].result(_left(end))]
            ahead.pop()
            ahead.fill(room)
            yield from _handed_over(value)
    finally:
        ahead.cancel()


def _wait_for_first(ahead: _Ahead, room: int, most: int | None, end: float | None) -> int:
    """Wait for the first task while increasing the number of tasks ahead; returns that number.

    It grows by one with each finished task, up to a number that keeps many groups busy with short tasks. If the first
    task runs for :data:`TARGET` seconds, calls are long, and a task for each is cheap: the number doubles each time,
    up to ``most``. If the first task is not claimed yet, the duration of the calls is unknown, and nothing is
    submitted.
    """
    while not ahead.tasks[0].done():
        left = TARGET if end is None else min(TARGET, end - time.monotonic())
        if left <= 0:
            raise futures.TimeoutError
        if not wait([ahead.tasks[0]], left).done and _is_running(ahead.tasks[0]):
            room = 2 * room if most is None else min(2 * room, most)
            ahead.fill(room)
    room = max(room, min(room + 1, most or _AHEAD, _AHEAD))
    ahead.fill(room + 1)  # the first task is about to be removed
    return room


def _is_running(future: Future[Any]) -> bool:
    try:
        return future.running()
    except OSError:  # the file server is unreachable for a moment
        return False
