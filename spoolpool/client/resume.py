"""What a session was asked in an earlier life: the same script, run again, takes up the tasks of its calls.

::

    submit ---- key ----> take_up ---- there ----> the future of that task
                             | not there
                             v
                          a new task, with its key in the header
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from spoolpool.calls.fingerprint import fingerprint
from spoolpool.client.futures import PartFuture, TaskFuture
from spoolpool.client.session import Session
from spoolpool.errors import SpoolDenied, SpoolpoolError
from spoolpool.format.names import CANCELLED
from spoolpool.monitor.inventory import find_session_tasks
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import TaskLocation
from spoolpool.protocol.outcomes import read_outcome_header
from spoolpool.resources import Resources


class SessionReplay:
    """The tasks that a session had when this process came to it. May be used from several threads.

    Each of them stands for one call: a script that makes the same call three times has three tasks, and finds three
    when it is run again. One that failed, was cancelled, or has an outcome that cannot be read stands for none, so
    that its call is made again. ``init`` is the executor's ``init_function``, which counts as well.

    Raises :class:`SpoolDenied` where this account cannot see all of them: what it does not see it would submit again.
    """

    def __init__(self, session: Session, init: Callable[[], object] | None) -> None:
        self._session = session
        self._init = None if init is None else fingerprint(init, (), {})
        self._lock = threading.Lock()
        self._left: dict[str, deque[TaskView]] = {}
        tasks, unlisted = find_session_tasks(session.spool, session.name)
        if unlisted:
            path, reason = min(unlisted.items())
            raise SpoolDenied(
                f"Cannot resume the session {session.name} of {session.spool.path}: {path} cannot be listed "
                f"({reason}), and what waits or runs would be submitted again. In a dropbox its owner alone sees all; "
                "futures() gives the results that are there."
            )
        for task in tasks:
            if task.header and task.header.key:
                self._left.setdefault(task.header.key, deque()).append(task)

    def key(
        self, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object], wishes: Resources
    ) -> str:
        """By what a call is found again: function, arguments and resources.

        Raises :class:`BadRequest` that names an argument without a fingerprint.
        """
        resources = (wishes.decisive(), self._init)
        return fingerprint(function, args, kwargs, resources=resources, stands_for=_stands_for)

    def take_up(self, key: str) -> TaskFuture | None:
        """The future of the next task of this key, done or not; None where none is left."""
        with self._lock:
            left = self._left.get(key)
            while left:
                task = left.popleft()
                if self._is_good(task.location):
                    return self._session.take_up(task)
        return None

    def _is_good(self, task: TaskLocation) -> bool:
        """Whether a task has its result, or can still have it."""
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
    """What counts for a future among the arguments: the call for which it stands, or its value."""
    whole, keys = (future.whole, future.keys) if isinstance(future, PartFuture) else (future, ())
    if isinstance(whole, TaskFuture) and whole.header.key:
        return whole.header.key, keys
    if not future.done():
        return None
    return ("failed",) if future.cancelled() or future.exception() is not None else ("value", future.result())
