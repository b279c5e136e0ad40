"""Parts of the state of the interpreter and of its standard library: each can be read, compared and restored."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from spoolpool.calls import modules
from spoolpool.calls.process_parts import Part

log = logging.getLogger(__name__)


def _list_part(name: str, holder: Any, attribute: str, stays: Callable[[Any], bool] | None = None) -> Part:
    """Return a part that is a list: its object and its items are restored; new items stay where ``stays`` says so."""

    def get() -> tuple[Any, ...]:
        found = getattr(holder, attribute)
        return (found, *found)

    def put(wanted: tuple[Any, ...]) -> None:
        found, items = wanted[0], list(wanted[1:])
        if stays is not None:
            new = [each for each in getattr(holder, attribute) if not any(each is item for item in items)]
            items += filter(stays, new)
        setattr(holder, attribute, found)
        found[:] = items

    return Part(name, get, put, accepts=stays is not None)


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


def _start_method() -> Any:
    found = sys.modules.get("multiprocessing")
    return None if found is None else found.get_start_method(allow_none=True)


def _put_start_method(value: Any) -> None:
    sys.modules["multiprocessing"].set_start_method(value, force=True)


def _event_loop() -> tuple[Any, ...]:
    """Return the policy of asyncio and the running loop, which a task sets by the use of asyncio."""
    found = sys.modules.get("asyncio.events")
    if found is None or not hasattr(found, "_get_running_loop"):  # its import has failed half-way
        return None, None
    return vars(found).get("_event_loop_policy"), found._get_running_loop()  # noqa: SLF001  asyncio makes a policy if asked


def _put_event_loop(wanted: tuple[Any, ...]) -> None:
    # without a policy, the next task gets a new one, and with it a new loop
    found = sys.modules["asyncio.events"]
    vars(found)["_event_loop_policy"] = wanted[0]
    found._set_running_loop(wanted[1])  # noqa: SLF001


def _is_tracing_memory() -> bool:
    found = sys.modules.get("tracemalloc")
    return found is not None and found.is_tracing()


def _put_memory_tracing(wanted: bool) -> None:
    module = sys.modules["tracemalloc"]
    if wanted:
        module.start()
    else:
        module.stop()


def parts() -> list[Part]:
    """Return the parts that are compared after each task."""
    old_numpy = _OldNumpy()
    found = [
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
        _list_part("callbacks of garbage collection", gc, "callbacks", _is_of_a_library),
        Part("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        Part("switch interval", sys.getswitchinterval, sys.setswitchinterval),
        Part("trace function", sys.gettrace, sys.settrace),
        Part("profile function", sys.getprofile, sys.setprofile),
        Part("trace function of threads", threading.gettrace, threading.settrace),
        Part("profile function of threads", threading.getprofile, threading.setprofile),
        Part("stack size of threads", threading.stack_size, threading.stack_size),
        Part("tracing of memory", _is_tracing_memory, _put_memory_tracing),
        _attribute("sys.excepthook", sys, "excepthook"),
        _attribute("sys.unraisablehook", sys, "unraisablehook"),
        _attribute("sys.displayhook", sys, "displayhook"),
        _attribute("sys.dont_write_bytecode", sys, "dont_write_bytecode"),
        _attribute("threading.excepthook", threading, "excepthook"),
        Part("event loop", _event_loop, _put_event_loop),
        Part("state of numpy", old_numpy.get, old_numpy.put),
        Part("temporary directory", _temporary_directory, _put_temporary_directory),
        Part("start method of multiprocessing", _start_method, _put_start_method),
        Part("default timeout of sockets", _socket_timeout, _put_socket_timeout),
    ]
    if hasattr(sys, "get_int_max_str_digits"):  # of late versions of each minor version
        found.append(Part("digits of integers", sys.get_int_max_str_digits, sys.set_int_max_str_digits))
    return found


def comparison() -> Callable[[], bool]:
    """Return a function that returns whether all :func:`parts` are as now.

    It compares in one frame, after each task, what the parts compare in a frame each.
    """
    path, meta_path, path_hooks, argv = list(sys.path), list(sys.meta_path), list(sys.path_hooks), list(sys.argv)
    filters, callbacks = list(warnings.filters), list(gc.callbacks)
    show, format_ = warnings.showwarning, warnings.formatwarning
    levels = _ROOT.level, _ROOT.disabled, _ROOT.manager.disable, logging.raiseExceptions
    own_levels = _OWN_LOGGER.level, _OWN_LOGGER.disabled, _OWN_LOGGER.propagate, log.disabled
    factory = logging.getLogRecordFactory()
    handlers, root_filters, own_handlers = list(_ROOT.handlers), list(_ROOT.filters), list(_OWN_LOGGER.handlers)
    collects, thresholds, flags = gc.isenabled(), gc.get_threshold(), gc.get_debug()
    recursion, interval, stack = sys.getrecursionlimit(), sys.getswitchinterval(), threading.stack_size()
    trace, profile = sys.gettrace(), sys.getprofile()
    trace_threads, profile_threads = threading.gettrace(), threading.getprofile()
    hook, unraisable, display = sys.excepthook, sys.unraisablehook, sys.displayhook
    no_bytecode, thread_hook = sys.dont_write_bytecode, threading.excepthook
    others = _of_imported_modules()
    old_numpy = _OldNumpy()
    numpy = old_numpy.get()
    get_digits = getattr(sys, "get_int_max_str_digits", None)
    digits = get_digits() if get_digits else 0
    # a task may replace the functions of modules
    is_enabled, get_threshold, get_debug, get_factory = (
        gc.isenabled,
        gc.get_threshold,
        gc.get_debug,
        logging.getLogRecordFactory,
    )
    get_limit, get_interval, get_stack = sys.getrecursionlimit, sys.getswitchinterval, threading.stack_size
    get_trace, get_profile = sys.gettrace, sys.getprofile
    get_threads_trace, get_threads_profile = threading.gettrace, threading.getprofile

    def compare() -> bool:
        return (
            sys.path == path
            and sys.meta_path == meta_path
            and sys.path_hooks == path_hooks
            and sys.argv == argv
            and sys.excepthook is hook
            and sys.unraisablehook is unraisable
            and sys.displayhook is display
            and sys.dont_write_bytecode == no_bytecode
            and threading.excepthook is thread_hook
            and warnings.filters == filters
            and warnings.showwarning is show
            and warnings.formatwarning is format_
            and (_ROOT.level, _ROOT.disabled, _ROOT.manager.disable, logging.raiseExceptions) == levels
            and (_OWN_LOGGER.level, _OWN_LOGGER.disabled, _OWN_LOGGER.propagate, log.disabled) == own_levels
            and get_factory() is factory
            and _ROOT.handlers == handlers
            and _ROOT.filters == root_filters
            and _OWN_LOGGER.handlers == own_handlers
            and gc.callbacks == callbacks
            and is_enabled() == collects
            and get_threshold() == thresholds
            and get_debug() == flags
            and get_limit() == recursion
            and get_interval() == interval
            and get_stack() == stack
            and get_trace() is trace
            and get_profile() is profile
            and get_threads_trace() is trace_threads
            and get_threads_profile() is profile_threads
            and (get_digits is None or get_digits() == digits)
            and _of_imported_modules() == others
            and old_numpy.get() == numpy
        )

    return compare


def _of_imported_modules() -> tuple[Any, ...]:
    """Return the parts of modules that a task may import for the first time."""
    return _event_loop(), _is_tracing_memory(), _temporary_directory(), _start_method(), _socket_timeout()
