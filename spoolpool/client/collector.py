"""Collector of a session: a thread that waits for the committed outcomes, and delivers them to the futures."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable

from spoolpool.client.delivery import Delivery
from spoolpool.client.direct_collection import LINGER, DirectCollection
from spoolpool.client.futures import TaskFuture, finish
from spoolpool.client.pending import PendingTasks
from spoolpool.client.starvation import Refresher, StarvationMonitor
from spoolpool.client.vanished import VanishedTasks
from spoolpool.errors import (
    BadTaskFile,
    BrokenSpool,
    DependencyFailed,
    NotTrusted,
    SpoolpoolError,
)
from spoolpool.format.names import TaskFile, parse_task_file
from spoolpool.monitor.states import End
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files, mounts
from spoolpool.system.backoff import Backoff
from spoolpool.system.watch import DirectoryWatcher

log = logging.getLogger("spoolpool.session")

_FIRST_POLL, _LAST_POLL = 0.0005, 1.0  # seconds between two listings, growing
_CHECK_SECONDS = 5.0  # time without an outcome until the next check of the spool and of its worker groups


class Collector:
    """Collector thread of the pending tasks. The public methods may be called from any thread.

    The thread begins with :meth:`start`, ends after :meth:`stop` once no task is pending, and then calls ``end``. If it
    dies, it calls ``fail`` with the reason. It calls ``renew`` at least once an hour. Only outcomes of the accounts in
    ``accept`` are unpickled.
    """

    def __init__(
        self,
        pending: PendingTasks,
        accept: Trust,
        *,
        end: Callable[[], None],
        fail: Callable[[BaseException], None],
        renew: Callable[[], None],
    ) -> None:
        self._pending = pending
        self._spool = pending.spool
        self._session = pending.session
        self._end = end
        self._fail = fail
        self._renew = renew
        self._presence = Presence(self._spool)
        self._watch = DirectoryWatcher()
        self._thread: threading.Thread | None = None
        self._waits_long = False
        self._linger_until = 0.0
        self._stopping = False
        self._passes_begun = self._passes_ended = 0
        self._pass_ended = threading.Condition(pending.lock)
        self._warned: set[str] = set()
        self.flush_due: Callable[[], float] | None = None
        """Submits the gathered calls that are due; returns the seconds until the next ones are."""
        self.delivery = Delivery(pending, accept)
        """Delivery of the outcomes to the futures."""
        self.direct = DirectCollection(pending, self._watch, self.delivery)
        """Collection by the threads that wait for a result."""

    def start(self) -> bool:
        """Start the thread if it does not run, under the session's lock; returns whether a new task must wake it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"spoolpool-{self._session}", daemon=True)
            self._thread.start()
        if len(self._pending) > 1:
            self.direct.observe()
        return self._waits_long

    def wake(self) -> None:
        """Make the thread list the outcomes now."""
        with self._pending.lock:  # race: it may be about to close the watcher
            self.direct.recall()
            self._watch.wake()

    def wait_for_pass(self) -> None:
        """Wait until the thread has delivered the readable outcomes that are there now; not in the thread itself."""
        if self._thread is None or self.runs_here():
            return
        with self._pending.lock:
            begun = self._passes_begun
            self.direct.recall()
            self._watch.wake()
            while self._passes_ended <= begun and self._thread.is_alive():
                self._pass_ended.wait(1.0)

    def stop(self) -> None:
        """Let the thread end once no task is pending. May be repeated."""
        with self._pending.lock:
            self._stopping = True
            self.direct.recall()
            self._watch.wake()

    @property
    def started(self) -> bool:
        """Whether the thread was ever started."""
        return self._thread is not None

    def runs_here(self) -> bool:
        """Return whether the caller is the collector thread, as in a callback of a future."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait for the end of the thread, after :meth:`stop`."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Close the directory watcher. May be repeated."""
        self._presence.close()
        with self._pending.lock:
            self._watch.close()

    # -- the thread

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            log.exception("The collector thread ended")
            self._fail(BrokenSpool(f"The collector thread ended: {type(error).__name__}: {error}"))
        finally:
            with contextlib.suppress(OSError):
                self._end()

    def _loop(self) -> None:
        inbox = f"{self._spool.layout.results}/{self._session}"
        self._watch.add(inbox)
        recovery = Recovery(self._spool, self._pending.journal)
        starvation = StarvationMonitor(self._spool)
        backoff = Backoff(_FIRST_POLL, _LAST_POLL)
        check_due = time.monotonic() + _CHECK_SECONDS
        recovery_due = time.monotonic() + self._spool.config.lease / 4
        refresher = Refresher(self._spool, self._session)
        vanished = VanishedTasks(self._pending)
        hears = mounts.is_local(self._spool.path)  # else only a listing shows an outcome, and must follow soon
        while True:
            self._watch.clear()
            with self._pending.lock:
                idle = not self._pending
                if idle and self._stopping:
                    return
            self._renew()
            try:
                if not idle and vanished.is_due:
                    self._fail_vanished(vanished)
                collected = self._make_pass()
                if self.delivery.stream() or collected:
                    backoff.reset()
                    starvation.reset()
                    check_due = time.monotonic() + _CHECK_SECONDS
                    refresher.reset()
                    if not hears:
                        continue
                    self._linger_until = time.monotonic() + LINGER  # an outcome since the listing ends the wait
                    if collected and not self._stopping and self._watch.covers({inbox}) and self.direct.rest():
                        self._linger_until = time.monotonic() + LINGER
                now = time.monotonic()
                if not idle and now > check_due:
                    check_due = now + _CHECK_SECONDS
                    self._fail_set_aside()
                    headers = [future.header for future in self._pending.futures()]
                    starvation.check(headers)
                    refresher.refresh_if_due(headers)
                if not idle and now > recovery_due:
                    recovery_due = now + self._spool.config.lease / 4
                    for line in recovery.round():
                        log.warning("Recovered %s", line)
                    recovery.sweep(self._session)
            except (OSError, NotTrusted) as error:
                self._log_postponed(error)
            due = math.inf if self.flush_due is None else self.flush_due()
            if self._watch.wait(min(due, self._pause(backoff))):
                backoff.reset()
            self._waits_long = False

    def _pause(self, backoff: Backoff) -> float:
        """Return the seconds until the next pass, and note whether a new task must end them."""
        with self._pending.lock:
            if self._pending:
                seconds = backoff.next()
            elif self._stopping:
                seconds = 0.0
            else:
                seconds = LINGER if time.monotonic() < self._linger_until else 3600.0
            if self._pending.flush(age=1.0):
                seconds = min(seconds, 1.0)
            self._waits_long = seconds > LINGER
        return seconds

    def _log_postponed(self, error: Exception) -> None:
        """Log that outcomes cannot be listed now: the server is unreachable, or the inbox is missing or replaced."""
        known = isinstance(error, OSError) or str(error) in self._warned
        if not known:
            self._warned.add(str(error))
        log.log(logging.INFO if known else logging.WARNING, "Cannot collect results now; trying again: %s", error)

    def check_spool(self) -> bool:
        """Fail the session if the spool was removed, moved or replaced; return whether it is certain to be there.

        Missing directories are created again. Raises :class:`NotTrusted` for a directory of another account.
        """
        try:
            if not self._presence.check():
                return False
            self._spool.open_session(self._session)
        except BrokenSpool as error:
            self._fail(error)
            return False
        except NotTrusted:
            raise
        except SpoolpoolError as error:  # race: it was removed just now; or only its owner can make a directory
            self._log_postponed(error)
        return True

    def _fail_set_aside(self) -> None:
        """Fail the futures of tasks in ``failed/``. They have no outcome: a torn task file may not name its session."""
        if not self.check_spool() or not self._spool.sees_all:
            return
        for task_file in map(parse_task_file, files.list_names(self._spool.layout.failed)):
            future = task_file and self._pending.get(task_file.task)
            if task_file and future:
                self._fail_with_dependents(future, set_aside_error(self._spool, task_file), "failed")

    def _fail_vanished(self, vanished: VanishedTasks) -> None:
        """Fail the futures of tasks that a search does not find any more, and of those that wait for such tasks."""
        # first: of a spool that was removed all tasks are missing
        found = vanished.search() if self.check_spool() else []
        if found:
            log.warning("%d task(s) get no outcome. The first: %s", len(found), found[0].error)
        for future, error, delayed in found:
            if future.done() or (delayed and not future.session.cancel(future)):  # it runs, and finds out by itself
                continue
            self._fail_with_dependents(future, error, "vanished")  # a delayed one is counted as cancelled by now
            if not delayed:
                self._pending.record_event("vanished", future)
                with contextlib.suppress(OSError, NotTrusted):  # 'spool gc' removes the links later
                    self._pending.retention.release_dependencies(future.header)

    def _fail_with_dependents(self, future: TaskFuture, error: BaseException, end: End) -> None:
        """Fail a task that gets no outcome, and its dependents, which no worker would make ready."""
        left = [(future, error)]
        while left:
            future, error = left.pop()
            dependents = future.session.pending.dependents(future.task)
            finish(future, error=error)
            self._pending.mark_ended(future, end)  # the dependents are counted by their cancellation
            for each in dependents:
                if not each.done() and each.session.cancel(each):
                    reason = DependencyFailed(
                        f"Task {each.task} was not run, because task {future.task} has no outcome."
                    )
                    reason.__cause__ = error
                    left.append((each, reason))

    # -- collecting

    def _make_pass(self) -> bool:
        """Collect the listed outcomes, and tell the threads that wait for it; returns whether there were any."""
        self._passes_begun += 1
        try:
            return self.delivery.collect_listed()
        finally:
            with self._pending.lock:
                self._passes_ended += 1
                self._pass_ended.notify_all()


def set_aside_error(spool: Spool, task_file: TaskFile) -> BadTaskFile:
    """Return the error for the future of a task in ``failed/``."""
    return BadTaskFile(
        f"Task {task_file.task} was set aside as {spool.layout.failed}/{task_file.name}: its file could not be read, "
        "or its outcome not be written, or it was lost with its workers. Their logs name the cause; 'spool retry' runs "
        "it again."
    )
