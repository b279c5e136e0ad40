"""The future of a task: the standard library's, which can also ask the spool, and be an argument of another call."""

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
from concurrent.futures._base import CANCELLED, PENDING, RUNNING, DoneAndNotDoneFutures
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile
from spoolpool.system.backoff import Backoff

if TYPE_CHECKING:
    from spoolpool.client.session import Session

T = TypeVar("T")

log = logging.getLogger(__name__)

_FIRST_LOOK, _LAST_LOOK = 0.0005, 0.1


class TaskFuture(Future[Any]):
    """The standard library's future, of a task in a spool: it can be cancelled until a worker claims it."""

    def __init__(self, session: Session, header: TaskHeader, *, here: bool = False) -> None:
        super().__init__()
        self._session = session
        self.header = header
        self.here = here
        """Whether this object's session submitted the task, and not an earlier life of it."""
        self.task_file = TaskFile(header.task, 1, 1)
        self.seconds: float | None = None
        """How long the worker that made its outcome had it in hand; None if there is none, or it is not done."""
        self._asking = threading.RLock()

    @property
    def task(self) -> str:
        """Task id, by which the command line knows it too."""
        return self.header.task

    @property
    def inbox(self) -> Session:
        """The session that awaits the task."""
        return self._session

    def __getitem__(self, key: object) -> PartFuture:
        """The future of a part of the result; as an argument it is taken from the whole by the worker."""
        return PartFuture(self, (key,))

    __iter__: ClassVar[None] = None
    """A future has parts, and yet nobody knows how many."""

    def result(self, timeout: float | None = None) -> Any:
        """The value, or the exception that the task raised; a task that waits for its own tasks runs them meanwhile."""
        return super().result(awaited(self, timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception that the task raised, or None; waits as :meth:`result` does."""
        return super().exception(awaited(self, timeout))

    def cancel(self) -> bool:
        """Take the task back, and what needs it; False once a worker has claimed it, or it is done."""
        if self.cancelled():
            return True
        if not self.take_back():
            return False
        left: list[TaskFuture] = [self]
        while left:
            future = left.pop()
            dependents = future.inbox.dependents(future.task)
            left += [each for each in dependents if not each.done() and each.take_back()]
        return True

    def take_back(self) -> bool:
        """Take back this one alone."""
        with self._asking:
            if self.cancelled():
                return True
            if self.done() or not self._session.cancel(self):
                return False
            self.withdrawn()
            return True

    def withdrawn(self) -> None:
        """Be cancelled, since nobody will run the task. Whoever cancels it and the collecting thread both say so."""
        if super().cancel():
            with self._condition:  # only one of them may tell the waiters
                if self._state == CANCELLED:
                    self.set_running_or_notify_cancel()
        else:  # running() was asked meanwhile, and took a task that does not wait for one that runs
            with contextlib.suppress(InvalidStateError):  # done
                self.set_exception(CancelledError())

    def claimed(self) -> bool:
        """Be running, unless it is over already; whether an outcome can still be given to it."""
        with self._condition:
            return self._state == RUNNING or (self._state == PENDING and self.set_running_or_notify_cancel())

    def after_fork(self) -> None:
        """In a forked child: a thread of the parent may have held the locks at that moment."""
        self._condition = threading.Condition()
        self._asking = threading.RLock()
        self._done_callbacks: list[Callable[[Future[Any]], object]] = []  # the parent calls them

    def running(self) -> bool:
        """Whether a worker has claimed the task; asks the spool."""
        with self._asking:  # a task that is being cancelled waits no longer, and yet does not run
            return super().running() or (not self.done() and not self._session.waits(self) and self.claimed())


def finish(future: TaskFuture, value: object = None, error: BaseException | None = None) -> None:
    """Give a future its outcome; one that was cancelled meanwhile keeps that."""
    try:
        if not future.claimed():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
    except Exception:
        log.exception("A future could not be given its outcome")


class DerivedFuture(Future[Any]):
    """A future that is done through others: who waits for it waits for them."""

    def __init__(self, of: Iterable[Future[Any]]) -> None:
        super().__init__()
        self.of = tuple(of)
        """The others."""

    def result(self, timeout: float | None = None) -> Any:
        """The value, or the exception that a task raised; a task that waits for its own tasks runs them meanwhile."""
        return super().result(awaited(self, timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception, or None; waits as :meth:`result` does."""
        return super().exception(awaited(self, timeout))


class PartFuture(DerivedFuture):
    """The future of a part of a result: ``future["key"]``, ``future[0]``, and so on inwards.

    Cancelling it cancels the whole.
    """

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
        except Exception as error:  # noqa: BLE001  the task's own, or of the value's __getitem__
            self.set_exception(error)
        else:
            self.set_result(value)

    def __getitem__(self, key: object) -> PartFuture:
        """The future of a part of the part."""
        return PartFuture(self.whole, (*self.keys, key))

    __iter__: ClassVar[None] = None

    def cancel(self) -> bool:
        """Cancel the whole."""
        return self.whole.cancel()

    def running(self) -> bool:
        """Whether a worker has claimed the task."""
        return not self.done() and self.whole.running()


def split_future(future: Future[Any], n: int) -> list[PartFuture]:
    """Futures of the first ``n`` items of a result that is a list or tuple."""
    return [get_item_from_future(future, number) for number in range(n)]


def get_item_from_future(future: Future[Any], key: object) -> PartFuture:
    """The future of one item of a result."""
    return future[key] if isinstance(future, (TaskFuture, PartFuture)) else PartFuture(future, (key,))


# -- waiting


def _inboxes(waited_for: Iterable[Future[Any]]) -> list[Session]:
    """Sessions of these futures whose tasks the caller, being a task itself, can run while it waits."""
    wholes = {each for future in waited_for for each in (future.of if isinstance(future, DerivedFuture) else (future,))}
    found = {id(each.inbox): each.inbox for each in wholes if isinstance(each, TaskFuture)}
    return [inbox for inbox in found.values() if inbox.assists()]


def awaited(future: Future[Any], timeout: float | None) -> float | None:
    """Run what can be run until a future is done; returns what is left of ``timeout``."""
    if future.done() or not _inboxes([future]):
        return timeout
    end = None if timeout is None else time.monotonic() + timeout
    wait([future], timeout)
    return None if end is None else max(0.0, end - time.monotonic())


def wait(
    fs: Iterable[Future[T]], timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> DoneAndNotDoneFutures[T]:
    """``concurrent.futures.wait``, which in a task also runs the tasks that are waited for, if nobody else does."""
    waited_for = set(fs)
    inboxes = _inboxes(waited_for)
    if not inboxes:
        return futures.wait(waited_for, timeout, return_when)
    end = None if timeout is None else time.monotonic() + timeout
    backoff = Backoff(_FIRST_LOOK, _LAST_LOOK)
    while True:
        found = futures.wait(waited_for, 0, return_when)
        left = _LAST_LOOK if end is None else end - time.monotonic()
        if left <= 0 or _enough(found, return_when):
            return found
        if any(inbox.assist() for inbox in inboxes):
            backoff.reset()
        else:
            futures.wait(waited_for, min(left, backoff.next()), return_when)


def _enough(found: DoneAndNotDoneFutures[T], return_when: str) -> bool:
    if not found.not_done or (return_when == FIRST_COMPLETED and found.done):
        return True
    failed = (not future.cancelled() and future.exception() is not None for future in found.done)
    return return_when == FIRST_EXCEPTION and any(failed)


def as_completed(fs: Iterable[Future[T]], timeout: float | None = None) -> Iterator[Future[T]]:
    """``concurrent.futures.as_completed``, which in a task also runs the tasks that are waited for."""
    pending = set(fs)
    if not _inboxes(pending):
        yield from futures.as_completed(pending, timeout)
        return
    end = None if timeout is None else time.monotonic() + timeout
    while pending:
        done, pending = wait(pending, None if end is None else end - time.monotonic(), FIRST_COMPLETED)
        if not done:
            raise futures.TimeoutError(f"{len(pending)} futures are not done")
        yield from done


split_future.__module__ = "spoolpool"
get_item_from_future.__module__ = "spoolpool"
