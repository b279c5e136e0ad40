"""Parts of the state of this process that the operating system keeps: each can be read, compared and restored."""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]  # its functions make no enums
import contextlib
import faulthandler
import locale
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spoolpool.system import stop_request
from spoolpool.system.environment import working_directory

_SIGNALS = [
    number
    for number in (*range(1, 32), *range(signal.SIGRTMIN + 4, signal.SIGRTMIN + 10))
    if number not in (signal.SIGKILL, signal.SIGSTOP)
]


class Part(NamedTuple):
    """One part of the state."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]
    keep: Callable[[Any], Any] | None = None
    """Copies a value that later changes would alter."""
    accepts: bool = False
    """Whether ``put`` leaves something that was added, which then belongs to the snapshot."""


def change_directory(path: str) -> None:
    """Change to a directory; if it is gone, to the next one above it that exists."""
    path = path or os.path.expanduser("~")
    while True:
        try:
            os.chdir(path)
        except OSError:
            if path in ("/", ""):
                return
            path = os.path.dirname(path)
        else:
            return


def _environment() -> dict[bytes, bytes]:
    data: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # noqa: SLF001  a copy takes 20 us
    return data


_environ = os.environ


def _put_environment(wanted: dict[bytes, bytes]) -> None:
    os.environ = _environ  # noqa: B003  the same object as ever, in case that a task has assigned another one
    zone = os.environb.get(b"TZ")
    for name in [name for name in os.environb if name not in wanted]:
        del os.environb[name]
    for name, value in wanted.items():
        if os.environb.get(name) != value:
            os.environb[name] = value
    if os.environb.get(b"TZ") != zone:
        time.tzset()


def _take_wakeup_descriptor() -> int:
    # an event loop that was not closed leaves it; without a look, which is no other call
    return int(_signal.set_wakeup_fd(-1))


def _put_wakeup_descriptor(fd: int) -> None:
    signal.set_wakeup_fd(fd)


def _handlers() -> list[Any] | None:
    # None after a request to stop, which changes the handlers
    return None if stop_request.was_requested() else list(map(_signal.getsignal, _SIGNALS))


def _put_handlers(wanted: list[Any] | None) -> None:
    if wanted is None or stop_request.was_requested():
        return
    for number, handler in zip(_SIGNALS, wanted, strict=True):
        if handler is not None and _signal.getsignal(number) != handler:  # None: one that Python has not installed
            signal.signal(number, handler)


def _umask() -> int:
    mask = os.umask(0o077)  # no thread of the worker creates a file between the two calls with fewer permissions
    os.umask(mask)
    return mask


def _stream_part(name: str, fd: int) -> Part:
    """Return a standard stream: the object, as long as it is open; else a new one of the same descriptor."""

    def get() -> Any:
        stream = getattr(sys, name)
        try:
            return None if stream is None or stream.closed else stream
        except ValueError:  # detached from its buffer
            return None

    def put(wanted: Any) -> None:
        present = getattr(sys, name)
        if present is not wanted and fd:
            with contextlib.suppress(BaseException):
                present.flush()
        if wanted is not None:
            try:
                usable = not wanted.closed
            except ValueError:
                usable = False
            if not usable:
                wanted = open(  # noqa: SIM115  it stays open
                    fd,
                    "w" if fd else "r",
                    buffering=1 if fd else -1,
                    closefd=False,
                    encoding="utf-8",
                    errors="backslashreplace" if fd == 2 else "surrogateescape",
                )
                setattr(sys, f"__{name}__", wanted)
        setattr(sys, name, wanted)

    return Part(f"sys.{name}", get, put)


_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
"""Limits that would keep the worker from publishing an outcome."""
_OTHER_LIMITS = tuple(
    sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")} - set(_LIMITS))
)


def _limits_part(name: str, limits: Sequence[int]) -> Part:
    def get() -> list[tuple[int, int]]:
        return list(map(resource.getrlimit, limits))

    def put(wanted: list[tuple[int, int]]) -> None:
        lowered = False
        for limit, value in zip(limits, wanted, strict=True):
            present = resource.getrlimit(limit)
            if present == value:
                continue
            try:
                resource.setrlimit(limit, value)
            except ValueError:  # a task has lowered the hard limit
                lowered = True
                resource.setrlimit(limit, (present[1], present[1]))
        if lowered:
            raise OSError("its hard limit was lowered")

    return Part(name, get, put)


def _cannot_be_put(_value: object) -> None:
    raise OSError("it cannot be changed back")


_FATAL = (signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)


def _take_dumps() -> int:
    """Unregister the dumps of stacks that ``faulthandler.register`` has bound to signals; return their number."""
    unregister: Callable[[int], bool] = faulthandler.unregister  # type: ignore[assignment]  # typeshed has None
    return sum(unregister(number) for number in _SIGNALS if number not in _FATAL)


def parts() -> list[Part]:
    """Return the parts that are compared after each task."""
    return [
        Part("working directory", working_directory, change_directory),
        Part("environment", _environment, _put_environment, dict),
        Part("umask", _umask, os.umask),
        _stream_part("stdin", 0),
        _stream_part("stdout", 1),
        _stream_part("stderr", 2),
        Part("locale", lambda: _locale.setlocale(_locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
        _limits_part("limits of resources", _LIMITS),
        Part("flags of dlopen", sys.getdlopenflags, sys.setdlopenflags),
    ]


def signal_parts() -> list[Part]:
    """Return the parts that only the main thread can restore, for the end of all parts."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # in this order: a signal that was blocked until now finds the handler that is restored before
    return [
        Part("descriptor for signals", _take_wakeup_descriptor, _put_wakeup_descriptor),
        Part("signal handlers", _handlers, _put_handlers),
        Part(
            "signal mask",
            lambda: _signal.pthread_sigmask(_signal.SIG_BLOCK, ()),
            lambda _: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
        ),
    ]


def slow_parts() -> list[Part]:
    """Return the parts that are compared now and then: together they cost as much as all others."""
    found = [
        _limits_part("other limits of resources", _OTHER_LIMITS),
        Part("priority", lambda: os.getpriority(os.PRIO_PROCESS, 0), lambda wanted: os.setpriority(0, 0, wanted)),
        Part("process session", lambda: os.getsid(0), _cannot_be_put),
        Part("account", lambda: (os.getresuid(), os.getresgid()), _cannot_be_put),
        Part("dumps of stacks at signals", _take_dumps, lambda _: _take_dumps()),
    ]
    if hasattr(os, "sched_getaffinity"):
        found.append(Part("CPUs", lambda: os.sched_getaffinity(0), lambda cpus: os.sched_setaffinity(0, cpus)))
    return found


def comparison() -> Callable[[], bool]:
    """Return a function that returns whether all :func:`parts` are as now. It restores the umask itself.

    It compares in one frame, after each task, what the parts compare in a frame each.
    """
    directory, environment, mask = working_directory(), dict(_environment()), _umask()
    stdin, stdout, stderr = sys.stdin, sys.stdout, sys.stderr
    name, flags = _locale.setlocale(_locale.LC_ALL), sys.getdlopenflags()
    space, size, files = map(resource.getrlimit, _LIMITS)
    # a task may replace the functions of modules
    set_mask, set_locale, get_flags, get_limit = os.umask, _locale.setlocale, sys.getdlopenflags, resource.getrlimit

    def compare() -> bool:
        return (
            set_mask(mask) == mask  # one system call, and no moment with another mask
            and working_directory() == directory
            and os.environ is _environ
            and _environment() == environment
            and sys.stdin is stdin
            and sys.stdout is stdout
            and sys.stderr is stderr
            and (stdin is None or not stdin.closed)
            and (stdout is None or not stdout.closed)
            and (stderr is None or not stderr.closed)
            and set_locale(_locale.LC_ALL) == name
            and get_flags() == flags
            and get_limit(resource.RLIMIT_AS) == space
            and get_limit(resource.RLIMIT_FSIZE) == size
            and get_limit(resource.RLIMIT_NOFILE) == files
        )

    return compare


def signal_comparison() -> Callable[[], bool]:
    """Return the same as :func:`comparison` for :func:`signal_parts`, in the main thread."""
    block, handlers = _signal.SIG_BLOCK, _handlers()
    set_mask, take = _signal.pthread_sigmask, _signal.set_wakeup_fd
    mask = set_mask(block, ())
    return lambda: take(-1) == -1 and _handlers() == handlers and set_mask(block, ()) == mask
