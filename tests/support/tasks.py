"""Functions that tests submit: in a module of their own, so that a worker need not import pytest for them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from spoolpool.calls import pickling
from spoolpool.system.backoff import Backoff


def wait_for(path: str | Path, value: Any = None) -> Any:
    """Simulate work until a file exists."""
    backoff = Backoff(0.002, 0.05)
    while not os.path.exists(path):
        backoff.sleep()
    return value


def mark(path: str | Path, value: Any = None) -> Any:
    """Record the run by a line in a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    return value


class _SignalsAtShutdown:
    """Sender of signals to its own process, once the interpreter has removed all handlers in its shutdown."""

    def __init__(self, numbers: Sequence[int], mark: str) -> None:
        self._numbers, self._mark = numbers, mark

    def __del__(
        self, kill: Any = os.kill, pid: Any = os.getpid, os_open: Any = os.open, flags: int = os.O_CREAT
    ) -> None:
        for number in self._numbers:
            kill(pid(), number)
        os_open(f"{self._mark}-{pid()}", flags)


_kept: list[Any] = []


def send_signals_at_shutdown(numbers: Sequence[int], mark: str | Path) -> None:
    """Let this process get signals in the shutdown of its interpreter, and create a file after that."""
    _kept.append(_SignalsAtShutdown(numbers, str(mark)))


def mark_and_wait(started: str | Path, end: str | Path, value: Any = None) -> Any:
    """Record the run, then simulate work until another file exists."""
    mark(started)
    return wait_for(end, value)


def mark_and_return_pid(started: str | Path, end: str | Path) -> int:
    """Record the run, simulate work until another file exists, and return the pid of this process."""
    return mark_and_wait(started, end, os.getpid())


def watch_children(started: str | Path, end: str | Path) -> list[str]:
    """Simulate work until another file exists; return what tells this process of children that it did not start."""
    found: list[str] = []
    before = signal.signal(signal.SIGCHLD, lambda *_: found.append("SIGCHLD"))
    try:
        mark_and_wait(started, end)
        os.waitpid(-1, os.WNOHANG)
        found.append("a child")
    except ChildProcessError:
        found.append("no child")
    finally:
        signal.signal(signal.SIGCHLD, before)
    return found


def draw() -> dict[str, Any]:
    """Return a value of each source of random numbers, by its name."""
    import numpy as np

    return {
        "random": random.random(),
        "numpy": float(np.random.random()),  # noqa: NPY002  the global state is meant
        "numpy, new": float(np.random.default_rng().random()),
        "uuid": uuid.uuid4().hex,
        "secrets": secrets.token_hex(),
        "hash": hash("seed"),
    }


def mark_and_draw(started: str | Path, end: str | Path) -> dict[str, Any]:
    """Record the run, simulate work until another file exists, and return a value of each source."""
    mark_and_wait(started, end)
    return draw()


def pid(*_: Any) -> int:
    """Return the pid of the process that runs the task."""
    return os.getpid()


def keywords(**values: Any) -> dict[str, Any]:
    """Return its keyword arguments, which may have any names."""
    return values


def variable(name: str) -> str | None:
    """Return an environment variable of the worker."""
    return os.environ.get(name)


def work(seconds: float) -> None:
    """Simulate work for some seconds."""
    Backoff(seconds, seconds).sleep()


def get_cwd() -> str:
    """Return the working directory of the task."""
    return os.getcwd()


def get_cwd_and(value: Any) -> tuple[str, Any]:
    return os.getcwd(), value


def get_cwd_of_parent() -> str:
    """Return the working directory of the parent process: it runs no task."""
    return os.readlink(f"/proc/{os.getppid()}/cwd")


def make_presets() -> dict[str, Any]:
    """Return the pid and random bytes, as an ``init_function``: they tell its calls apart."""
    return {"preset": [os.getpid(), os.urandom(4)], "unused": None}


def take_preset(given: int, preset: Any = None, *, keyword: Any = None) -> tuple[int, Any, Any]:
    """Return its arguments: one of the call, a preset one, and a keyword."""
    return given, preset, keyword


def make_failing_presets() -> dict[str, Any]:
    """Raise an error, as an ``init_function``."""
    raise OwnError("no licence")


class OwnError(Exception):
    """Exception that can be pickled."""


class PickyError(Exception):
    """Exception with more constructor arguments than pickle keeps."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (code {code})")


def fail(error: BaseException) -> NoReturn:
    """Raise an exception."""
    raise error


def fail_deeper(text: str) -> NoReturn:
    """Raise an error that has a cause."""
    try:
        {}[text]
    except KeyError as error:
        raise OwnError(text) from error


def fail_picky() -> NoReturn:
    """Raise an exception that cannot be unpickled."""
    raise PickyError(7, "no such thing")


def fail_with_lock() -> NoReturn:
    """Raise an exception that cannot be pickled."""
    raise OwnError(threading.Lock())


def lock() -> Any:
    """Return a value that cannot be pickled."""
    return threading.Lock()


def _go_off() -> NoReturn:
    raise OwnError("goes off when it is unpickled")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return _go_off, ()


def bomb() -> Any:
    """Return a value that cannot be unpickled."""
    return _Bomb()


def leave(code: Any) -> NoReturn:
    """Call ``sys.exit``."""
    sys.exit(code)


def exit_at_once(status: int) -> NoReturn:
    """End this process at once. In a test process under coverage, ``os._exit`` itself cannot be pickled."""
    os._exit(status)


def die(how: str, trace: str | Path) -> None:
    """End this process at once: by ``_exit`` or by a signal."""
    mark(trace)
    if how == "_exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))


def rank_and_size() -> tuple[int, int]:
    """Return rank and size of the group."""
    from spoolpool import current_task

    task = current_task()
    return task.rank, task.size


def communicator() -> tuple[int, int]:
    """Return rank and size of ``COMM_WORLD``."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


def hold_gil(started: str | Path, gate: str | Path) -> None:
    """Wait in C code for the lock of a file, while holding the global interpreter lock."""
    fd = os.open(gate, os.O_RDWR)
    mark(started)
    ctypes.PyDLL(None).flock(fd, fcntl.LOCK_EX)


def wait_in_vain(started: str | Path) -> NoReturn:
    """Wait without end; do not end when the call is interrupted."""
    mark(started)
    while True:
        with contextlib.suppress(BaseException):
            threading.Event().wait()


def fork_and_wait(children: str | Path, end: str | Path) -> None:
    """Fork a child; it and this process wait until a file exists."""
    pid = os.fork()
    if pid == 0:
        wait_for(end)
        os._exit(0)
    Path(children).write_text(str(pid), encoding="ascii")
    wait_for(end)


def speak(word: str) -> str:
    """Print from this process, from a child process, and to standard error."""
    print(f"{word} from Python")
    subprocess.run(["sh", "-c", f"echo {shlex.quote(word)} from a child"], check=True)
    print(f"{word} to standard error", file=sys.stderr)
    return word


def speak_and_fail(word: str) -> NoReturn:
    """Print, and raise."""
    print(word)
    raise OwnError(word)


def speak_and_die(trace: str | Path) -> None:
    """Print the attempt and die by SIGKILL, as of the kernel when memory is short."""
    from spoolpool import current_task

    print(f"attempt {current_task().attempt}")
    die("SIGKILL", trace)


def speak_and_die_at_first() -> int:
    """Print the attempt and die by SIGKILL in the first one."""
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
    """Print the rank."""
    from spoolpool import current_task

    print(f"I am rank {current_task().rank}")
    return current_task().rank


def tell_and_wait(end: str | Path) -> None:
    """Report progress and wait for a file."""
    from spoolpool import current_task

    current_task().progress(0.4, "SCF step 12")
    wait_for(end)


def tell_rank_and_wait(end: str | Path) -> None:
    """Report the rank as progress and wait for a file."""
    from spoolpool import current_task

    current_task().progress(None, f"rank {current_task().rank}")
    wait_for(end)


class EndOfData(StopIteration):
    """End of an iteration, as a library may define it."""


class AbruptError(BaseException):
    """Exception without the base ``Exception``."""


class RaisesPickled:
    """Value whose pickling raises an exception of a class."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> NoReturn:
        raise self.kind("pickled")


class RaisesUnpickled:
    """Value whose unpickling raises an exception of a class."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return raise_new, (self.kind, "unpickled")


class RaisesInUse(Exception):
    """Exception of which every use but the raising raises an exception of a class."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def _raise(self, *_: object) -> NoReturn:
        raise self.kind("used")

    __str__ = __repr__ = __eq__ = __hash__ = __len__ = __bool__ = __getitem__ = _raise  # type: ignore[assignment]


class RaisesAtItsEnd:
    """Value whose finalizer raises an exception of a class."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __del__(self) -> None:
        raise self.kind("finalized")


def raise_new(kind: type[BaseException], text: str = "called", **_: Any) -> NoReturn:
    """Raise a new exception of a class."""
    raise kind(text)


def return_new(make: type[Any], kind: type[BaseException]) -> Any:
    """Return a new value of one of the classes above."""
    return make(kind)


def fail_new(make: type[Any], kind: type[BaseException]) -> NoReturn:
    """Raise an exception that holds a new value of one of the classes above, or is one."""
    value = make(kind)
    raise value if isinstance(value, BaseException) else OwnError("holds", value)


def make_and_drop(make: type[Any], kind: type[BaseException]) -> None:
    """Drop a new value of one of the classes above."""
    make(kind)


def pickle_for_ever() -> None:
    """Pickle a value whose pickling never ends."""
    pickling.dumps(_Endless())


class _Endless:
    def __reduce__(self) -> NoReturn:
        while True:
            Backoff(0.01, 0.01).sleep()


def return_first(value: Any) -> Any:
    """Return its argument."""
    return value


def die_unless(path: str | Path) -> str:
    """End this process at once, unless a file exists."""
    if not os.path.exists(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return "value"


def raise_at_first(trace: str | Path) -> str:
    """Raise in the first run."""
    mark(trace)
    if len(Path(trace).read_text(encoding="ascii").splitlines()) == 1:
        raise ValueError("not yet")
    return "value"
