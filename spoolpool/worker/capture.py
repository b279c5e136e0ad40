"""Capture of the output of tasks and of their child processes in the output log of the rank.

While a task runs, descriptors 1 and 2 are the log. So no process copies the output, child processes inherit the
descriptors, and the output before a rank was killed is kept. One file serves all tasks of a rank, one after the other
(:mod:`spoolpool.format.output_log`): a task that prints nothing costs no operation on metadata and leaves no trace.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import OutputFile, TaskFile
from spoolpool.format.output_log import HEADER_SIZE, LogFile
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import stack_file
from spoolpool.system import file_content, files, mounts
from spoolpool.system.backoff import Backoff
from spoolpool.system.descriptors import copy_high, move_high

log = logging.getLogger(__name__)

_CHECK_INTERVAL = 1.0  # seconds between checks of the length of an output
_OUTPUTS_PER_FILE = 4  # outputs of full length in a file, before the next file is begun
_FILES = 2  # files that are kept of a rank
_RETRY_SECONDS = 60.0
_IOLBF = 1  # of stdio.h


class Capture:
    """Output of the tasks of one rank, which run one after the other. It never fails.

    ``directory`` is the spool, which is not read before the first task; None captures nothing. Its ``spool.json`` says
    how much is kept: the first and the last part of each task's output, and the last files of each rank.
    """

    def __init__(self, directory: str | None, rank: int = 0) -> None:
        self._directory = directory and os.path.abspath(directory)
        self._rank = rank
        self._task_files: list[TaskFile] = []  # the last one runs, the others wait for subtasks
        self._log: _RankLog | None = None
        self._streams = _Streams()
        self._retry_due = 0.0
        self._watcher = _LengthWatcher(self._check)
        self._stack = -1  # descriptor of the file for the stack of a crash

    def of(self, task_file: TaskFile) -> Capture:
        """Return the context manager that captures the output of a task, also inside that of a waiting task."""
        self._task_files.append(task_file)
        return self

    def __enter__(self) -> None:
        if len(self._task_files) > 1:
            self._end_output()
        self._begin_output()

    def __exit__(self, *_: object) -> None:
        self._end_output()
        self._task_files.pop()
        if self._task_files:
            self._begin_output()

    def _begin_output(self) -> None:
        if self._directory is None:
            return
        task_file = self._task_files[-1]
        try:
            if self._log is None:
                if time.monotonic() < self._retry_due:
                    return
                spool = Spool(self._directory)
                if not spool.config.output:
                    self._directory = None
                    self._stack = _open_stack(spool, task_file.worker, self._rank)
                    return
                self._streams.open()
                self._log = _RankLog(spool, OutputFile(task_file.worker, self._rank))
            self._streams.redirect(self._log.begin_output(task_file))
        except (OSError, SpoolpoolError) as error:
            self._give_up(error)
            return
        self._watcher.begin()

    def _end_output(self) -> None:
        if self._log is None:
            return
        self._streams.flush()
        try:
            self._streams.restore()
            self._log.end_output()
        except OSError as error:
            self._give_up(error)

    @property
    def active(self) -> bool:
        """Whether the end of each task restores standard output and standard error."""
        return self._log is not None

    def enable_stacks(self) -> None:
        """Let Python write the stack of a crash as before, in case that a task has changed that."""
        faulthandler.enable(self._stack if self._stack >= 0 else 2)

    def close(self) -> None:
        """End the capture after the last task; remove a log that has no output."""
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.remove_if_empty()
        self._give_up(None)
        self._watcher.close()
        if self._stack >= 0:
            faulthandler.disable()
            files.close(self._stack)
            self._stack = -1

    def _give_up(self, error: Exception | None) -> None:
        """Return to the state before the first task; after an error, for a while."""
        self._streams.close()
        rank_log, self._log = self._log, None
        if rank_log is not None:
            rank_log.close()
        if error is not None:
            self._retry_due = time.monotonic() + _RETRY_SECONDS
            log.warning("The output of tasks is not captured for %g s: %s", _RETRY_SECONDS, error)

    def _check(self) -> bool:
        """Cut the output of the running task if it is too long; return False if none is captured."""
        rank_log = self._log
        return rank_log is not None and rank_log.check()


def enable_stacks() -> None:
    """Let Python write the stack of a crash (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) to the output of the task."""
    faulthandler.enable(2)  # the descriptor: a task may replace sys.stderr


def _open_stack(spool: Spool, worker: str, rank: int) -> int:
    """Let Python write the stack of a crash to the entry of the worker; return the descriptor, -1 after an error.

    Output that is not captured is that of the supervisor or of a batch job, where no recoverer finds the stack.
    """
    try:
        path = f"{spool.layout.worker(worker)}/{stack_file(rank)}"
        fd = move_high(files.open_append(path, spool.rights.shown, exact=spool.shared))
    except OSError as error:
        log.info("The stack of a crash will not be kept: %s", error)
        return -1
    faulthandler.enable(fd)
    return fd


class _RankLog:
    """Output log of a rank, opened twice: tasks print through a descriptor in append mode, headers go by offset.

    The lock keeps the thread that cuts a long output from a file that the end of the task changes or closes.
    """

    def __init__(self, spool: Spool, name: OutputFile) -> None:
        self._spool = spool
        self._remote = not mounts.is_local(spool.path)
        self._name = name
        self._append, self._file = -1, LogFile(-1)
        self._identity = (0, 0)
        self._next = self._end = self._synced = 0  # offset of the next header, if the log still ends there
        self._running = False
        self._lock = threading.Lock()
        self._open(name)

    @property
    def _path(self) -> str:
        return self._spool.layout.log(self._name)

    def _open(self, name: OutputFile) -> None:
        """Continue in this file, and remove the one before the last."""
        if name.part >= _FILES:
            files.remove(self._spool.layout.log(name._replace(part=name.part - _FILES)))
        self._name = name
        mode = self._spool.rights.file
        append = move_high(files.open_append(self._path, mode, exact=mode != 0o600))
        edit = move_high(files.open_file(self._path, write=True))
        status = os.fstat(append)
        if not os.path.samestat(status, os.fstat(edit)):
            raise OSError(f"{self._path} was replaced by another file")
        self.close()
        with self._lock:
            self._append, self._file = append, LogFile(edit)
            self._identity = (status.st_dev, status.st_ino)
            self._next = self._end = self._synced = status.st_size

    def begin_output(self, task_file: TaskFile) -> int:
        """Write the header of a task; return the descriptor for its output."""
        if self._next > _OUTPUTS_PER_FILE * self._spool.config.output:
            self._open(self._name._replace(part=self._name.part + 1))
        end = self._file.end()
        # unless a process that an earlier task left behind has printed, the header of a silent task is overwritten
        self._file.begin_output(end if end != self._end else self._next, task_file, time.time())
        self._running = True
        return self._append

    def end_output(self) -> None:
        """Complete the header of the task, after the descriptors were restored."""
        with self._lock:
            if not self._running:
                return
            self._running = False
            self._end = self._cut(self._file.end())
            length = self._end - self._file.offset - HEADER_SIZE
            if length or self._remote:  # readers on this host do not take an empty output for an incomplete one
                self._file.end_output(length)
            self._next = self._end if length else self._file.offset

    def check(self) -> bool:
        """Cut the output of the running task if it is too long; return False if no task runs."""
        with self._lock:
            if not self._running:
                return False
            end = self._cut(self._file.end())
            edit, grown = self._file.fd, end != self._synced
            self._synced = end
        if grown and self._remote:  # otherwise the kernel decides when other hosts see the output
            file_content.sync(edit)
        return True

    def _cut(self, end: int) -> int:
        """Reduce an output that is too long to its first and its last part; return the end of the log."""
        limit = self._spool.config.output
        if end - self._file.offset - HEADER_SIZE <= limit:
            return end
        status = os.fstat(self._file.fd)
        if (status.st_dev, status.st_ino) != self._identity:
            raise OSError(f"the descriptor of {self._path} is another file now: the task closed it")
        return self._file.cut_output(end, limit)

    def remove_if_empty(self) -> None:
        """Remove the log if it has no output."""
        with self._lock:
            if not self._next and self._file.end() == self._end:
                files.remove(self._path)

    def close(self) -> None:
        """Close the descriptors."""
        with self._lock:
            self._running = False
            for fd in (self._append, self._file.fd):
                if fd >= 0:
                    files.close(fd)
            self._append, self._file = -1, LogFile(-1)


class _Streams:
    """Standard output and standard error of this process, which can be redirected."""

    def __init__(self) -> None:
        self._saved = (-1, -1)
        self._flush_stdio: Callable[[None], object] = lambda _: None

    def open(self) -> None:
        """Save the descriptors, and let Python and compiled code print line by line."""
        self._saved = (copy_high(1), copy_high(2))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # another kind of stream was assigned
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        self._flush_stdio = _line_buffered_stdio()

    def redirect(self, target: int) -> None:
        """Redirect both to the file of a descriptor."""
        os.dup2(target, 1)
        os.dup2(target, 2)

    def restore(self) -> None:
        """Undo :meth:`redirect`."""
        os.dup2(self._saved[0], 1)
        os.dup2(self._saved[1], 2)

    def flush(self) -> None:
        """Write out the buffered output of this process."""
        for stream in (sys.stdout, sys.stderr):
            try:  # noqa: SIM105  contextlib.suppress would take longer than the rest of this method
                stream.flush()
            except BaseException:  # noqa: BLE001, S110  a task assigned a stream of its own; or the disk is full
                pass
        self._flush_stdio(None)

    def close(self) -> None:
        """Restore both, and close the saved descriptors."""
        for fd, saved in zip((1, 2), self._saved, strict=True):
            if saved >= 0:
                with contextlib.suppress(OSError):  # a task closed all descriptors that it found
                    os.dup2(saved, fd)
                files.close(saved)
        self._saved = (-1, -1)


class _LengthWatcher:
    """Thread that calls a check once a second while a task runs; the check returns False if none does."""

    def __init__(self, check: Callable[[], bool]) -> None:
        self._check = check
        self._thread: threading.Thread | None = None
        self._awake = threading.Event()
        self._dormant = True
        self._begun = self._closed = False

    def begin(self) -> None:
        """Wake the thread at the beginning of a task. Without need this costs no system call."""
        self._begun = True
        if not self._dormant:
            return
        self._dormant = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="spoolpool-output", daemon=True)
            self._thread.start()
        self._awake.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._awake.set()

    def _watch(self) -> None:
        backoff = Backoff(_CHECK_INTERVAL, _CHECK_INTERVAL)
        while not self._closed:
            backoff.sleep()
            self._begun = False
            try:
                running = self._check()
            except OSError as error:
                log.info("The output of the task cannot be cut: %s", error)
                running = True
            if not running:
                self._awake.clear()
                self._dormant = True
                if not self._begun and not self._closed:  # a task that began earlier has not seen that it must wake
                    self._awake.wait()
                self._dormant = False


def _line_buffered_stdio() -> Callable[[None], object]:
    """Let compiled code print line by line, as far as it uses ``stdout`` of C; return the function that flushes it."""
    libc = ctypes.PyDLL(None)
    with contextlib.suppress(ValueError):  # this C library has no such name
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _IOLBF, 0)
    return libc.fflush
