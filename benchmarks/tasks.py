"""Functions for the workers of all contenders: installed everywhere, and sent by reference."""

from __future__ import annotations

import os
import pickle
import sys
import time
import types
from collections.abc import Callable
from typing import Any


def linger(seconds: float) -> int:
    """Take some time, so that other workers get the next calls; return the pid of the worker."""
    time.sleep(seconds)
    return os.getpid()


def into_file(path: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Make a call and write its value to a file, for a contender that returns none."""
    value = fn(*args)
    with open(path, "wb") as file:
        pickle.dump(value, file)


def total(array: Any) -> float:
    """Return the sum of an array, which reads all its bytes."""
    return float(array.sum())


def prepare(count: int, value: float) -> int:
    """Create an array of a value and keep it in this worker, so that its creation is not measured."""
    import numpy as np

    kept = _kept()
    kept.array = None  # type: ignore[attr-defined]  # first: two would be the peak
    kept.array = np.full(count, value)  # type: ignore[attr-defined]
    return count


def prepared(count: int, value: float) -> Any:
    """Return the array of :func:`prepare` in this worker; a process with a single call creates it now."""
    if getattr(_kept(), "array", None) is None:
        prepare(count, value)
    return _kept().array


def peak() -> int:
    """Return the peak memory of this process in bytes: its own and that of mapped files.

    ``VmHWM`` and not ``ru_maxrss``: the latter includes the process that started this one.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def _kept() -> types.ModuleType:
    # in sys.modules, because the globals of a function sent by value live only during one call
    return sys.modules.setdefault("benchmarks_kept", types.ModuleType("benchmarks_kept"))
