"""Functions that the tests of shared filesystems submit.

The marks by which test and function synchronize are files of the machine itself, which all clients see at once.
"""

from __future__ import annotations

import os
import sys
import uuid
from typing import Any, NoReturn

from spoolpool import current_task
from spoolpool.system.backoff import Backoff


def mark(directory: str, name: str) -> None:
    """Record this run."""
    path = f"{directory}/{name}.{os.uname().nodename}.{uuid.uuid4().hex}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def marks(directory: str, name: str) -> list[str]:
    """Return the host of each run of a task."""
    return sorted(each.split(".")[1] for each in os.listdir(directory) if each.startswith(f"{name}."))


def wait_for_mark(directory: str, name: str, count: int = 1) -> None:
    """Simulate work until a mark exists."""
    backoff = Backoff(0.01, 0.2)
    while len(marks(directory, name)) < count:
        backoff.sleep()


def echo(value: Any) -> Any:
    return value


def twice(array: Any) -> Any:
    return array * 2


def fail(text: str) -> NoReturn:
    raise ValueError(text)


def run(effects: str, uid: str) -> str:
    """Record the run; return the host."""
    mark(effects, uid)
    return os.uname().nodename


def meet(effects: str, uid: str, others: int) -> str:
    """Wait for other calls of this function to run at the same time; return the host."""
    mark(effects, uid)
    wait_for_mark(effects, uid, others)
    return os.uname().nodename


def linger(effects: str, uid: str) -> tuple[int, str]:
    """In the first attempt, simulate work until "UID-go" exists; return the attempt and the host."""
    mark(effects, uid)
    attempt = current_task().attempt
    if attempt == 1:
        wait_for_mark(effects, f"{uid}-go")
    return attempt, os.uname().nodename


def work(effects: str, uid: str, seconds: float, content: bytes) -> tuple[int, bytes]:
    """Record the run, take some time, and return the attempt and some bytes."""
    mark(effects, uid)
    if seconds:
        Backoff(seconds, seconds).sleep()
    return current_task().attempt, content


def python() -> str:
    return sys.executable
