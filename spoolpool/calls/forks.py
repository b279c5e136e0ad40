"""Calls of user code that may fork: a child never gets behind its function into the code of the worker."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn


def call(function: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}) -> Any:
    """Call a function of a user. A child that it forks, and that leaves the function in any way, ends there.

    The child would otherwise publish an outcome for the task of its parent, and claim tasks in the name of its worker.
    """
    pid = os.getpid()
    try:
        return function(*args, **kwargs)
    finally:
        if os.getpid() != pid:
            _end_child(sys.exc_info()[1])


def _end_child(error: BaseException | None) -> NoReturn:
    """End a forked child as Python ends a script: with the traceback of an exception, and its exit code."""
    code = 0 if error is None else 1
    try:
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
            if code and not isinstance(error.code, int):
                print(error.code, file=sys.stderr)  # noqa: T201  as the interpreter does
        elif error is not None:
            traceback.print_exception(error)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    finally:
        os._exit(code & 0xFF)
