"""Exceptions from code of users that this package calls: pickling methods, callbacks, texts of values and exceptions.

Code of a user may raise anything there, ``SystemExit`` and other exceptions without the base ``Exception`` included.
Each is the error of one call or future, and ends no thread and no worker. Only an interrupt is passed on.
"""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

from spoolpool.errors import TaskCancelled
from spoolpool.system import stop_request

_E = TypeVar("_E", bound=BaseException)

_last_interrupt: weakref.ref[BaseException] = weakref.ref(TaskCancelled())  # of nothing yet


def mark_interrupt(error: _E) -> _E:
    """Return an exception that a signal handler is about to raise in a running task, marked for :func:`is_interrupt`.

    The mark is not in the exception: code of a user may raise the same class, and the exception may be pickled.
    """
    global _last_interrupt  # noqa: PLW0603  signals are handled once per process, too
    _last_interrupt = weakref.ref(error)
    return error


def is_interrupt(error: BaseException) -> bool:
    """Return whether an exception was raised by a signal: the interruption of a running task, or Ctrl-C of the user.

    Ctrl-C raises in the main thread alone, and not in a worker, whose handler raises nothing.
    """
    if error is _last_interrupt():
        return True
    if not isinstance(error, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGINT)
    return callable(handler) and getattr(handler, "__module__", "") != stop_request.__name__


def error_message(error: BaseException) -> str:
    """Return the text of an exception, in which undecodable bytes are escaped; its own ``__str__`` may raise.

    A text takes little time, so that a ``KeyboardInterrupt`` is rather its own than one of the user.
    """
    try:
        return printable(str(error))
    except BaseException as broken:
        if broken is _last_interrupt():
            raise
        return "(its __str__ failed)"


def describe_error(error: BaseException) -> str:
    """Return class and text of an exception."""
    return f"{type(error).__name__}: {error_message(error)}"


def describe_value(value: object, length: int = 60, represent: Callable[[object], str] = repr) -> str:
    """Return a value for display, in at most ``length`` characters; its own ``__repr__`` may raise."""
    try:
        text = printable(represent(value))
    except BaseException as broken:
        if broken is _last_interrupt():
            raise
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def printable(text: str) -> str:
    """Return a text that can be encoded as UTF-8: names of files may contain bytes that are no text."""
    return str(text) if text.isascii() else text.encode(errors="backslashreplace").decode()
