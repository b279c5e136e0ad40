"""Base class of the futures: little memory while a future is pending, and callbacks that may raise anything."""

from __future__ import annotations

import functools
import logging
import threading
from _thread import RLock
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from typing import Any

from spoolpool.system.text import escape_line
from spoolpool.system.user_code import describe_value, is_interrupt

log = logging.getLogger("spoolpool.client.futures")


class FutureLock(RLock):  # type: ignore[misc]  # final for type checkers, to be subclassed otherwise
    """Lock of a future with the interface of ``threading.Condition``, which it creates for the first waiting thread.

    A ``threading.Condition`` takes 1.4 kB, a program may have a million pending futures, and few are waited for one
    by one.
    """

    __slots__ = ("_waited",)

    def __init__(self) -> None:
        self._waited: threading.Condition | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait for a notification, and acquire the lock again; returns False at the timeout."""
        if self._waited is None:  # the caller holds the lock
            self._waited = threading.Condition(self)
        return self._waited.wait(timeout)

    def notify_all(self) -> None:
        """Notify the waiting threads; the caller holds the lock."""
        if self._waited is not None:
            self._waited.notify_all()


class SafeFuture(Future[Any]):
    """Future whose callbacks may raise anything: it is logged, and neither ends a thread nor stops other callbacks.

    The standard library does so for an ``Exception`` only. An interrupt is passed on. The attributes of the standard
    library's class are slots, and the lists among them are created when they are first used: this saves three quarters
    of the memory, and makes the garbage collector faster.
    """

    __slots__ = ("_condition", "_exception", "_first_callbacks", "_first_waiters", "_result", "_state")

    def __init__(self) -> None:  # not that of the base class, which creates a condition and two lists
        self._condition: Any = FutureLock()
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._first_waiters: list[Any] | None = None
        self._first_callbacks: list[Callable[[Future[Any]], object]] | None = None

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        """List for ``wait`` and ``as_completed`` of the standard library, which hold the lock."""
        if self._first_waiters is None:
            self._first_waiters = []
        return self._first_waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Future[Any]], object]]:
        """List of the callbacks; used with the lock, or once the future is done."""
        if self._first_callbacks is None:
            self._first_callbacks = []
        return self._first_callbacks

    @property
    def has_ended(self) -> bool:
        """Whether the future is done, as :meth:`done`, but only for a look: it does not say that anybody asks."""
        return self._state not in (PENDING, RUNNING)

    @property
    def is_observed(self) -> bool:
        """Whether callbacks or functions such as ``wait`` are to be told of the end."""
        return bool(self._first_waiters or self._first_callbacks)

    def set_unobserved(self, value: object) -> bool:
        """Set the result of a future that is neither done nor observed; returns False for another one."""
        with self._condition:
            if self.has_ended or self.is_observed:
                return False
            self._result = value
            self._state = FINISHED  # last: a signal handler may raise in between
            self._condition.notify_all()
        return True

    def about(self) -> dict[str, str]:
        """Return task and function, for a display; nothing for a future without a task."""
        return {}

    def label_text(self) -> str:
        """Return the label, or a preview of the arguments, as one line of text; empty without both."""
        about = self.about()
        return escape_line(about.get("label") or about.get("arguments", ""))

    def title(self) -> str:
        """Return task, function and label as one line of text."""
        return escape_line(" ".join(self.about().values()))

    def _state_text(self) -> str:
        """Return the state, and the type of the result or exception. Asks no file."""
        with self._condition:
            if self._state != FINISHED:
                return str(self._state).partition("_")[0].lower()
            error = self._exception
            return f"returned {type(self._result).__name__}" if error is None else f"raised {type(error).__name__}"

    def __repr__(self) -> str:
        return f"<{' '.join(filter(None, (type(self).__name__, self.title(), self._state_text())))}>"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        import html

        rows = {"": type(self).__name__, **self.about(), "state": self._state_text()}
        lines = (
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(escape_line(text))}</td></tr>"
            for name, text in rows.items()
        )
        return f"<table>{''.join(lines)}</table>"

    def after_fork(self) -> None:
        """Replace the locks in a forked child: a thread of the parent may have held them during the fork."""
        self._condition = FutureLock()
        self._first_callbacks = None  # only the parent calls them

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, or raise the exception, whose truth value the standard library would ask for."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        error = Future.exception(self, timeout)
        if error is None:
            return super().result(0)
        try:
            raise error
        finally:
            del error  # it refers to this frame

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call a function with this future once it is done; at once if it is done already."""
        super().add_done_callback(functools.partial(_call_back, fn))


def _call_back(function: Callable[[Future[Any]], object], future: Future[Any]) -> None:
    try:
        function(future)
    except BaseException as error:
        if is_interrupt(error):
            raise
        log.exception("A callback of %s raised %s", describe_value(future), type(error).__name__)
