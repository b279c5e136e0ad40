"""What a call needs of other tasks: while it is pickled, and until it has its outcome.

A future among the arguments travels as a reference. From the moment at which it is pickled the session that awaits it
holds it for the call: its outcome stays in the spool, where the worker of the call finds it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from spoolpool.calls.pickling import ObjectRef, Reference
from spoolpool.client.futures import PartFuture, TaskFuture, finish
from spoolpool.errors import BadRequest, DependencyFailed, SpoolpoolError
from spoolpool.protocol.delay import make_ready
from spoolpool.protocol.spool import Spool

if TYPE_CHECKING:
    from spoolpool.client.session import Session


class CallReferences:
    """What one call needs, which will be the given task. :meth:`refer` is asked about each future in it."""

    def __init__(self, spool: Spool, task: str, take: Callable[[ObjectRef], None] | None = None) -> None:
        """``take`` holds an object for the session that submits the call."""
        self._spool = spool
        self._take = take
        self.objects: dict[str, tuple[int, ...]] = {}
        """Objects that it names, as a task's header has them."""
        self.task = task
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], tuple[Session, TaskFuture]] = {}
        self._pending: set[tuple[str, str]] = set()
        self._ended_badly: Future[Any] | None = None
        self.future: TaskFuture | None = None
        """The call's own, once it is in the spool."""

    def refer(self, future: Future[Any] | ObjectRef) -> object:
        """What travels in the place of a future: a reference as long as its outcome is in the spool, else its value.

        An object is held, and travels as it is. Raises :class:`BadRequest` for a future that is not done and whose
        outcome will not be in this spool, and for an object that is not there.
        """
        if isinstance(future, ObjectRef):
            if self._take is not None and future.name not in self.objects:
                self._take(future)
            self.objects[future.name] = ()
            return future
        whole, keys = (future.whole, future.keys) if isinstance(future, PartFuture) else (future, ())
        if isinstance(whole, TaskFuture):
            session: Any = whole.inbox
            key = session.name, whole.task
            if session.spool.config.id == self._spool.config.id:
                held = session.hold(whole.task, self)
                if held != "gone":
                    self._held[key] = session, whole
                    if held == "pending":
                        self._pending.add(key)
                    return Reference(*key, keys)
        if not future.done():
            raise BadRequest(
                "An argument is a future that is not done and does not belong to this spool: wait for it first, and "
                "give its result."
            )
        if future.cancelled() or future.exception() is not None:
            self._ended_badly = self._ended_badly or future
            return None
        return future.result()

    @property
    def is_empty(self) -> bool:
        """Whether the call needs nothing: neither futures nor objects are in it."""
        return not (self._held or self.objects or self._ended_badly is not None)

    def of_header(self) -> dict[str, tuple[str, ...]]:
        """What the header says: tasks by their sessions."""
        if not self._held:  # as most
            return {}
        found: dict[str, list[str]] = {}
        for session, task in self._held:
            found.setdefault(session, []).append(task)
        return {session: tuple(tasks) for session, tasks in found.items()}

    def futures(self) -> list[TaskFuture]:
        """What it needs."""
        return [future for _, future in self._held.values()]

    def end(self, future: TaskFuture) -> bool:
        """End the call's own future at once if something that the call needs is known to have failed; whether it is."""
        bad = self._ended_badly
        if bad is None:
            return False
        self.drop()
        if bad.cancelled():
            future.withdrawn()
            return True
        cause = bad.exception()
        if isinstance(cause, DependencyFailed) and cause.__cause__ is not None:
            cause = cause.__cause__
        error = DependencyFailed(
            f"The call to {future.header.name} was not made, because an argument of it failed: "
            f"{type(cause).__name__}: {cause}"
        )
        error.__cause__ = cause
        finish(future, error=error)
        return True

    def submitted(self, future: TaskFuture) -> None:
        """The call is in the spool, and held back; it may go once what it needs has ended."""
        with self._lock:
            self.future = future
            go = not self._pending
        if go:
            self._release()

    def ended(self, session: str, task: str) -> None:
        """One of the tasks that it needs has its outcome."""
        with self._lock:
            self._pending.discard((session, task))
            go = self.future is not None and not self._pending
        if go:
            self._release()

    def _release(self) -> None:
        assert self.future is not None
        if self.future.header.not_before:  # workers know whose clock says when
            return
        with contextlib.suppress(OSError, SpoolpoolError):  # a worker will do it
            make_ready(self._spool, self.future.header, self.future.task_file)

    def drop(self) -> None:
        """The call has its outcome, or will not be made; harmless when repeated."""
        with self._lock:
            held, self._held = self._held, {}
            self.future = None
        for (_, task), (session, _) in held.items():
            session.drop(task, self.task)
