"""The future of a task: the standard library's, which can also ask the spool."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, PENDING, RUNNING
from typing import Any, Protocol

from spoolpool.layout import Token
from spoolpool.task import TaskHeader

log = logging.getLogger(__name__)


class Inbox(Protocol):
    """What a future needs of its session: see :mod:`spoolpool.session`."""

    def cancel(self, future: TaskFuture) -> bool:
        """Take a task back that nobody has claimed."""

    def waits(self, future: TaskFuture) -> bool:
        """Whether no worker has claimed the task yet."""


class TaskFuture(Future[Any]):
    """The standard library's future, of a task in a spool: it can be cancelled until a worker claims it."""

    def __init__(self, session: Inbox, header: TaskHeader) -> None:
        super().__init__()
        self._session = session
        self.header = header
        self.token = Token(header.task, 1, 1)
        self._asking = threading.RLock()

    @property
    def task(self) -> str:
        """Task id, by which the command line knows it too."""
        return self.header.task

    def cancel(self) -> bool:
        """Take the task back; False once a worker has claimed it, or it is done."""
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
