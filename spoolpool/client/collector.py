"""The thread that empties a session's inbox: it lists what was committed, and gives futures their outcomes."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from spoolpool.calls.results import value_of
from spoolpool.client.futures import TaskFuture, finish
from spoolpool.client.pending import PendingTasks
from spoolpool.client.starvation import Refresher, StarvationMonitor
from spoolpool.errors import BadTaskFile, BrokenSpool, DependencyFailed, NoKey, NotASpool, NotTrusted, SpoolVersion
from spoolpool.format.headers import Kind, OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile, new_task_id, parse_task_file
from spoolpool.protocol import cancel
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task
from spoolpool.security.signing import outcome_label
from spoolpool.security.trust import Trust
from spoolpool.system import accounts, files
from spoolpool.system.backoff import Backoff
from spoolpool.system.watch import DirectoryWatcher

log = logging.getLogger("spoolpool.session")

_ID = len(new_task_id())
_FIRST_LOOK, _LAST_LOOK = 0.0005, 1.0
_FIRST_CHECK, _CHECK_EVERY = 5.0, 5.0
_MANY = 100  # awaited outcomes, from which on it lets some of them gather
_GATHER = 0.002  # seconds for which


class Collector:
    """Collects what a session awaits. Its public methods may be called from any thread.

    The thread begins with :meth:`start`, and ends after :meth:`stop`, once nothing is awaited any more; then it calls
    ``end``. If it dies, it calls ``fail`` with the reason. ``accept`` says whose outcomes are unpickled.
    """

    def __init__(
        self,
        awaited: PendingTasks,
        accept: Trust,
        *,
        end: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._awaited = awaited
        self._spool = awaited.spool
        self._session = awaited.session
        self._accept = accept
        self._end = end
        self._fail = fail
        self._watch = DirectoryWatcher()
        self._thread: threading.Thread | None = None
        self._long_wait = False
        self._stopping = False
        self._left_alone: set[str] = set()
        self._told: set[str] = set()
        self.on_outcome: Callable[[TaskHeader, TaskFile], None] | None = None
        """Called with a task and its claim when its outcome has come, in this thread."""
        self.on_result: Callable[[TaskHeader, OutcomeHeader, str, str], None] | None = None
        """Called before a result is delivered that is to be kept, with the path of its outcome, and its label."""

    def start(self) -> bool:
        """Make sure that the thread runs, under the session's lock; whether it must be woken for what is new."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"spoolpool-{self._session}", daemon=True)
            self._thread.start()
        return self._long_wait

    def wake(self) -> None:
        """Let the thread look at once."""
        with self._awaited.lock:  # it may be about to close the watch
            self._watch.wake()

    def stop(self) -> None:
        """Let it end once nothing is awaited; harmless when repeated."""
        with self._awaited.lock:
            self._stopping = True
            self._watch.wake()

    @property
    def started(self) -> bool:
        """Whether there is, or was, a thread."""
        return self._thread is not None

    def runs_here(self) -> bool:
        """Whether the caller is the thread."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait for its end, after :meth:`stop`."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Let go what it watches with; harmless when repeated."""
        with self._awaited.lock:
            self._watch.close()

    # -- the thread

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            log.exception("The thread that collects results ended")
            self._fail(BrokenSpool(f"The thread that collects results ended: {type(error).__name__}: {error}"))
        finally:
            with contextlib.suppress(OSError):
                self._end()

    def _loop(self) -> None:
        inbox = f"{self._spool.layout.results}/{self._session}"
        self._watch.add(inbox)
        recovery = Recovery(self._spool)
        service = StarvationMonitor(self._spool)
        backoff = Backoff(_FIRST_LOOK, _LAST_LOOK)
        late: dict[str, float] = {}
        check_due = time.monotonic() + _FIRST_CHECK
        round_due = time.monotonic() + self._spool.config.lease / 4
        refresher = Refresher(self._spool, self._session)
        while True:
            self._watch.clear()
            with self._awaited.lock:
                idle = not self._awaited
                if idle and self._stopping:
                    return
            try:
                if self._collect_listed(late):
                    backoff.reset()
                    service.reset()
                    check_due = time.monotonic() + _FIRST_CHECK
                    refresher.reset()
                    continue
                now = time.monotonic()
                if not idle and now > check_due:
                    check_due = now + _CHECK_EVERY
                    self.still_there()
                    self._look_for_failed()
                    headers = [future.header for future in self._awaited.futures()]
                    service.check(headers)
                    refresher.refresh_if_due(headers)
                if not idle and now > round_due:
                    round_due = now + self._spool.config.lease / 4
                    for line in recovery.round():
                        log.warning("Recovered %s", line)
                    recovery.sweep(self._session)
            except (OSError, NotTrusted) as error:
                self._put_off(error)
            seconds = 3600.0 if idle else backoff.next()
            with self._awaited.lock:
                if self._awaited.flush(age=1.0):
                    seconds = min(seconds, 1.0)
                self._long_wait = seconds > 0.02
                if idle and self._awaited:
                    continue
            if self._watch.wait(seconds):
                backoff.reset()
            self._long_wait = False

    def _put_off(self, error: Exception) -> None:
        """Results cannot be looked for: the server is away for a moment, or somebody swapped the inbox."""
        known = isinstance(error, OSError) or str(error) in self._told
        if not known:
            self._told.add(str(error))
        log.log(logging.INFO if known else logging.WARNING, "Looking for results was put off: %s", error)

    def still_there(self) -> None:
        """Fail where the spool is gone; have the inbox again where that alone is."""
        try:
            if not files.is_missing(
                self._spool.layout.config
            ):  # a directory may be left, where something was made in it
                self._spool.open_session(self._session)
                return
        except NotASpool:  # it went just now
            pass
        self._fail(BrokenSpool(f"The spool {self._spool.path} is gone, and all tasks that were in it."))

    def _look_for_failed(self) -> None:
        """Tell of tasks that were set aside without an outcome: a torn file may not even say whose it is."""
        if not self._spool.sees_all:
            return
        for task_file in map(parse_task_file, files.list_names(self._spool.layout.failed)):
            future = task_file and self._awaited.get(task_file.task)
            if task_file and future:
                self._gave_up(future, set_aside(self._spool, task_file))

    def _gave_up(self, future: TaskFuture, error: BaseException) -> None:
        """A task will have no outcome, so that nobody will let go what waits for it."""
        left = [(future, error)]
        while left:
            future, error = left.pop()
            dependents = future.inbox.dependents(future.task)
            finish(future, error=error)
            self._awaited.over(future)
            for each in dependents:
                if not each.done() and each.inbox.cancel(each):
                    reason = DependencyFailed(
                        f"Task {each.task} was not run, because task {future.task} has no outcome."
                    )
                    reason.__cause__ = error
                    left.append((each, reason))

    # -- collecting

    def _collect_listed(self, late: dict[str, float]) -> bool:
        """Collect what has come; whether something has."""
        retention = self._awaited.retention
        retention.look()
        began = time.monotonic()
        place = self._spool.results(self._session, self._spool.account)
        names = files.list_names(str(place))
        if retention.keeps_all:  # what is not awaited is none of this process's; there may be many of them
            awaited = self._awaited.tasks()
            names = [name for name in names if name[:_ID] in awaited]
        else:
            names = [name for name in names if not retention.keeps(name[:_ID])]
        listed = time.monotonic() - began
        collected = sum(self._collect(task_file, late) for task_file in map(parse_task_file, names) if task_file)
        if collected and listed > 0.001:  # thousands stay because they are needed: list them a fifth of the time
            Backoff(4 * listed, 4 * listed).sleep()
        elif collected > 1 and len(self._awaited) > _MANY:  # it would be woken for each, and disturb who submits
            Backoff(_GATHER, _GATHER).sleep()
        return collected > 0

    def _collect(self, task_file: TaskFile, late: dict[str, float]) -> bool:
        """Deliver one committed outcome and remove it; False if nothing came of it (now)."""
        name = task_file.name
        if name in self._left_alone or not task_file.worker:
            return False
        future = self._awaited.get(task_file.task)
        if task_file.worker == CANCELLED:
            return self._collect_cancelled(future, task_file)
        if future is not None:
            try:
                kind = self._deliver(future, task_file)
                if future.task_file != task_file:  # else it came in an earlier life
                    self._awaited.note("collected", future, kind=kind)
            except (OSError, BadTaskFile, SpoolVersion, NotTrusted) as error:
                # its content may come to this client later than its name (NFS): look again, remove nothing
                first = late.setdefault(name, time.monotonic())
                decided = isinstance(error, NotTrusted) and not isinstance(error, NoKey)  # a new key may be on its way
                if decided or time.monotonic() - first > max(self._spool.config.lease, 5.0):
                    self._left_alone.add(name)
                    if isinstance(error, OSError):
                        path = self._spool.layout.outcome(self._session, task_file)
                        error = BadTaskFile(f"The outcome {path} cannot be read: {error.strerror}. It was left there.")
                    finish(future, error=error)
                    self._awaited.over(future)
                return False
        self._awaited.retention.settle(task_file)
        return future is not None

    def _collect_cancelled(self, future: TaskFuture | None, task_file: TaskFile) -> bool:
        """Take note of a token that says it was cancelled, from outside this process or by it."""
        results = self._spool.results(self._session, self._spool.account)
        marker = f"{results}/{task_file.name}"
        if self._spool.shared and (owner := files.owner(marker)) not in (None, self._spool.account):
            self._left_alone.add(task_file.name)
            log.warning(
                "%s says that %s was cancelled. It was left alone.", accounts.account_name(owner or 0), task_file.task
            )
            return False
        if future is not None:  # from outside this process
            future.withdrawn()
            self._awaited.ended(future, task_file, "cancelled")
        elif not self._awaited.retention.knows(task_file):  # of an earlier life
            header = read_task(self._spool, marker, task_file)
            self._awaited.retention.delivered(task_file, "cancelled", header, here=False)
        return self._awaited.retention.settle(task_file)

    def _deliver(self, future: TaskFuture, task_file: TaskFile) -> Kind:
        outgoing = self._spool.outgoing(self._session, self._spool.account)
        outcome, content = read_outcome(self._spool, self._session, task_file, self._accept, outgoing)
        if self.on_outcome is not None and future.task_file != task_file:
            self.on_outcome(future.header, task_file)
        future.seconds = outcome.ended - outcome.started
        if outcome.kind == "cancelled":
            future.withdrawn()
            cancel.withdraw_request(self._spool, future.task)  # which somebody else may have made
            self._awaited.ended(future, task_file, outcome.kind)
            return outcome.kind
        try:
            value = value_of(outcome, content)
        except BaseException as error:  # noqa: BLE001  it is the task's own
            # the frames of this thread tell nobody anything, and would keep the outcome's data
            finish(future, error=error.with_traceback(None))
        else:
            if self.on_result is not None and future.header.cache:
                name = task_file.name
                self.on_result(future.header, outcome, f"{outgoing}/{name}", outcome_label(self._session, name))
            finish(future, value=value)
        self._awaited.ended(future, task_file, outcome.kind)
        return outcome.kind


def set_aside(spool: Spool, task_file: TaskFile) -> BadTaskFile:
    """What becomes of the future of a task that stands in ``failed/``."""
    return BadTaskFile(
        f"Task {task_file.task} was set aside as {spool.layout.failed}/{task_file.name}: it could not be read, "
        f"or its outcome "
        "not be stored, or it was lost with its workers, as their logs tell. 'spool retry' runs it again."
    )
