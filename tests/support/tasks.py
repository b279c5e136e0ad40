"""Functions that tests submit: in a module of their own, so that a worker need not import pytest for them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from spoolpool.system.backoff import Backoff


def wait_for(path: str | Path, value: Any = None) -> Any:
    """Play work until a file is there."""
    backoff = Backoff(0.002, 0.05)
    while not os.path.exists(path):
        backoff.sleep()
    return value


def mark(path: str | Path, value: Any = None) -> Any:
    """Leave a trace: a line more in a file for each run."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    return value


def mark_and_wait(started: str | Path, end: str | Path, value: Any = None) -> Any:
    """Leave a trace, then play work until another file is there."""
    mark(started)
    return wait_for(end, value)


def pid(*_: Any) -> int:
    """Who runs it."""
    return os.getpid()


def keywords(**values: Any) -> dict[str, Any]:
    """Any keyword arguments."""
    return values


def variable(name: str) -> str | None:
    """A variable of the worker's environment."""
    return os.environ.get(name)


def work(seconds: float) -> None:
    """Play work for a while."""
    Backoff(seconds, seconds).sleep()


def get_cwd() -> str:
    """Where it runs."""
    return os.getcwd()


def make_presets() -> dict[str, Any]:
    """An ``init_function`` whose values tell when and where it was called."""
    return {"preset": [os.getpid(), os.urandom(4)], "unused": None}


def take_preset(given: int, preset: Any = None, *, keyword: Any = None) -> tuple[int, Any, Any]:
    """A function with a parameter that is preset."""
    return given, preset, keyword


def make_failing_presets() -> dict[str, Any]:
    """An ``init_function`` that cannot do its work."""
    raise OwnError("no licence")


class OwnError(Exception):
    """An exception that travels."""


class PickyError(Exception):
    """An exception whose constructor wants more than pickle keeps."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (code {code})")


def fail(error: BaseException) -> NoReturn:
    """Raise."""
    raise error


def fail_deeper(text: str) -> NoReturn:
    """Raise an error that has a cause of its own."""
    try:
        {}[text]
    except KeyError as error:
        raise OwnError(text) from error


def fail_picky() -> NoReturn:
    """Raise what cannot be unpickled."""
    raise PickyError(7, "no such thing")


def fail_with_lock() -> NoReturn:
    """Raise what cannot be pickled."""
    raise OwnError(threading.Lock())


def lock() -> Any:
    """Return what cannot be pickled."""
    return threading.Lock()


def _go_off() -> NoReturn:
    raise OwnError("goes off when it is unpickled")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return _go_off, ()


def bomb() -> Any:
    """Return what cannot be unpickled."""
    return _Bomb()


def leave(code: Any) -> NoReturn:
    """Ask the interpreter to end."""
    sys.exit(code)


def die(how: str, trace: str | Path) -> None:
    """End this process without a word."""
    mark(trace)
    if how == "_exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))


def rank_and_size() -> tuple[int, int]:
    """Where in its group this rank stands."""
    from spoolpool import current_task

    task = current_task()
    return task.rank, task.size


def communicator() -> tuple[int, int]:
    """The same, as MPI sees it."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


def hold_gil(started: str | Path, gate: str | Path) -> None:
    """Sit in C code, without giving up the interpreter's lock, until nobody holds the lock of a file any more."""
    fd = os.open(gate, os.O_RDWR)
    mark(started)
    ctypes.PyDLL(None).flock(fd, fcntl.LOCK_EX)


def fork_and_wait(children: str | Path, end: str | Path) -> None:
    """Leave a forked child behind that lives until a file is there, as its parent does."""
    pid = os.fork()
    if pid == 0:
        wait_for(end)
        os._exit(0)
    Path(children).write_text(str(pid), encoding="ascii")
    wait_for(end)


def speak(word: str) -> str:
    """Print from here, from a child process, and to standard error."""
    print(f"{word} from Python")
    subprocess.run(["sh", "-c", f"echo {shlex.quote(word)} from a child"], check=True)
    print(f"{word} to standard error", file=sys.stderr)
    return word


def speak_and_fail(word: str) -> NoReturn:
    """Print, and raise."""
    print(word)
    raise OwnError(word)


def speak_and_die(trace: str | Path) -> None:
    """Print which attempt it is, and end as the kernel ends what takes too much memory."""
    from spoolpool import current_task

    print(f"attempt {current_task().attempt}")
    die("SIGKILL", trace)


def speak_and_die_at_first() -> int:
    """Print which attempt it is, and survive only the second."""
    from spoolpool import current_task

    attempt = current_task().attempt
    print(f"attempt {attempt}")
    if attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


def speak_twice(end: str | Path) -> None:
    """Print, wait for a file, and print again."""
    print("first")
    wait_for(end)
    print("second")


def speak_as_rank() -> int:
    """Print which rank it is."""
    from spoolpool import current_task

    print(f"I am rank {current_task().rank}")
    return current_task().rank


def tell_and_wait(end: str | Path) -> None:
    """Say how far it is, and wait for a file."""
    from spoolpool import current_task

    current_task().progress(0.4, "SCF step 12")
    wait_for(end)


def tell_rank_and_wait(end: str | Path) -> None:
    """Say which rank it is, and wait for a file."""
    from spoolpool import current_task

    current_task().progress(None, f"rank {current_task().rank}")
    wait_for(end)
