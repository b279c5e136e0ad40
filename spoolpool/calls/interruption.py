"""Interruption of a running call, when its time limit is exceeded or its task is cancelled.

A call runs in the main thread, where Python handles signals. A separate thread watches the call and interrupts it with
a signal; the signal handler raises::

    main thread                      watching thread
    with watch(token, header):
        function()             <---  signal: raises TaskTimeout or TaskCancelled in the function
                                     (a grace period later) if it still runs: ends the process

The exception is raised while the function sleeps or waits, but not while compiled code runs; the end of the process is
for that case. A plain call costs no system call.
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
from spoolpool.system.user_code import mark_interrupt

log = logging.getLogger(__name__)

_OWN = signal.SIGRTMIN + 5  # no batch system and no MPI uses it

INTERRUPT = signal.SIGRTMIN + 6
"""Signal of another process that raises :class:`TaskCancelled` in the running call."""
ABANDON = signal.SIGRTMIN + 9
"""Signal of the guard of a rank that does the same after the end of rank 0: the exception is no outcome."""

_FIRST_CHECK, _LAST_CHECK = 1.0, 5.0  # seconds between checks for a cancel request
_IDLE = 3.0  # seconds without a call after which the thread sleeps until the next call


class PartOfPack(NamedTuple):
    """One call of a pack."""

    number: int
    """Number of the call in its pack, from 0."""
    task: str
    """Id of the call; empty if it has none."""


Publish = Callable[[TaskHeader, TaskFile, RankResult, int | None], bool]
"""Function that publishes an outcome from any thread and rank, of a task, or of the call of a pack with a number; it
returns False if another rank did."""


class _Call(NamedTuple):
    task_file: TaskFile
    header: TaskHeader
    began: float
    part: PartOfPack | None

    @property
    def id(self) -> str:
        """Id of the call, or of the task."""
        return (self.part and self.part.task) or self.task_file.task

    @property
    def number(self) -> int | None:
        """Number of the call in its pack; None for a task with one call."""
        return self.part and self.part.number


class Interrupter:
    """Watcher of the calls of one rank. It interrupts calls only if it was created in the main thread.

    ``is_requested`` returns whether the cancellation of a task is requested, or that of the call of a pack with a
    number; it reads the disk, every few seconds.
    ``publish`` publishes the outcome of a call that still runs ``grace`` seconds after its interruption; then the
    process ends. A rank without ``is_requested`` or without ``publish`` leaves that check or that end to other ranks.
    """

    def __init__(
        self, is_requested: Callable[[TaskFile, int | None], bool] | None, publish: Publish | None, grace: float
    ) -> None:
        self._is_requested = is_requested
        self._publish = publish
        self._grace = grace
        self.on_long_call: Callable[[str], None] | None = None
        """Function that is called in the watching thread with the id of a task whose call has lasted for a second, and
        again every few seconds."""
        self._others: Sequence[ProcessId] = ()
        self.interrupted = False
        """Whether any call was interrupted."""
        self.abandoned = False
        """Whether a call was interrupted because its group has ended."""
        self._call: _Call | None = None
        self._reason: BaseException = TaskCancelled()
        self._target: _Call | None = None
        self._ending = threading.Lock()
        self._wake = threading.Event()
        self._asleep = False
        self._thread: threading.Thread | None = None
        self._able = threading.current_thread() is threading.main_thread()
        if self._able:
            signal.signal(_OWN, self._raise)
            signal.signal(INTERRUPT, self._raise_cancelled)
            signal.signal(ABANDON, self._abandon)

    def share(self, node: Any) -> None:
        """Leave the checks to one rank per host. All ranks of a host call this, with their communicator."""
        self._others = [each for each in node.allgather(ProcessId.of(os.getpid())) if each.pid != os.getpid()]
        if node.Get_rank() > 0:
            self._is_requested, self._others = None, []

    @contextlib.contextmanager
    def watch(self, task_file: TaskFile, header: TaskHeader, part: PartOfPack | None = None) -> Iterator[None]:
        """Watch the call that runs in this context: that of a task, or one of a pack."""
        if not self._able:
            yield
            return
        before = self._call
        self._call = mine = _Call(task_file, header, time.monotonic(), part)
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="spoolpool-interrupter", daemon=True)
            self._thread.start()
        elif self._asleep or header.time_limit:
            self._wake.set()
        if header.time_limit and self._publish is not None:
            # for compiled code that never releases the GIL; the death costs the task an attempt
            faulthandler.dump_traceback_later(header.time_limit + 2 * self._grace + _IDLE, exit=True)
        try:
            yield
        finally:
            try:
                self._call = before  # a call that waits for another task may run that task itself
            finally:
                self._call = before  # again, because the signal may arrive at the previous line
            if header.time_limit and self._publish is not None:
                faulthandler.cancel_dump_traceback_later()
            if mine is self._target:
                self._target = None
                with self._ending:  # if the thread is about to end the process, wait for that
                    pass

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        if self._call is not None and self._call is self._target:  # else the call ended before the signal arrived
            raise mark_interrupt(self._reason)

    def _abandon(self, number: int, frame: FrameType | None) -> None:
        self.abandoned = self.abandoned or self._call is not None
        self._raise_cancelled(number, frame)

    def _raise_cancelled(self, _number: int, _frame: FrameType | None) -> None:
        if self._call is not None:
            self.interrupted = True
            raise mark_interrupt(TaskCancelled())

    def _watch(self) -> None:
        backoff = Backoff(_FIRST_CHECK, _LAST_CHECK)
        seen: _Call | None = None
        due = idle_since = time.monotonic()
        while True:
            call, now = self._call, time.monotonic()
            if call is None and now - idle_since > _IDLE:
                self._sleep()
                idle_since = time.monotonic()  # else it would sleep between two short calls, and each would wake it
                continue
            if call is None:
                self._wait(_FIRST_CHECK)
                continue
            idle_since = now
            if call is not seen:
                seen = call
                backoff.reset()
                due = call.began + backoff.next()
            limit = call.header.time_limit
            left = call.began + limit - now if limit else _LAST_CHECK
            if left <= 0:
                self._interrupt(call, _timeout(call))
            elif now >= due:
                due = now + backoff.next()
                if self.on_long_call is not None:
                    self.on_long_call(call.task_file.task)
                if self._is_cancelled(call):
                    self._interrupt(call, TaskCancelled())
            else:
                self._wait(min(left, due - now))

    def _sleep(self) -> None:
        """Wait for the next call.

        A call that begins sets ``_call`` and then reads ``_asleep``. This thread sets ``_asleep`` and then reads
        ``_call``. So no call is missed.
        """
        self._asleep = True
        if self._call is None:
            self._wake.wait()
        self._asleep = False
        self._wake.clear()

    def _wait(self, seconds: float) -> None:
        if self._wake.wait(seconds):
            self._wake.clear()

    def _is_cancelled(self, call: _Call) -> bool:
        try:
            return self._is_requested is not None and self._is_requested(call.task_file, call.number)
        except OSError as error:  # the server is unreachable for a moment
            log.info("The check whether %s is cancelled was postponed: %s", call.id, error)
            return False

    def _interrupt(self, call: _Call, reason: BaseException) -> None:
        """Raise an exception in the call; if the call still runs after the grace period, end the process."""
        if isinstance(reason, TaskCancelled):
            for other in self._others:
                if other.is_alive_here():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(other.pid, INTERRUPT)
        self._reason, self._target, self.interrupted = reason, call, True
        signal.pthread_kill(threading.main_thread().ident or 0, _OWN)
        end = time.monotonic() + self._grace
        while self._call is call and time.monotonic() < end:
            self._wait(min(0.1, self._grace))
        with self._ending:
            if self._call is call and self._publish is not None:
                log.warning("%s does not end: its group is replaced.", call.id)
                try:
                    self._publish(call.header, call.task_file, _report(reason), call.number)
                finally:  # if this fails, the task is recovered like that of a dead worker
                    os._exit(settings.EXIT_RENEW)
        while self._call is call:  # no publish function: only another rank can end it
            self._wait(_LAST_CHECK)


def _report(reason: BaseException) -> RankResult:
    """Return the result of an interrupted call that still runs, with its current stack."""
    report = failure_report(reason, 0)
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001  as its documentation says
    if frame is None or report.failure is None:
        return report
    text = f"{report.failure.traceback}\nIt was still here:\n{''.join(traceback.format_stack(frame))}"
    return report._replace(failure=msgspec.structs.replace(report.failure, traceback=text))


def _timeout(call: _Call) -> TaskTimeout:
    return TaskTimeout(
        f"Task {call.id} ran for longer than its time_limit of {call.header.time_limit:g} s, on "
        f"{hostname()}. Give it more time, or let it save intermediate results."
    )
