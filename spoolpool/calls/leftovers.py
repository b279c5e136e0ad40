"""Leftovers of tasks: what a task has left in its process, and what cannot be restored without another process.

These are threads and child processes that still run, and descriptors and memory beyond a bound. A baseline is made
before the first task. After each task it is compared by numbers that cost about two microseconds, and exactly only if
one of them is suspicious, or now and then.
"""

from __future__ import annotations

import _thread
import concurrent.futures
import contextlib
import ctypes
import fcntl
import functools
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import IntEnum
from types import FrameType
from typing import Any, NamedTuple

from spoolpool.calls import modules
from spoolpool.system import children, memory
from spoolpool.system.backoff import Backoff
from spoolpool.system.descriptors import Reserve

DESCRIPTORS = 256
"""Descriptors that tasks may leave open in all."""
THREADS = 64
"""Threads without code of users that tasks may leave, such as idle threads of pools."""
MEMORY = 256 << 20
"""Bytes that tasks may leave allocated, however little memory is left."""

_UNSUSPICIOUS = 64  # descriptors, by their greatest number
_MARGIN = 48  # free descriptors below which a group cannot work
_LEAST_GROWTH = 16  # descriptors that tasks must have left before that counts: the limit may be low from the beginning
_INTERVAL = 0.02  # seconds between exact comparisons without a suspicion
_SHARE = 20  # an exact comparison may take this part of the time
_PATIENCE = 0.1  # seconds for threads and processes that are about to end
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_POOL_FILE = os.path.join(os.path.dirname(concurrent.futures.__file__), "thread.py")
_THREADED = ("concurrent", "logging", "multiprocessing")
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "loky.backend")
"""Parts of the commands of processes that libraries keep on purpose."""


class Severity(IntEnum):
    """Need to replace a group, because of what its tasks have left."""

    NONE = 0
    LEFTOVER = 1
    """It is to be replaced, but not too often."""
    URGENT = 2
    """The next task would fail."""


class Leftover(NamedTuple):
    """One kind of things that tasks have left; of threads and processes, those that the text lists."""

    kind: str
    text: str
    severity: Severity = Severity.LEFTOVER


_kept_processes: set[int] = set()


def keep_process(pid: int) -> None:
    """Count a child process among those that are to outlive a task."""
    _kept_processes.add(pid)


class _Present(NamedTuple):
    threads: set[threading.Thread]
    children: set[int]
    descriptors: int
    memory: int


def _present() -> _Present:
    return _Present(set(threading.enumerate()), children.pids(), len(_descriptors()), memory.private())


class Baseline:
    """Threads, child processes, descriptors and memory of this process before its first task."""

    def __init__(self) -> None:
        self._reserve = Reserve()
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # children of a worker that has started again in this process
        _wait_for({pid for pid in children.pids() if children.has_ended(pid)})
        self._threads, self._children, self._descriptors, self._memory = _present()
        self._first_descriptors = self._descriptors
        self._known: set[object] = set()
        self._due = 0.0
        self._quiet()

    @contextlib.contextmanager
    def accepting(self) -> Iterator[None]:
        """Count what this context leaves as belonging to the process, such as the threads of an ``init_function``."""
        before = _present()
        try:
            yield
        finally:
            after = _present()
            self._threads |= after.threads - before.threads
            self._children |= after.children - before.children
            self._descriptors += max(0, after.descriptors - before.descriptors)
            self._memory += max(0, after.memory - before.memory)
            self._quiet()

    def _quiet(self) -> None:
        """Take the present numbers as unsuspicious."""
        self._thread_count = _thread._count()  # noqa: SLF001
        self._high = _next_free((_next_free(0) or 0) + _UNSUSPICIOUS) or self._limit

    def is_suspicious(self) -> bool:
        """Return whether a task may have left something, or the last exact comparison was a while ago."""
        # a free number below says nothing: a task may have closed a file that it had first
        free = _next_free(self._high)
        if free is None or free >= self._limit - _MARGIN:
            self._reserve.free()  # for the outcome of the task
            return True
        return (
            free != self._high
            or self.has_other_threads()
            or (not (self._children or self._known) and children.any_exist())
            or time.monotonic() >= self._due
        )

    def has_other_threads(self) -> bool:
        """Return whether the number of threads has changed. A thread counts only after it has begun."""
        return _thread._count() != self._thread_count  # noqa: SLF001  the count of threading takes its lock

    def find(self) -> list[Leftover]:
        """Return what tasks have left, after threads and processes that are about to end had the time for it."""
        begun = time.monotonic()
        backoff = Backoff(0.001, 0.02)
        waited = 0.0
        if self.has_other_threads():
            backoff.sleep()  # a new thread may not have reached its function yet
        while True:
            threads, processes = self._new_threads(), self._new_processes()
            running = {*threads, *processes}
            if running <= self._known or waited > _PATIENCE:
                break
            before = time.monotonic()
            backoff.sleep()
            waited += time.monotonic() - before
        self._known = running
        found = [*self._thread_leftovers(threads), *_process_leftovers(processes)]
        found += [*self._descriptor_leftovers(), *self._memory_leftovers()]
        if not any(each.severity is Severity.URGENT for each in found):
            self._reserve.fill()
        self._quiet()
        now = time.monotonic()
        self._due = now + max(_INTERVAL, _SHARE * (now - begun - waited))
        return found

    def end(self, seconds: float) -> bool:
        """Wait for threads and processes of tasks to end, and end the processes that have not; return whether any ran.

        Threads that are daemons, and processes in a session of their own, need no wait.
        """
        backoff = Backoff(0.005, 0.1)
        limit = time.monotonic() + seconds
        while True:
            threads, processes = self._new_threads(), self._new_processes()
            if not processes and all(getattr(each, "daemon", True) for each in threads):
                return bool(threads)
            if time.monotonic() > limit:
                break
            backoff.sleep()
        for pid in processes:
            if isinstance(pid, int) and not children.leads_session(pid):
                with contextlib.suppress(ProcessLookupError):  # race: it has ended
                    os.kill(pid, signal.SIGTERM)
        return True

    # -- threads and processes

    def _new_threads(self) -> dict[object, str]:
        """Return the new threads that run code of users, with descriptions."""
        by_ident = {each.ident: each for each in threading.enumerate()}
        found: dict[object, str] = {}
        for ident, frame in sys._current_frames().items():  # noqa: SLF001  as its documentation says
            thread = by_ident.get(ident)
            if ident == threading.get_ident() or thread is threading.main_thread() or thread in self._threads:
                continue
            function = _function_of_users(frame) or _begun_with(thread)
            if function:
                name = f"{ident}" if thread is None else f"{thread.name!r}{', a daemon' * thread.daemon}"
                found[ident if thread is None else thread] = f"thread {name}, in {function}"
        return found

    def _thread_leftovers(self, running: dict[object, str]) -> Iterable[Leftover]:
        if running:
            yield Leftover("threads", _listed(running.values()))
        others = [each for each in threading.enumerate() if each not in self._threads and each not in running]
        if len(others) > THREADS:
            yield Leftover("idle threads", f"{len(others)} threads, such as {others[-1].name!r}")

    def _new_processes(self) -> dict[object, str]:
        """Return the new children that run, with descriptions, and wait for those that have ended."""
        present = children.pids()
        self._children &= present
        _kept_processes.intersection_update(present)
        new = present - self._children - _kept_processes
        ended = {pid for pid in new if children.has_ended(pid)}
        if ended:
            self._children |= _wait_for(ended)
        found: dict[object, str] = {}
        for pid in sorted(new - ended):
            command = children.command(pid)
            if any(helper in command for helper in _HELPERS):
                self._children.add(pid)
            elif not children.has_ended(pid):
                found[pid] = f"process {pid} ({command})"
        for process in _processes_of_fork_server(present):
            found[process.pid] = f"process {process.pid} ({process.name})"
        return found

    # -- bounds

    def _descriptor_leftovers(self) -> Iterable[Leftover]:
        present = _descriptors()
        used, grown = len(present), len(present) - self._descriptors
        is_short = _next_free(0) is None or self._limit - used < max(_MARGIN, self._limit // 8)
        is_urgent = is_short and used - self._first_descriptors >= _LEAST_GROWTH
        if is_urgent or grown > DESCRIPTORS:
            names = Counter(filter(None, map(_target, present[self._descriptors // 2 :])))
            examples = ", ".join(f"{name} ({count})" for name, count in names.most_common(3))
            text = f"{grown} open descriptors of {self._limit}, such as {examples}"
            yield Leftover("descriptors", text, Severity.URGENT if is_urgent else Severity.LEFTOVER)

    def _memory_leftovers(self) -> Iterable[Leftover]:
        if memory.private() - self._memory <= MEMORY:
            return
        gc.collect()
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        grown, usable = memory.private() - self._memory, memory.usable()
        if grown <= MEMORY or usable is None:
            return
        if grown > usable.total // 2 or usable.available < usable.total // 10:
            yield Leftover(
                "memory",
                f"{grown >> 20} MiB of memory, of {usable.total >> 20} MiB with {usable.available >> 20} MiB available",
            )


def _next_free(least: int) -> int | None:
    """Return the least free number of a descriptor from a number on; None if there is none."""
    try:
        free = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, least)
    except OSError:
        return None
    os.close(free)
    return free


def _descriptors() -> list[int]:
    try:
        return sorted(map(int, os.listdir("/proc/self/fd")))
    except OSError:  # not Linux, or no descriptor is free
        return [fd for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) if _target(fd) is not None]


def _target(fd: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0]
    except OSError:
        return None


def _listed(texts: Iterable[str]) -> str:
    several = list(texts)
    return "; ".join(several[:3]) + (f"; and {len(several) - 3} more" if len(several) > 3 else "")


def _process_leftovers(running: dict[object, str]) -> Iterable[Leftover]:
    if running:
        yield Leftover("processes", _listed(running.values()))


def _function_of_users(frame: FrameType | None) -> str:
    """Return the outermost function on a stack that is no code of a library; empty if there is none."""
    found = ""
    while frame is not None:
        code = frame.f_code
        if not _is_library_file(code.co_filename):
            found = f"{code.co_name} ({code.co_filename}:{frame.f_lineno})"
        elif code.co_name == "run" and code.co_filename == _POOL_FILE:  # it may be a function without a frame
            found = _name_of_users(getattr(frame.f_locals.get("self"), "fn", None)) or found
        frame = frame.f_back
    return found


def _begun_with(thread: threading.Thread | None) -> str:
    """Return the function of users that a thread calls, or is about to call; empty if there is none."""
    # the second name is that of a timer
    return _name_of_users(getattr(thread, "_target", None)) or _name_of_users(getattr(thread, "function", None))


def _name_of_users(function: Any) -> str:
    """Return the name of a function, unless it is the code of a library.

    A function of the standard library, except of the parts that start threads themselves, was chosen by users.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if function is None:
        return ""
    called = vars(type(function)).get("__call__")  # of an object with this method
    code = getattr(function, "__code__", None) or getattr(called, "__code__", None)
    module = str(getattr(function, "__module__", "")).partition(".")[0]
    if code is None or (module in sys.stdlib_module_names and module not in _THREADED):
        return str(getattr(function, "__qualname__", type(function).__name__))
    return "" if _is_library_file(code.co_filename) else f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})"


@functools.lru_cache(maxsize=4096)
def _is_library_file(path: str) -> bool:
    return path.startswith(("<frozen ", _OWN)) or (os.path.isabs(path) and modules.in_a_library(path))


def _wait_for(ended: set[int]) -> set[int]:
    """Wait for children that have ended; return those that an object of ``subprocess`` or the like will wait for.

    Without that object nothing else waits for them, and without the wait the exit code is lost for it.
    """
    if not ended:  # the look for objects takes long
        return set()
    subprocess._cleanup()  # type: ignore[attr-defined]  # noqa: SLF001  it waits for those whose objects are gone
    owned = {getattr(each, "pid", None) for each in gc.get_objects() if type(each).__name__ == "Popen"}
    for pid in ended - owned:
        with contextlib.suppress(ChildProcessError):  # just done
            os.waitpid(pid, os.WNOHANG)
    return ended & owned


def _processes_of_fork_server(known: set[int]) -> list[Any]:
    """Return the running processes of ``multiprocessing`` that are children of its fork server."""
    module = sys.modules.get("multiprocessing.process")
    found = () if module is None else tuple(getattr(module, "_children", ()))
    return [each for each in found if each.pid not in known and each.is_alive()]
