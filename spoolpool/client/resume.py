"""Replay of a named session: the calls of a script that runs again get the tasks of its earlier runs.

::

    submit ---- key ----> next_future ---- found ----> the future of that task
                             | not found
                             v
                          a new task, with the key in its header
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future
from typing import Any

from spoolpool.calls.fingerprint import fingerprint
from spoolpool.client.futures import DeferredFuture, PartFuture, TaskFuture
from spoolpool.client.session import SubmitterSession
from spoolpool.errors import SpoolDenied, SpoolpoolError
from spoolpool.format.names import CANCELLED
from spoolpool.monitor.inventory import find_session_tasks
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import TaskLocation
from spoolpool.protocol.outcomes import read_outcome_header
from spoolpool.resources import Resources
from spoolpool.system.environment import working_directory
from spoolpool.wire import Command


class SessionReplay:
    """Tasks that a session had when this process opened it. The methods may be called from any thread.

    Each task stands for one call: a script that makes the same call three times has three tasks, and finds three when
    it runs again. The call of a task that failed, was cancelled, or has an unreadable outcome is made again. ``init``,
    the executor's ``init_function``, is part of the keys.

    Raises :class:`SpoolDenied` if this account cannot list all tasks, since it would submit the others again.
    """

    def __init__(self, session: SubmitterSession, init: Callable[[], object] | None) -> None:
        self._session = session
        self._init = None if init is None else fingerprint(init, (), {})
        self._lock = threading.Lock()
        # by key, the next one last; a deque would take 0.6 kB, and most keys have one task
        self._left: dict[str, list[TaskView]] = {}
        tasks, unlisted = find_session_tasks(session.spool, session.name)
        if unlisted:
            path, reason = min(unlisted.items())
            raise SpoolDenied(
                f"Cannot resume the session {session.name} of {session.spool.path}: {path} cannot be listed "
                f"({reason}), so waiting and running tasks would be submitted again. Only the owner of a dropbox can "
                "list them; futures() returns the finished tasks."
            )
        for task in reversed(tasks):
            if task.header and task.header.key:
                self._left.setdefault(task.header.key, []).append(task)

    def key(
        self,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        resources: Resources,
        left_out: Container[Future[Any]] = (),
    ) -> str:
        """Return the fingerprint of a call, made of function, arguments and resources; empty if it is not known yet.

        That of a command is also made of its directory.
        It is not before all futures of other executors among the arguments are done, without those in ``left_out``.
        Raises :class:`BadRequest` that names an argument without a fingerprint.
        """
        decisive: tuple[object, ...] = (resources.decisive(), self._init)
        if isinstance(function, Command) and not resources.cwd:  # most commands have relative paths
            decisive = (*decisive, working_directory())
        unknown = False

        def stands_for(future: Future[Any]) -> object:
            nonlocal unknown
            found = "left out" if future in left_out else _stands_for(future)
            unknown |= found is None
            return found or ""

        key = fingerprint(function, args, kwargs, resources=decisive, stands_for=stands_for)
        return "" if unknown else key

    def finder(
        self,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        resources: Resources,
        awaited: Container[Future[Any]],
    ) -> Callable[[], tuple[str, TaskFuture | None]]:
        """Return a function that does :meth:`key` and :meth:`next_future` once the awaited futures are done.

        The key is empty if an argument was changed meanwhile: the pickled call has the earlier one.
        """
        before = self.key(function, args, kwargs, resources, awaited)

        def find() -> tuple[str, TaskFuture | None]:
            unchanged = self.key(function, args, kwargs, resources, awaited) == before
            key = self.key(function, args, kwargs, resources) if unchanged else ""
            return key, self.next_future(key)

        return find

    def next_future(self, key: str) -> TaskFuture | None:
        """Return the future of the next task of this key, done or not; None if there is none left."""
        with self._lock:
            left = self._left.get(key)
            while left:
                task = left.pop()
                if self._is_usable(task.location):
                    return self._session.future_of(task)
        return None

    def _is_usable(self, task: TaskLocation) -> bool:
        """Return whether a task has a result, or can still get one."""
        if task.place != "done":
            return task.place != "failed"
        if task.task_file.worker == CANCELLED:
            return False
        spool, session = self._session.spool, self._session.name
        try:
            outgoing = spool.outgoing(session, spool.account)
            return read_outcome_header(spool, session, task.task_file, outgoing).kind == "result"
        except (OSError, SpoolpoolError):
            return False


def _stands_for(future: Future[Any]) -> object:
    """Return the part of the fingerprint for a future among the arguments: the key of its call, or its value."""
    whole, keys = (future.whole, future.keys) if isinstance(future, PartFuture) else (future, ())
    if isinstance(whole, DeferredFuture) and whole.task_future is not None:
        whole = whole.task_future
    if isinstance(whole, TaskFuture) and whole.header.key:
        return whole.header.key, keys
    if not future.done():
        return None
    return ("failed",) if future.cancelled() or future.exception() is not None else ("value", future.result())
