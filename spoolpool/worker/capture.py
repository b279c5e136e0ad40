"""What one rank's tasks print, they and their child processes, goes to a file: the rank's log.

While a task runs, descriptors 1 and 2 are the log. So nothing has to be pumped, children inherit them, and what was
printed before a rank was killed is there. One file serves all tasks of a rank, one after the other
(:mod:`spoolpool.format.output`): a task that prints nothing costs no operation on metadata and leaves no trace.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import OutputFile, TaskFile
from spoolpool.format.output import HEADER_SIZE, LogFile
from spoolpool.protocol.spool import Spool
from spoolpool.system import files, mounts
from spoolpool.system.backoff import Backoff

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds between looks at how much a task has printed
_SHARES = 4  # of tasks, in a file; then another one is begun
_PARTS = 2  # files that are kept of a rank
_RETRY_SECONDS = 60.0
_HIGH = 200  # the lowest number of a descriptor of ours
_IOLBF = 1  # of stdio.h


class Capture:
    """The output of one rank, whose tasks come one after the other. Nothing of it ever fails.

    ``directory`` is the spool's; None captures nothing. It is not looked at before the first task. Its ``spool.json``
    says how much is kept: of each task its first and its last part, of each rank its last files.
    """

    def __init__(self, directory: str | None, rank: int = 0) -> None:
        self._directory = os.path.abspath(directory or "")
        self._rank = rank
        self._limit = None if directory else 0  # bytes per task; None: not known yet; 0: nothing is captured
        self._tokens: list[TaskFile] = []  # the task that runs is the last; those before it wait for it
        self._log = OutputFile("", rank)
        self._remote = False
        self._append, self._file = (
            -1,
            LogFile(-1),
        )  # two descriptors of the log; what tasks print comes through the first
        self._identity = (0, 0)
        self._saved = (-1, -1)  # descriptors 1 and 2 as they were
        self._running = False
        self._next = self._end = 0  # where the next mark goes, if the log still ends there
        self._retry_due = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dormant = True
        self._closed = False
        self._awake = threading.Event()
        self._synced = 0
        self._flush_stdio: Callable[[None], object] = lambda _: None

    def of(self, task_file: TaskFile) -> Capture:
        """``with capture.of(token)``: what is printed is this task's, also where another one waits for it meanwhile."""
        self._tokens.append(task_file)
        return self

    def __enter__(self) -> None:
        if self._running:
            self._end_output()
        self._begin_output()

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._end_output()
        self._tokens.pop()
        if self._tokens:
            self._begin_output()

    def _begin_output(self) -> None:
        if self._limit == 0:
            return
        task_file = self._tokens[-1]
        try:
            if self._append < 0:
                if time.monotonic() < self._retry_due or not self._start(task_file.worker):
                    return
            elif self._next > _SHARES * (self._limit or 0):
                self._begin_part(self._log.part + 1)
            end = self._file.end()
            # else the task before was silent, and so were the processes that it left behind: over its mark
            self._file.begin_output(end if end != self._end else self._next, task_file, time.time())
            self._running = True
            os.dup2(self._append, 1)
            os.dup2(self._append, 2)
        except (OSError, SpoolpoolError) as error:
            self._give_up(error)
            return
        if self._dormant:
            self._wake()

    def _end_output(self) -> None:
        self._flush()
        try:
            with self._lock:
                self._running = False
                os.dup2(self._saved[0], 1)
                os.dup2(self._saved[1], 2)
                self._end = self._bounded(self._file.end())
                length = self._end - self._file.offset - HEADER_SIZE
                if length or self._remote:  # nobody here takes an empty output for one of which something is to come
                    self._file.end_output(length)
                self._next = self._end if length else self._file.offset
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """No more tasks come. A log in which nothing stands is taken away."""
        with self._lock, contextlib.suppress(OSError):
            if self._append >= 0 and not self._next and self._file.end() == self._end:
                files.remove(self._path)
        self._give_up(None)
        self._closed = True
        self._awake.set()

    # -- files and descriptors

    @property
    def _path(self) -> str:
        return f"{self._directory}/logs/{self._log.name}"

    def _start(self, worker: str) -> bool:
        """Open the log of a worker, at its first task; False if nothing is to be captured."""
        spool = Spool(self._directory)
        self._limit = spool.config.output
        self._mode = spool.rights.file
        if not self._limit:
            return False
        self._remote = not mounts.is_local(self._directory)
        self._saved = (_high(1), _high(2))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # somebody put another kind in its place
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        self._flush_stdio = _line_buffered_stdio()
        self._log = OutputFile(worker, self._rank)
        self._begin_part(0)
        return True

    def _begin_part(self, part: int) -> None:
        """Go on in a new file, and remove the one before the last."""
        if part >= _PARTS:
            files.remove(f"{self._directory}/logs/{self._log._replace(part=part - _PARTS).name}")
        self._log = self._log._replace(part=part)
        append = files.open_append(self._path, self._mode, exact=self._mode != 0o600)
        edit = files.open_file(self._path, write=True)
        first, second = os.fstat(append), os.fstat(edit)
        if not os.path.samestat(first, second):
            raise OSError(f"{self._path} was exchanged for another file")
        with self._lock:
            for fd in (self._append, self._file.fd):
                if fd >= 0:
                    files.close(fd)
            self._append, self._file = _moved(append), LogFile(_moved(edit))
            self._identity = (first.st_dev, first.st_ino)
            self._next = self._end = self._synced = first.st_size

    def _give_up(self, error: Exception | None) -> None:
        """Be as before the first task; with an error, for a while."""
        with self._lock:
            self._running = False
            for fd, saved in zip((1, 2), self._saved, strict=True):
                if saved >= 0:
                    with contextlib.suppress(OSError):  # a task closed whatever it found
                        os.dup2(saved, fd)
            for fd in (*self._saved, self._append, self._file.fd):
                if fd >= 0:
                    files.close(fd)
            self._saved, self._append, self._file = (-1, -1), -1, LogFile(-1)
        if error is not None:
            self._retry_due = time.monotonic() + _RETRY_SECONDS
            log.warning("What tasks print is not captured for %g s: %s", _RETRY_SECONDS, error)

    def _flush(self) -> None:
        """Have everything go out that this process has printed and kept in a buffer."""
        for stream in (sys.stdout, sys.stderr):
            try:  # noqa: SIM105  contextlib.suppress would take longer than all the rest here
                stream.flush()
            except Exception:  # noqa: BLE001, S110  a task put something of its own there; or the disk is full
                pass
        self._flush_stdio(None)

    # -- bounds

    def _wake(self) -> None:
        self._dormant = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._look_after, name="spoolpool-output", daemon=True)
            self._thread.start()
        self._awake.set()

    def _look_after(self) -> None:
        """While a task runs, look once a second how much it has printed."""
        backoff = Backoff(_LOOK_EVERY, _LOOK_EVERY)
        while not self._closed:
            if not self._running:
                self._awake.clear()
                self._dormant = True
                if not self._running:  # else one began before it could see that it must wake this thread
                    self._awake.wait()
                self._dormant = False
            backoff.sleep()
            try:
                self._look()
            except OSError as error:
                log.info("What the task prints cannot be bounded: %s", error)

    def _look(self) -> None:
        with self._lock:
            if not self._running:
                return
            end = self._bounded(self._file.end())
            edit, grown = self._file.fd, end != self._synced
            self._synced = end
        if grown and self._remote:  # else other hosts would see it when the kernel likes
            files.sync(edit)

    def _bounded(self, end: int) -> int:
        """Keep the first and the last part of an output that is too long; returns where the log ends now."""
        limit = self._limit or 0
        if end - self._file.offset - HEADER_SIZE <= limit:
            return end
        status = os.fstat(self._file.fd)
        if (status.st_dev, status.st_ino) != self._identity:
            raise OSError(f"the descriptor of {self._path} is another file's: the task closed it")
        return self._file.cut_output(end, limit)


def _high(fd: int) -> int:
    """A copy of a descriptor, with a number that a task does not get again that closes all it finds."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        pass
    try:
        return os.dup(fd)  # so many descriptors are not allowed
    except OSError:
        return _moved(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))  # it is closed


def _moved(fd: int) -> int:
    """The same file under such a number."""
    moved = _high(fd)
    files.close(fd)
    return moved


def _line_buffered_stdio() -> Callable[[None], object]:
    """Have compiled code print line by line, as far as it uses C's ``stdout``; returns what flushes it."""
    libc = ctypes.PyDLL(None)
    with contextlib.suppress(ValueError):  # no such name in this C library
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _IOLBF, 0)
    return libc.fflush
