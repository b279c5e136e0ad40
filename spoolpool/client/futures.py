"""Futures of tasks, and the functions that wait for them.

They are futures of the standard library that also read the state of the task in the spool, and that may be arguments
of other calls. A task that waits for tasks of its own executes them meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    InvalidStateError,
)
from concurrent.futures._base import (
    CANCELLED,
    PENDING,
    RUNNING,
    DoneAndNotDoneFutures,
)
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from spoolpool.client.ended_futures import EndedFutures
from spoolpool.client.safe_future import SafeFuture
from spoolpool.errors import DependencyFailed

if TYPE_CHECKING:
    from spoolpool.client.session import SubmitterSession
    from spoolpool.format.envelope import Envelope
    from spoolpool.format.headers import OutcomeHeader, TaskHeader, Usage

T = TypeVar("T")

log = logging.getLogger(__name__)


class CallSink(Protocol):
    """Receiver of the outcomes of the calls of a pack; the value of the future of the pack."""

    def take(self, number: int, header: OutcomeHeader, content: Envelope) -> None:
        """Take the outcome of the call with this number; it may be repeated."""

    def __getitem__(self, number: int) -> Any:
        """Return the value of the call with this number, or raise its exception."""


def about_call(task: str, function: str, label: str, arguments: str) -> dict[str, str]:
    """Return the fields by which people recognise a call; empty ones are left out."""
    found = {"task": task, "function": function, "label": label, "arguments": arguments and f"({arguments})"}
    return {name: text for name, text in found.items() if text}


class TaskFuture(SafeFuture):
    """Future of a task in a spool; it can be cancelled until a worker claims the task."""

    __slots__ = (
        "_cancel_lock",
        "header",
        "is_submitted",
        "pack",
        "packed",
        "seconds",
        "session",
        "submitted_by_this_run",
        "task_file",
        "usage",
    )

    def __init__(
        self, session: SubmitterSession, header: TaskHeader, *, submitted_by_this_run: bool = False, packed: int = 0
    ) -> None:
        super().__init__()
        self.session = session
        """The session that receives the outcome."""
        self.header = header
        self.packed = packed
        """Number of calls that share the task; 0 for the task of one call."""
        self.submitted_by_this_run = submitted_by_this_run
        """Whether this object's session submitted the task; else an earlier run of the session did."""
        self.task_file = header.first_file()
        self.is_submitted = False
        """Whether the task is certain to have been in the spool; False during its submission."""
        self.seconds: float | None = None
        """Duration of the attempt that produced the outcome; None before the outcome, and for a cached result."""
        self.usage: Usage | None = None
        """CPU time, duration and peak memory of that attempt; None if they are unknown, as those of cached results."""
        self.pack: CallSink | None = None
        """Receiver of the outcomes of the calls of a pack while it runs; None for any other task."""
        self._cancel_lock: threading.RLock | None = None

    def about(self) -> dict[str, str]:
        """Return task, function, and the label or a preview of the arguments."""
        return about_call(self.task, self.header.name, self.header.label, self.header.arguments)

    @property
    def task(self) -> str:
        """Task id, as the command line shows it."""
        return self.header.task

    def __getitem__(self, key: object) -> PartFuture:
        """Return the future of a part of the result; the worker selects the part if it is an argument of a call."""
        return PartFuture(self, (key,))

    __iter__: ClassVar[None] = None
    """Not iterable: the number of parts is unknown before the result."""

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, or raise the exception of the task. A waiting task executes its own tasks meanwhile."""
        if not self.has_ended:
            if self.session.can_assist():
                timeout = _assist(self, timeout)
            else:
                timeout = self.session.collector.direct.collect(self, timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception of the task, or None; waits as :meth:`result` does."""
        return super().exception(_assist(self, timeout))

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        self._observe()
        return super()._waiters

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call a function with this future once it is done, in the collector thread; at once if it is done already."""
        self._observe()
        super().add_done_callback(fn)

    def done(self) -> bool:
        """Return whether the task has ended."""
        self._observe()
        return super().done()

    def _observe(self) -> None:
        """Let the collector thread continue if it rests: another way than :meth:`result` is used to wait."""
        if not self.has_ended:
            self.session.collector.direct.observe()

    def cancel(self) -> bool:
        """Cancel the task and its dependents; returns False once a worker has claimed the task, or it is done."""
        if self.cancelled():
            return True
        if not self.cancel_alone():
            return False
        left: list[TaskFuture] = [self]
        while left:
            future = left.pop()
            dependents = future.session.pending.dependents(future.task)
            left += [each for each in dependents if not each.done() and each.cancel_alone()]
        return True

    def cancel_alone(self) -> bool:
        """Cancel the task as :meth:`cancel` does, without its dependents."""
        with self._locked_state():
            if self.cancelled():
                return True
            if self.done() or not self.session.cancel(self):
                return False
            self.mark_cancelled()
            return True

    def mark_cancelled(self) -> None:
        """Set the state to cancelled, for a task that no worker will run. May be called twice.

        The cancelling thread and the collector thread may both call it for the same task.
        """
        if super().cancel():
            with self._condition:  # only one of the two threads may notify the waiters
                if self._state == CANCELLED:
                    self.set_running_or_notify_cancel()
        else:  # race: running() listed the spool during the cancellation, and set the state to running
            with contextlib.suppress(InvalidStateError):  # done
                self.set_exception(CancelledError())

    def mark_claimed(self) -> bool:
        """Set the state to running if the task was pending; returns whether the future can still get an outcome."""
        with self._condition:
            return self._state == RUNNING or (self._state == PENDING and self.set_running_or_notify_cancel())

    def after_fork(self) -> None:
        """Replace the locks in a forked child: a thread of the parent may have held them during the fork."""
        super().after_fork()
        self._cancel_lock = None

    def _locked_state(self) -> threading.RLock:
        """Return the lock for a change of the state together with the spool; few futures need one."""
        with self._condition:  # not the lock itself: it would be held during file operations and callbacks
            if self._cancel_lock is None:
                self._cancel_lock = threading.RLock()
            return self._cancel_lock

    def running(self) -> bool:
        """Return whether a worker has claimed the task; lists the spool."""
        with self._locked_state():  # race: a task being cancelled is no longer ready, but does not run
            return super().running() or (
                not self.done() and not self.session.pending.is_unclaimed(self) and self.mark_claimed()
            )


def finish(future: TaskFuture, value: object = None, error: BaseException | None = None) -> None:
    """Give a future its outcome; a future that was cancelled meanwhile stays cancelled.

    If its session asks for it, a failed dependency's own exception takes the place of :class:`DependencyFailed`.
    """
    if isinstance(error, DependencyFailed) and future.session.raises_cause:
        error = error.__cause__ or error
    try:
        if not future.mark_claimed():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
    except Exception:
        log.exception("Cannot set the outcome of the future of task %s", future.task)


class DerivedFuture(SafeFuture):
    """Future that depends on other futures; waiting for it means waiting for them."""

    __slots__ = ("sources",)

    def __init__(self, sources: Iterable[Future[Any]]) -> None:
        super().__init__()
        self.sources = tuple(sources)
        """The other futures."""

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, or raise the exception of a task. A waiting task executes its own tasks meanwhile."""
        return super().result(_assist(self, timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception, or None; waits as :meth:`result` does."""
        return super().exception(_assist(self, timeout))


class PartFuture(DerivedFuture):
    """Future of a part of a result: ``future["key"]``, ``future[0]``, or a part of a part.

    Cancelling it cancels the whole.
    """

    __slots__ = ("keys", "whole")

    def __init__(self, whole: Future[Any], keys: tuple[object, ...]) -> None:
        super().__init__([whole])
        self.whole = whole
        self.keys = keys
        whole.add_done_callback(self._take)

    def _take(self, whole: Future[Any]) -> None:
        if whole.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        try:
            value = whole.result()
            for key in self.keys:
                value = value[key]
        except BaseException as error:  # noqa: BLE001  of the task, or of __getitem__ of its result
            self.set_exception(error)
        else:
            self.set_result(value)

    def __getitem__(self, key: object) -> PartFuture:
        """Return the future of a part of this part."""
        return PartFuture(self.whole, (*self.keys, key))

    __iter__: ClassVar[None] = None

    def cancel(self) -> bool:
        """Cancel the whole."""
        return self.whole.cancel()

    def running(self) -> bool:
        """Return whether a worker has claimed the task; lists the spool."""
        return not self.done() and self.whole.running()


class DeferredFuture(DerivedFuture):
    """Future of a call that becomes a task once the futures among its arguments are done that its spool does not have.

    It can be cancelled while it waits for them, and afterwards as its task.
    """

    def __init__(self, awaited: Iterable[Future[Any]], session: SubmitterSession) -> None:
        super().__init__(awaited)
        self.session = session
        self.task_future: TaskFuture | None = None
        """Future of the task, once it was submitted."""
        self.lock = threading.RLock()
        """Lock of the submission."""

    def __getitem__(self, key: object) -> PartFuture:
        """Return the future of a part of the result."""
        return PartFuture(self, (key,))

    __iter__: ClassVar[None] = None

    def running(self) -> bool:
        """Return whether a worker has claimed the task; lists the spool."""
        return not self.done() and self.task_future is not None and self.task_future.running()

    def cancel(self) -> bool:
        """Cancel the call; returns False once a worker has claimed its task, or it is done."""
        with self.lock:
            if self.task_future is None:
                cancelled = super().cancel()
                if cancelled and self._state == CANCELLED:
                    self.set_running_or_notify_cancel()
                return cancelled
            task = self.task_future
        return task.cancel()

    def fail(self, error: BaseException) -> None:
        """Set an exception instead of the outcome of a task, unless the call has ended."""
        with self.lock:
            ended = self.done()
            if not ended:
                self.set_exception(error)

    def take(self, task: Future[Any]) -> None:
        """Take the outcome of the task."""
        if task.cancelled():
            Future.cancel(self)
            self.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())

    def after_fork(self) -> None:
        """Replace the locks in a forked child: a thread of the parent may have held them during the fork."""
        super().after_fork()
        self.lock = threading.RLock()


def split_future(future: Future[Any], n: int) -> list[PartFuture]:
    """Return futures of the first ``n`` items of a result that is a list or tuple."""
    return [get_item_from_future(future, number) for number in range(n)]


def get_item_from_future(future: Future[Any], key: object) -> PartFuture:
    """Return the future of one item of a result."""
    return future[key] if isinstance(future, (TaskFuture, PartFuture, DeferredFuture)) else PartFuture(future, (key,))


# -- waiting


def _assistable(awaited: Iterable[Future[Any]]) -> list[SubmitterSession]:
    """Return the sessions of these futures whose tasks the caller, a task itself, can execute while it waits."""
    sessions: dict[int, SubmitterSession] = {}
    seen: dict[int, tuple[Future[Any], ...]] = {}  # the lists of :func:`batched` have the same sources
    left = list(awaited)
    while left:
        future = left.pop()
        if isinstance(future, (TaskFuture, DeferredFuture)):
            sessions[id(future.session)] = future.session
        if isinstance(future, DerivedFuture):
            sources = future.sources
            if id(sources) not in seen:
                if len(sources) > 1:
                    seen[id(sources)] = sources
                left += sources
    return [session for session in sessions.values() if session.can_assist()]


def _assist(future: Future[Any], timeout: float | None) -> float | None:
    """Execute tasks in a waiting task until a future is done; returns the rest of ``timeout``."""
    if future.done() or not _assistable([future]):
        return timeout
    end = None if timeout is None else time.monotonic() + timeout
    wait([future], timeout)
    return None if end is None else max(0.0, end - time.monotonic())


def wait(
    fs: Iterable[Future[T]], timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> DoneAndNotDoneFutures[T]:
    """Wait as ``concurrent.futures.wait`` does; a waiting task executes unclaimed tasks of its sessions meanwhile."""
    awaited = set(fs)
    sessions = _assistable(awaited)
    if not sessions:
        return futures.wait(awaited, timeout, return_when)
    end = None if timeout is None else time.monotonic() + timeout
    done: set[Future[T]] = set()
    with EndedFutures(awaited, lambda: any(session.assist() for session in sessions)) as ended:
        while len(done) < len(awaited):
            future = ended.next(end)
            if future is None:
                break
            done.add(future)
            if return_when == FIRST_COMPLETED or (return_when == FIRST_EXCEPTION and _has_raised(future)):
                break
        done.update(ended.rest())
    return DoneAndNotDoneFutures(done, awaited - done)


def _has_raised(future: Future[Any]) -> bool:
    return not future.cancelled() and future.exception() is not None


def as_completed(fs: Iterable[Future[T]], timeout: float | None = None) -> Iterator[Future[T]]:
    """Yield as ``concurrent.futures.as_completed`` does; a waiting task executes its own tasks as in :func:`wait`."""
    awaited = set(fs)
    sessions = _assistable(awaited)
    if not sessions:
        yield from futures.as_completed(awaited, timeout)
        return
    end = None if timeout is None else time.monotonic() + timeout
    with EndedFutures(awaited, lambda: any(session.assist() for session in sessions)) as ended:
        while awaited:
            future = ended.next(end)
            if future is None:
                raise futures.TimeoutError(f"{len(awaited)} futures are not done after {timeout} s")
            awaited.remove(future)
            yield future


split_future.__module__ = "spoolpool"
get_item_from_future.__module__ = "spoolpool"
