"""State of the interpreter and of its process, which a task may change, and which the next task must not find changed.

A snapshot is taken before the first task and compared after each one. The comparison takes a few microseconds if the
task has left nothing; only what differs is restored. Values of ``contextvars`` (the decimal context, and numpy's error
state and print options since numpy 2) need no snapshot: each task runs in a copy of the context.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]  # its functions make no enums
import contextlib
import faulthandler
import gc
import locale
import logging
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, NamedTuple

from spoolpool.calls import modules
from spoolpool.system import stop_request

log = logging.getLogger(__name__)

_SIGNALS = [
    number
    for number in (*range(1, 32), *range(signal.SIGRTMIN + 4, signal.SIGRTMIN + 9))
    if number not in (signal.SIGKILL, signal.SIGSTOP)
]
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_ATTEMPTS = 5  # a signal handler that a task has left may raise in the middle of a restoration


class Part(NamedTuple):
    """One part of the state."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]
    keep: Callable[[Any], Any] | None = None
    """Copies a value that later changes would alter."""


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def change_directory(path: str | None) -> None:
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


def _list_part(name: str, holder: Any, attribute: str, stays: Callable[[Any], bool] = lambda _: False) -> Part:
    """Return a part that is a list: its object and its items are restored; new items stay where ``stays`` says so."""

    def get() -> tuple[Any, ...]:
        found = getattr(holder, attribute)
        return (found, *found)

    def put(wanted: tuple[Any, ...]) -> None:
        found, items = wanted[0], list(wanted[1:])
        items += [
            each for each in getattr(holder, attribute) if not any(each is item for item in items) and stays(each)
        ]
        setattr(holder, attribute, found)
        found[:] = items

    return Part(name, get, put)


def _put_filters(wanted: tuple[Any, ...]) -> None:
    warnings.filters = wanted[0]
    warnings.resetwarnings()  # it also drops the cache of decisions
    warnings.filters[:] = wanted[1:]  # type: ignore[index]


def _is_of_a_library(hook: Any) -> bool:
    """Return whether an import hook belongs to an installed package, which installs it only when it is imported."""
    name = getattr(hook, "__module__", None)
    return isinstance(name, str) and name in sys.modules and modules.is_library(name)


def _is_in_a_library(path: Any) -> bool:
    """Return whether a directory belongs to an installed package, which adds it only when it is imported."""
    return isinstance(path, str) and modules.in_a_library(path)


def _attribute(name: str, holder: Any, attribute: str) -> Part:
    return Part(name, lambda: getattr(holder, attribute), lambda value: setattr(holder, attribute, value))


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


_ROOT = logging.getLogger()
_OWN_LOGGER = logging.getLogger("spoolpool")


def _logging() -> tuple[Any, ...]:
    return (
        (_ROOT.level, _ROOT.disabled, _ROOT.manager.disable, logging.raiseExceptions),
        (_OWN_LOGGER.level, _OWN_LOGGER.disabled, _OWN_LOGGER.propagate, log.disabled),
        logging.getLogRecordFactory(),
        _ROOT.handlers,
        tuple(_ROOT.handlers),
        tuple(_ROOT.filters),
        tuple(_OWN_LOGGER.handlers),
    )


def _put_logging(wanted: tuple[Any, ...]) -> None:
    root, own, factory, handlers, root_handlers, filters, own_handlers = wanted
    for handler in _ROOT.handlers:
        if handler not in root_handlers:
            with contextlib.suppress(Exception):
                handler.flush()
    _ROOT.handlers, _ROOT.handlers[:], _ROOT.filters[:] = handlers, root_handlers, filters
    level, _ROOT.disabled, limit, logging.raiseExceptions = root
    _ROOT.setLevel(level)
    logging.disable(limit)
    logging.setLogRecordFactory(factory)
    level, _OWN_LOGGER.disabled, _OWN_LOGGER.propagate, _ = own
    _OWN_LOGGER.setLevel(level)
    _OWN_LOGGER.handlers[:] = own_handlers
    for name in list(_ROOT.manager.loggerDict):  # logging.config disables all loggers that it does not know
        if name.startswith("spoolpool."):
            logging.getLogger(name).disabled = False


def _put_showwarning(wanted: Any) -> None:
    logging.captureWarnings(False)  # otherwise a later task could not switch it on
    warnings.showwarning = wanted


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


_OLD_NUMPY: tuple[Any, ...] = (
    {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"},
    None,
    {
        "edgeitems": 3,
        "threshold": 1000,
        "floatmode": "maxprec",
        "precision": 8,
        "suppress": False,
        "linewidth": 75,
        "nanstr": "nan",
        "infstr": "inf",
        "sign": "-",
        "formatter": None,
        "legacy": False,
    },
)
"""Error state, function and print options of numpy when it is imported."""


class _OldNumpy:
    """State of numpy before 2.2, which is not in ``contextvars``."""

    def __init__(self) -> None:
        self._numpy: Any = None
        self._is_old = True

    def get(self) -> tuple[Any, ...]:
        """Return the state; that of a fresh interpreter if numpy is not imported, or newer."""
        if not self._is_old:
            return _OLD_NUMPY
        if self._numpy is None:
            found = sys.modules.get("numpy")
            if found is None or not hasattr(found, "set_printoptions"):  # its import has failed half-way
                return _OLD_NUMPY
            self._numpy = found
            self._is_old = [int(part) for part in found.__version__.split(".")[:2]] < [2, 2]
            return self.get()
        options = {key: value for key, value in self._numpy.get_printoptions().items() if key in _OLD_NUMPY[2]}
        return self._numpy.geterr(), self._numpy.geterrcall(), options

    def put(self, wanted: tuple[Any, ...]) -> None:
        """Restore the state."""
        errors, call, options = wanted
        self._numpy.seterr(**errors)
        self._numpy.seterrcall(call)
        self._numpy.set_printoptions(**options)


def _temporary_directory() -> Any:
    """Return ``tempfile.tempdir`` unless it was only looked up."""
    found = sys.modules.get("tempfile")
    directory = None if found is None else vars(found)["tempdir"]
    if directory is None or directory in _TEMPORARY or directory == os.environ.get("TMPDIR"):
        return None
    return directory


_TEMPORARY = {"/tmp", "/var/tmp", "/usr/tmp"}


def _put_temporary_directory(value: Any) -> None:
    vars(sys.modules["tempfile"])["tempdir"] = value


def _socket_timeout() -> Any:
    found = sys.modules.get("socket")
    return None if found is None else found.getdefaulttimeout()


def _put_socket_timeout(value: Any) -> None:
    sys.modules["socket"].setdefaulttimeout(value)


_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)


def _limits() -> list[tuple[int, int]]:
    return list(map(resource.getrlimit, _LIMITS))


def _put_limits(wanted: list[tuple[int, int]]) -> None:
    for limit, value in zip(_LIMITS, wanted, strict=True):
        if resource.getrlimit(limit) != value:
            resource.setrlimit(limit, value)  # fails if a task has lowered the hard limit


def _start_method() -> Any:
    found = sys.modules.get("multiprocessing")
    return None if found is None else found.get_start_method(allow_none=True)


def _put_start_method(value: Any) -> None:
    sys.modules["multiprocessing"].set_start_method(value, force=True)


def _parts() -> list[Part]:
    parts = [
        Part("working directory", _current_directory, change_directory),
        Part("environment", _environment, _put_environment, dict),
        Part("umask", _umask, os.umask),
        _stream_part("stdin", 0),
        _stream_part("stdout", 1),
        _stream_part("stderr", 2),
        _list_part("sys.path", sys, "path", _is_in_a_library),
        _list_part("sys.meta_path", sys, "meta_path", _is_of_a_library),
        _list_part("sys.path_hooks", sys, "path_hooks", _is_of_a_library),
        _list_part("sys.argv", sys, "argv"),
        Part("warnings filters", lambda: (warnings.filters, *warnings.filters), _put_filters),
        Part("warnings.showwarning", lambda: warnings.showwarning, _put_showwarning),
        _attribute("warnings.formatwarning", warnings, "formatwarning"),
        Part("logging", _logging, _put_logging),
        Part("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        Part("thresholds of garbage collection", gc.get_threshold, lambda value: gc.set_threshold(*value)),
        Part("flags of garbage collection", gc.get_debug, gc.set_debug),
        Part("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        Part("switch interval", sys.getswitchinterval, sys.setswitchinterval),
        Part("locale", lambda: _locale.setlocale(_locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
        Part("trace function", sys.gettrace, sys.settrace),
        Part("profile function", sys.getprofile, sys.setprofile),
        Part("trace function of threads", threading.gettrace, threading.settrace),
        Part("profile function of threads", threading.getprofile, threading.setprofile),
        Part("stack size of threads", threading.stack_size, threading.stack_size),
        _attribute("sys.excepthook", sys, "excepthook"),
        _attribute("sys.unraisablehook", sys, "unraisablehook"),
        _attribute("sys.displayhook", sys, "displayhook"),
        _attribute("sys.dont_write_bytecode", sys, "dont_write_bytecode"),
        _attribute("threading.excepthook", threading, "excepthook"),
        Part("state of numpy", (old_numpy := _OldNumpy()).get, old_numpy.put),
        Part("temporary directory", _temporary_directory, _put_temporary_directory),
        Part("start method of multiprocessing", _start_method, _put_start_method),
        Part("limits of resources", _limits, _put_limits),
        Part("flags of dlopen", sys.getdlopenflags, sys.setdlopenflags),
        Part("default timeout of sockets", _socket_timeout, _put_socket_timeout),
    ]
    if hasattr(os, "sched_getaffinity"):
        parts.append(Part("CPUs", lambda: os.sched_getaffinity(0), lambda cpus: os.sched_setaffinity(0, cpus)))
    if hasattr(sys, "get_int_max_str_digits"):  # of late versions of each minor version
        parts.append(Part("digits of integers", sys.get_int_max_str_digits, sys.set_int_max_str_digits))
    return parts


class Changes(NamedTuple):
    """Changes of the state by the ``init_function`` of a session, which all tasks of the session are to find."""

    parts: list[tuple[Part, Any]]
    context: Context

    def apply(self) -> None:
        """Make the changes again."""
        for part, value in self.parts:
            try:
                part.put(value)
            except Exception as error:  # noqa: BLE001  the other parts are to be changed all the same
                log.warning("The %s of the init_function cannot be set again: %s", part.name, error)


class ProcessState:
    """Snapshot of the state of this process. The thread that takes it is the one that restores it."""

    def __init__(self) -> None:
        self._parts = _parts()
        if threading.current_thread() is threading.main_thread():
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            # in this order: a signal that was blocked until now finds the handler that is restored before
            self._parts += [
                Part("signal handlers", _handlers, _put_handlers),
                Part(
                    "signal mask",
                    lambda: _signal.pthread_sigmask(_signal.SIG_BLOCK, ()),
                    lambda _: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
                ),
            ]
            self._timers: dict[int, tuple[float, float]] = {timer: signal.getitimer(timer) for timer in _TIMERS}
        else:
            self._timers = {}
        self._unused_timers = [timer for timer, (left, _) in self._timers.items() if not left]
        self._taken = time.monotonic()
        self._getters = [part.get for part in self._parts]
        self._saved = [self._keep(part) for part in self._parts]
        self.context = copy_context()
        """Values of ``contextvars`` at the time of the snapshot."""

    @staticmethod
    def _keep(part: Part) -> Any:
        value = part.get()
        return value if part.keep is None else part.keep(value)

    def restore(self) -> list[str]:
        """Restore the state; return the names of the parts that were different. It never raises."""
        for _ in range(_ATTEMPTS):
            try:
                if self._unused_timers:
                    self._stop_timers()
                faulthandler.cancel_dump_traceback_later()
                if [get() for get in self._getters] == self._saved:
                    return []
                return self._restore_differences()
            except BaseException:  # noqa: BLE001  a getter of a replaced object, or a signal handler that the task left
                with contextlib.suppress(BaseException):
                    return self._restore_differences()
        log.warning("The state of the process cannot be restored after a task.")
        return []

    def _stop_timers(self) -> None:
        # without a look, which would be another system call
        left = [_signal.setitimer(timer, 0)[0] for timer in self._unused_timers]
        if any(left):
            log.info("A task left an alarm armed. It was stopped.")

    def resume(self) -> None:
        """Restore the state in the middle of a task, after another one has run inside it; its timers go on."""
        self.restore()
        passed = time.monotonic() - self._taken
        for timer, (left, interval) in self._timers.items():
            if left:
                signal.setitimer(timer, max(1e-6, left - passed), interval)

    def changes(self) -> Changes:
        """Return what has changed since the snapshot."""
        return Changes([(part, self._keep(part)) for part, _ in self.differences()], copy_context())

    def _restore_differences(self) -> list[str]:
        changed = []
        for part, saved in self.differences():
            changed.append(part.name)
            try:
                part.put(saved)
            except Exception as error:  # noqa: BLE001  the other parts are to be restored all the same
                log.warning("The %s cannot be restored after a task: %s", part.name, error)
        if changed:
            log.debug("Restored after a task: %s", ", ".join(changed))
        return changed

    def differences(self) -> list[tuple[Part, Any]]:
        """Return the parts that differ from the snapshot, with their values in the snapshot."""
        found = []
        for part, saved in zip(self._parts, self._saved, strict=True):
            try:
                present = part.get()
                same = present is saved or bool(present == saved)
            except Exception:  # noqa: BLE001  an object that a task has put there may raise anything
                same = False
            if not same:
                found.append((part, saved))
        return found
