"""References of a call to futures and objects among its arguments, from pickling until the call has its outcome.

A future among the arguments is pickled as a reference to its task, a *dependency* of the call. From that moment the
session of that task retains its outcome in the spool, where the worker of the call reads it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from spoolpool.calls import pickling
from spoolpool.calls.pickling import LaterValue, ObjectRef, Reference
from spoolpool.client.futures import DeferredFuture, PartFuture, TaskFuture, finish
from spoolpool.errors import BadRequest, DependencyFailed, SpoolpoolError
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import NO_ENTRIES
from spoolpool.protocol.delayed_tasks import make_ready
from spoolpool.protocol.spool import Spool
from spoolpool.system.user_code import describe_error


def has_failed(future: Future[Any]) -> bool:
    """Return whether a future is done without a result."""
    return future.done() and (future.cancelled() or future.exception() is not None)


class CallReferences:
    """Dependencies and objects of one call, which becomes the given task; filled by :meth:`refer` during pickling."""

    def __init__(self, spool: Spool, task: str, acquire: Callable[[ObjectRef], None] | None = None) -> None:
        """``acquire`` leases an object for the session that submits the call."""
        self._spool = spool
        self._acquire = acquire
        self.objects: dict[str, tuple[int, ...]] = {}
        """Objects among the arguments, in the form of the task header."""
        self.task = task
        self._lock = threading.Lock()
        self._dependencies: dict[tuple[str, str], TaskFuture] = {}
        self._pending: set[tuple[str, str]] = set()
        self._failed: Future[Any] | None = None
        self._later: dict[Future[Any], LaterValue] = {}
        self.future: TaskFuture | None = None
        """Future of the call, while its task is in the spool."""

    def refer(self, argument: Future[Any] | ObjectRef) -> object:
        """Return the value to pickle for a future: a reference while its outcome is in the spool, else its result.

        For an unfinished future whose outcome will not be in this spool it is the place of its value, for :meth:`fill`.
        An object is leased and returned unchanged. Raises :class:`BadRequest` for an object that is not in the spool.
        """
        if isinstance(argument, ObjectRef):
            if self._acquire is not None and argument.name not in self.objects:
                self._acquire(argument)
            self.objects[argument.name] = ()
            return argument
        whole, keys = (argument.whole, argument.keys) if isinstance(argument, PartFuture) else (argument, ())
        if isinstance(whole, DeferredFuture) and whole.task_future is not None:
            whole = whole.task_future
        if isinstance(whole, TaskFuture) and whole.session.spool.config.id == self._spool.config.id:
            key = whole.session.name, whole.task
            state = whole.session.pending.retain(whole.task, self)
            if state != "removed":
                self._dependencies[key] = whole
                if state == "pending":
                    self._pending.add(key)
                return Reference(*key, keys)
        if not argument.done():
            return self._later.setdefault(argument, LaterValue())
        if has_failed(argument):
            self._failed = self._failed or argument
            return None
        return argument.result()

    @property
    def awaited(self) -> tuple[Future[Any], ...]:
        """Futures that must be done before the call is submitted; empty if one of the arguments has failed already."""
        return tuple(self._later) if self._failed is None else ()

    def fill(self, buffers: list[Buffer]) -> list[Buffer]:
        """Return the buffers of the pickled call with the values of the awaited futures, which are done.

        Raises :class:`BadRequest` or :class:`NotPicklable` for a value that cannot be sent.
        """
        failed = filter(has_failed, (*self._later, *self._dependencies.values()))
        self._failed = next(failed, None)
        if self._failed is not None:
            return buffers
        values = {
            later: pickling.dumps_alone(future.result(), self._refer_done) for future, later in self._later.items()
        }
        return [values[later] if (later := LaterValue.of(each)) in values else each for each in buffers]

    def _refer_done(self, argument: Future[Any] | ObjectRef) -> object:
        """Return the value to pickle for a future in the value of an awaited future."""
        found = self.refer(argument)
        if isinstance(found, LaterValue):
            raise BadRequest("The value of a future among the arguments contains another future, which is not done.")
        return found

    @property
    def is_empty(self) -> bool:
        """Whether the call has neither futures nor objects among its arguments."""
        return not (self._dependencies or self.objects or self._later or self._failed is not None)

    def by_session(self) -> dict[str, tuple[str, ...]]:
        """Return the task ids of the dependencies by session, in the form of the task header."""
        if not self._dependencies:  # most calls
            return NO_ENTRIES
        found: dict[str, list[str]] = {}
        for session, task in self._dependencies:
            found.setdefault(session, []).append(task)
        return {session: tuple(tasks) for session, tasks in found.items()}

    def dependencies(self) -> list[TaskFuture]:
        """Return the futures of the dependencies."""
        return list(self._dependencies.values())

    def finish_if_failed(self, future: TaskFuture) -> bool:
        """Finish the future of the call if one of its arguments has failed already; returns whether it did."""
        failed = self._failed
        if failed is None:
            return False
        self.release()
        if failed.cancelled():
            future.mark_cancelled()
            return True
        cause = failed.exception()
        assert cause is not None  # refer() keeps failed futures only
        if isinstance(cause, DependencyFailed) and cause.__cause__ is not None:
            cause = cause.__cause__
        error = DependencyFailed(
            f"The call of {future.header.name} was not submitted, because an argument of it failed: "
            f"{describe_error(cause)}"
        )
        error.__cause__ = cause
        finish(future, error=error)
        return True

    def mark_submitted(self, future: TaskFuture) -> None:
        """Note that the delayed task is in the spool; it becomes ready once all dependencies have ended."""
        with self._lock:
            self.future = future
            is_ready = not self._pending
        if is_ready:
            self._make_ready(future)

    def mark_ended(self, session: str, task: str) -> None:
        """Note that a dependency has its outcome."""
        with self._lock:
            self._pending.discard((session, task))
            future = None if self._pending else self.future
        if future is not None:
            self._make_ready(future)

    def _make_ready(self, future: TaskFuture) -> None:
        if future.header.not_before:  # decided by the workers, on the clock of the file server
            return
        with contextlib.suppress(OSError, SpoolpoolError):  # a worker does it later
            make_ready(self._spool, future.header, future.task_file)

    def release(self) -> None:
        """Release the outcomes of the dependencies, once the call has its outcome or is given up. May be repeated."""
        with self._lock:
            released, self._dependencies = self._dependencies, {}
            self.future = None
        for (_, task), future in released.items():
            future.session.pending.retention.release(task, self.task)
