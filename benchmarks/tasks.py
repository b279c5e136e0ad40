"""Functions that workers run, of whichever contender: installed everywhere, and sent by reference."""

from __future__ import annotations

import os
import pickle
import sys
import time
import types
from collections.abc import Callable
from typing import Any


def linger(seconds: float) -> int:
    """Take a while, so that other workers get the next ones; returns who ran it."""
    time.sleep(seconds)
    return os.getpid()


def into_file(path: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Make a call and leave its value in a file, for a contender that returns none."""
    value = fn(*args)
    with open(path, "wb") as file:
        pickle.dump(value, file)


def total(array: Any) -> float:
    """The sum of an array: looks at every byte."""
    return float(array.sum())


def prepare(count: int, value: float) -> int:
    """Make an array of a value and keep it in this worker, so that its making is no part of what is measured."""
    import numpy as np

    kept = _kept()
    kept.array = None  # type: ignore[attr-defined]  # first: two would be the peak
    kept.array = np.full(count, value)  # type: ignore[attr-defined]
    return count


def prepared(count: int, value: float) -> Any:
    """The array that :func:`prepare` made in this worker; where each call has a process of its own, it is made now."""
    if getattr(_kept(), "array", None) is None:
        prepare(count, value)
    return _kept().array


def peak() -> int:
    """The most bytes that this process had in memory at one time: its own and those of mapped files.

    ``VmHWM`` and not ``ru_maxrss``: the latter also remembers the process that this one was started by.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def _kept() -> types.ModuleType:
    # in sys.modules, because a function that was sent by value has globals that live as long as one call
    return sys.modules.setdefault("benchmarks_kept", types.ModuleType("benchmarks_kept"))
