"""Ends a call before it ends by itself: its time is up, or somebody took the task back.

A call runs in the main thread, where Python handles signals. A thread of its own watches it, and interrupts it with a
signal whose handler raises::

    main thread                      watching thread
    with watch(token, header):
        function()             <---  signal: raises TaskTimeout or TaskCancelled in the function
                                     (a grace period later) still there: the process is ended

The signal comes through where the function sleeps or waits, and not while compiled code runs: that is what the end of
the process is for. A plain call costs no system call.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple

import msgspec

from spoolpool import settings
from spoolpool.calls.run import RankResult, failure_report
from spoolpool.errors import TaskCancelled, TaskTimeout
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile
from spoolpool.system.backoff import Backoff
from spoolpool.system.processes import ProcessId, hostname

log = logging.getLogger(__name__)

_OWN, _TOLD = signal.SIGRTMIN + 5, signal.SIGRTMIN + 6  # no batch system and no MPI sends them by itself

_FIRST_LOOK, _LAST_LOOK = 1.0, 5.0  # seconds between looks at the marks of those that are to be cancelled
_NOTHING_RUNS = 3.0  # seconds after which the thread goes to sleep until the next call


Publish = Callable[[TaskHeader, TaskFile, RankResult], bool]
"""Publishes an outcome from any thread and rank; False where another rank did."""


class _Call(NamedTuple):
    task_file: TaskFile
    header: TaskHeader
    began: float


class Interrupter:
    """Watches the calls of one rank. Made in the main thread; elsewhere it interrupts nothing.

    ``asked`` says whether a task is to be cancelled: a look at the disk, made every few seconds. ``publish`` publishes
    the outcome of a call that goes on for ``grace`` seconds after it was interrupted; then the process ends. A rank
    that is not given the one leaves the look, and the other the end, to others.
    """

    def __init__(self, asked: Callable[[TaskFile], bool] | None, publish: Publish | None, grace: float) -> None:
        self._asked = asked
        self._publish = publish
        self._grace = grace
        self._others: Sequence[ProcessId] = ()
        self.interrupted = False
        """Whether a call was ever interrupted."""
        self._call: _Call | None = None
        self._reason: BaseException = TaskCancelled()
        self._target: _Call | None = None
        self._deciding = threading.Lock()
        self._wake = threading.Event()
        self._asleep = False
        self._thread: threading.Thread | None = None
        self._able = threading.current_thread() is threading.main_thread()
        if self._able:
            signal.signal(_OWN, self._raise)
            signal.signal(_TOLD, self._told)

    def share(self, node: Any) -> None:
        """Let one of the ranks that share a host look for all of them: called by all, with their communicator."""
        self._others = [each for each in node.allgather(ProcessId.of(os.getpid())) if each.pid != os.getpid()]
        if node.Get_rank() > 0:
            self._asked, self._others = None, []

    @contextlib.contextmanager
    def watch(self, task_file: TaskFile, header: TaskHeader) -> Iterator[None]:
        """Let what runs in here be interrupted."""
        if not self._able:
            yield
            return
        before = self._call
        self._call = mine = _Call(task_file, header, time.monotonic())
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="spoolpool-interrupter", daemon=True)
            self._thread.start()
        elif self._asleep or header.time_limit:
            self._wake.set()
        if header.time_limit and self._publish is not None:
            # for compiled code that never lets another thread run; the death costs the task an attempt
            faulthandler.dump_traceback_later(header.time_limit + 2 * self._grace + _NOTHING_RUNS, exit=True)
        try:
            yield
        finally:
            try:
                self._call = before  # a call that waits for another one may run that itself
            finally:
                self._call = before  # here too, since it may be just now that the signal comes
            if header.time_limit and self._publish is not None:
                faulthandler.cancel_dump_traceback_later()
            if mine is self._target:
                self._target = None
                with self._deciding:  # the thread may be about to end the process: then let it
                    pass

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        if self._call is not None and self._call is self._target:  # else the call ended before the signal came
            raise self._reason

    def _told(self, _number: int, _frame: FrameType | None) -> None:
        if self._call is not None:
            self.interrupted = True
            raise TaskCancelled

    def _watch(self) -> None:
        backoff = Backoff(_FIRST_LOOK, _LAST_LOOK)
        seen: _Call | None = None
        due = idle_since = time.monotonic()
        while True:
            call, now = self._call, time.monotonic()
            if call is None and now - idle_since > _NOTHING_RUNS:
                self._sleep()
                idle_since = time.monotonic()  # else it would sleep again between two short calls, and each wake it
                continue
            if call is None:
                self._wait(_FIRST_LOOK)
                continue
            idle_since = now
            if call is not seen:
                seen = call
                backoff.reset()
                due = call.began + backoff.next()
            limit = call.header.time_limit
            left = call.began + limit - now if limit else _LAST_LOOK
            if left <= 0:
                self._interrupt(call, _timeout(call))
            elif now >= due:
                due = now + backoff.next()
                if self._is_asked(call):
                    self._interrupt(call, TaskCancelled())
            else:
                self._wait(min(left, due - now))

    def _sleep(self) -> None:
        """Wait for the next call. Whoever begins one looks at the flag after it said so, and this the other way."""
        self._asleep = True
        if self._call is None:
            self._wake.wait()
        self._asleep = False
        self._wake.clear()

    def _wait(self, seconds: float) -> None:
        if self._wake.wait(seconds):
            self._wake.clear()

    def _is_asked(self, call: _Call) -> bool:
        try:
            return self._asked is not None and self._asked(call.task_file)
        except OSError as error:  # the server is away for a moment
            log.info("The look whether %s is to be cancelled was put off: %s", call.task_file.task, error)
            return False

    def _interrupt(self, call: _Call, reason: BaseException) -> None:
        """Raise in the call; if it is still there after the grace period, end the process."""
        if isinstance(reason, TaskCancelled):
            for other in self._others:
                if other.is_alive_here():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(other.pid, _TOLD)
        self._reason, self._target, self.interrupted = reason, call, True
        signal.pthread_kill(threading.main_thread().ident or 0, _OWN)
        end = time.monotonic() + self._grace
        while self._call is call and time.monotonic() < end:
            self._wait(min(0.1, self._grace))
        with self._deciding:
            if self._call is call and self._publish is not None:
                log.warning("%s does not end: its group is replaced.", call.task_file.task)
                try:
                    self._publish(call.header, call.task_file, _report(reason))
                finally:  # what could not be published is a dead worker's
                    os._exit(settings.EXIT_RENEW)
        while self._call is call:  # without somebody to end it, it goes on
            self._wait(_LAST_LOOK)


def _report(reason: BaseException) -> RankResult:
    """The report of a call that is still running, with the place where it is."""
    report = failure_report(reason, 0)
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001  as its documentation says
    if frame is None or report.failure is None:
        return report
    story = f"{report.failure.traceback}\nIt was still here:\n{''.join(traceback.format_stack(frame))}"
    return report._replace(failure=msgspec.structs.replace(report.failure, traceback=story))


def _timeout(call: _Call) -> TaskTimeout:
    return TaskTimeout(
        f"Task {call.task_file.task} ran for longer than its time_limit of {call.header.time_limit:g} s, on "
        f"{hostname()}. "
        "Give it more time, or let it save what it has."
    )
