"""Collector of a session: a thread that lists the committed outcomes and delivers them to the futures."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from spoolpool.calls.results import error_of, value_of
from spoolpool.client.futures import CallSink, TaskFuture, finish
from spoolpool.client.pending import PendingTasks
from spoolpool.client.starvation import Refresher, StarvationMonitor
from spoolpool.client.vanished import VanishedTasks
from spoolpool.errors import (
    BadTaskFile,
    BrokenSpool,
    DependencyFailed,
    NoKey,
    NotTrusted,
    SpoolpoolError,
    SpoolVersion,
)
from spoolpool.format.headers import Kind, OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile, new_task_id, parse_task_file
from spoolpool.monitor.states import End
from spoolpool.protocol import cancel
from spoolpool.protocol.outcome_log import CallOutcome, LogReader
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task
from spoolpool.security.signing import outcome_label
from spoolpool.security.trust import Trust
from spoolpool.system import accounts, files, mounts
from spoolpool.system.backoff import Backoff
from spoolpool.system.watch import DirectoryWatcher

log = logging.getLogger("spoolpool.session")

_ID = len(new_task_id())
_FIRST_POLL, _LAST_POLL = 0.0005, 1.0  # seconds between two listings, growing
_CHECK_SECONDS = 5.0  # time without an outcome until the next check of the spool and of its worker groups
_MOST_NAMES = 10_000  # names of unreadable outcomes that are remembered before the missing ones are forgotten
_LINGER = 0.02  # seconds after the last outcome in which a new task need not wake the thread
_MANY = 100  # pending tasks from which on outcomes are collected in batches
_BATCH_SECONDS = 0.002
_STREAM_SECONDS = 0.1  # between two looks at the outcomes of packs that run


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
        self._accept = accept
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
        self._ignored: set[str] = set()  # names of task files
        self._warned: set[str] = set()
        self._logs: dict[str, LogReader] = {}  # of running packs, by the names of their claims
        self._stream_due = 0.0
        self.on_outcome: Callable[[TaskHeader, TaskFile], None] | None = None
        """Called in the collector thread with a task and its attempt, before its future is done."""
        self.on_result: Callable[[TaskHeader, OutcomeHeader, str, str], None] | None = None
        """Called before the delivery of a result to be cached, with the path of its outcome and its signature label."""

    def start(self) -> bool:
        """Start the thread if it does not run, under the session's lock; returns whether a new task must wake it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"spoolpool-{self._session}", daemon=True)
            self._thread.start()
        return self._waits_long

    def wake(self) -> None:
        """Make the thread list the outcomes now."""
        with self._pending.lock:  # race: it may be about to close the watcher
            self._watch.wake()

    def wait_for_pass(self) -> None:
        """Wait until the thread has delivered the readable outcomes that are there now; not in the thread itself."""
        if self._thread is None or self.runs_here():
            return
        with self._pending.lock:
            begun = self._passes_begun
            self._watch.wake()
            while self._passes_ended <= begun and self._thread.is_alive():
                self._pass_ended.wait(1.0)

    def stop(self) -> None:
        """Let the thread end once no task is pending. May be repeated."""
        with self._pending.lock:
            self._stopping = True
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
        unreadable: dict[str, float] = {}
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
                collected = self._make_pass(unreadable)
                if self._stream() or collected:
                    backoff.reset()
                    starvation.reset()
                    check_due = time.monotonic() + _CHECK_SECONDS
                    refresher.reset()
                    if not hears:
                        continue
                    self._linger_until = time.monotonic() + _LINGER  # an outcome since the listing ends the wait
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
            if self._watch.wait(self._pause(backoff)):
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
                seconds = _LINGER if time.monotonic() < self._linger_until else 3600.0
            if self._pending.flush(age=1.0):
                seconds = min(seconds, 1.0)
            self._waits_long = seconds > _LINGER
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

    def _make_pass(self, unreadable: dict[str, float]) -> bool:
        """Collect the listed outcomes, and tell the threads that wait for it; returns whether there were any."""
        self._passes_begun += 1
        try:
            return self._collect_listed(unreadable)
        finally:
            with self._pending.lock:
                self._passes_ended += 1
                self._pass_ended.notify_all()

    def _collect_listed(self, unreadable: dict[str, float]) -> bool:
        """Collect the listed outcomes; returns whether there were any."""
        retention = self._pending.retention
        retention.list_links()
        began = time.monotonic()
        names = files.list_names(str(self._spool.results(self._session, self._spool.account)))
        if retention.keeps_all:  # there may be many outcomes of other processes
            pending = self._pending.ids()
            names = [name for name in names if name[:_ID] in pending]
        else:
            names = [name for name in names if not retention.is_retained(name[:_ID])]
        if len(unreadable) + len(self._ignored) > _MOST_NAMES:  # of outcomes that others removed since
            self._ignored.intersection_update(names)
            for name in unreadable.keys() - set(names):
                del unreadable[name]
        listed = time.monotonic() - began
        collected = sum(self._collect(task_file, unreadable) for task_file in map(parse_task_file, names) if task_file)
        if collected and listed > 0.001:  # thousands are retained: spend at most a fifth of the time on listing them
            Backoff(4 * listed, 4 * listed).sleep()
        elif (
            collected > 1 and len(self._pending) > _MANY
        ):  # else each outcome would wake this thread, and slow down the submitting one
            Backoff(_BATCH_SECONDS, _BATCH_SECONDS).sleep()
        return collected > 0

    def _collect(self, task_file: TaskFile, unreadable: dict[str, float]) -> bool:
        """Deliver one committed outcome and remove it; returns False if it was not delivered, or not yet."""
        name = task_file.name
        if name in self._ignored or not task_file.worker:
            return False
        future = self._pending.get(task_file.task)
        if task_file.worker == CANCELLED:
            return self._collect_cancelled(future, task_file)
        if future is not None:
            try:
                kind = self._deliver(future, task_file)
                if future.task_file != task_file:  # else it came to an earlier run
                    self._pending.record_event("collected", future, kind=kind)
            except (OSError, BadTaskFile, SpoolVersion, NotTrusted) as error:
                # NFS may show a name before the content: try again, and remove nothing
                first = unreadable.setdefault(name, time.monotonic())
                final = isinstance(error, NotTrusted) and not isinstance(error, NoKey)  # a new key may arrive
                if final or time.monotonic() - first > max(self._spool.config.lease, 5.0):
                    self._ignored.add(name)
                    if isinstance(error, OSError):
                        path = self._spool.layout.outcome(self._session, task_file)
                        error = BadTaskFile(f"Cannot read the outcome {path}: {error.strerror}. It was not removed.")
                    finish(future, error=error)
                    self._pending.mark_ended(future, "failed")
                return False
            except Exception as error:  # noqa: BLE001  such as a lack of memory: of this future alone
                self._ignored.add(name)
                finish(future, error=error)
                self._pending.mark_ended(future, "failed")
                return False
        self._pending.retention.discard_if_unneeded(task_file)
        return future is not None

    def _collect_cancelled(self, future: TaskFuture | None, task_file: TaskFile) -> bool:
        """Handle a task file that marks a cancelled task, whether this process cancelled the task or another one."""
        results = self._spool.results(self._session, self._spool.account)
        marker = f"{results}/{task_file.name}"
        if self._spool.shared and (owner := files.owner(marker)) not in (None, self._spool.account):
            self._ignored.add(task_file.name)
            account = accounts.account_name(owner or 0)
            log.warning(
                "Ignoring %s, which marks the task as cancelled: it belongs to %s.", files.display_path(marker), account
            )
            return False
        if future is not None:  # another process cancelled the task
            future.mark_cancelled()
            self._pending.mark_delivered(future, task_file, "cancelled")
        elif not self._pending.retention.was_delivered(task_file):  # of an earlier run
            try:
                header = read_task(self._spool, marker, task_file)
            except SpoolpoolError as error:  # torn or foreign: it names no dependencies that could be released
                self._ignored.add(task_file.name)
                log.warning("Ignoring %s: %s", files.display_path(marker), error)
                return False
            self._pending.retention.add_delivered(task_file, "cancelled", header, submitted_by_this_run=False)
        return self._pending.retention.discard_if_unneeded(task_file)

    def _deliver(self, future: TaskFuture, task_file: TaskFile) -> Kind:
        outgoing = self._spool.outgoing(self._session, self._spool.account)
        if task_file.calls and future.pack is not None:
            return self._deliver_pack(future, future.pack, task_file, outgoing)
        outcome, content = read_outcome(self._spool, self._session, task_file, self._accept, outgoing)
        if self.on_outcome is not None and future.task_file != task_file:
            self.on_outcome(future.header, task_file)
        future.seconds = outcome.ended - outcome.started
        if outcome.kind == "cancelled":
            future.mark_cancelled()
            cancel.withdraw_request(self._spool, future.task)  # which another process may have made
            self._pending.mark_delivered(future, task_file, outcome.kind)
            return outcome.kind
        if outcome.kind == "lost":
            cancel.withdraw_request(self._spool, future.task)  # it would end a retry
        try:
            value = value_of(outcome, content)
        except BaseException as error:  # noqa: BLE001  of the task
            # without the frames of this thread, which would keep the data of the outcome alive
            finish(future, error=BaseException.with_traceback(error, None))
        else:
            if self.on_result is not None and future.header.cache:
                name = task_file.name
                self.on_result(future.header, outcome, f"{outgoing}/{name}", outcome_label(self._session, name))
            finish(future, value=value)
        self._pending.mark_delivered(future, task_file, outcome.kind)
        return outcome.kind

    def _deliver_pack(self, future: TaskFuture, pack: CallSink, task_file: TaskFile, outgoing: files.Place) -> Kind:
        """Deliver the outcomes of the calls of a committed pack that were not delivered while it ran."""
        reader = self._logs.pop(task_file.name, None) or LogReader(self._spool, self._session, task_file)
        self._take(pack, reader.read(self._accept.check, outgoing))
        whole = reader.whole
        if whole is None and reader.done < task_file.calls:
            path = self._spool.layout.outcome(self._session, task_file)
            raise BadTaskFile(f"{path} has the outcomes of {reader.done} of {task_file.calls} calls: it is torn.")
        if self.on_outcome is not None and future.task_file != task_file:
            self.on_outcome(future.header, task_file)
        future.seconds = reader.seconds
        kind: Kind = "result"
        if whole is not None and whole.header.kind == "cancelled":
            kind = "cancelled"
            future.mark_cancelled()
        elif whole is not None:
            kind = "lost" if whole.header.kind == "lost" else "result"
            error = error_of(whole.header, whole.content)
            finish(future, error=BaseException.with_traceback(error, None))
        else:
            finish(future, value=pack)
        if kind != "result":
            cancel.withdraw_request(self._spool, future.task)
        self._pending.mark_delivered(future, task_file, kind)
        return kind

    @staticmethod
    def _take(pack: CallSink, outcomes: list[CallOutcome]) -> None:
        for header, content in outcomes:
            if header.call is not None:
                pack.take(header.call, header, content)

    def _stream(self) -> bool:
        """Deliver the outcomes of calls whose packs still run; returns whether there were any.

        The claim is looked for after the outcomes were read: while it stands, each worker that claims the pack later
        adopts them. An account that cannot list the claims, as in a dropbox, gets them when the pack has ended.
        """
        now = time.monotonic()
        if now < self._stream_due or not self._pending.packs or not self._spool.sees_all:
            return False
        self._stream_due = now + _STREAM_SECONDS
        outgoing = self._spool.outgoing(self._session, self._spool.account)
        found: list[tuple[CallSink, LogReader, TaskFile, list[CallOutcome]]] = []
        before, self._logs = (
            self._logs,
            {},
        )  # a reader whose outcomes were not delivered is dropped, and reads them again
        for task_file in map(parse_task_file, files.list_names(str(outgoing))):
            future = task_file and task_file.calls and self._pending.packs.get(task_file.task)
            if not task_file or not future or future.pack is None:
                continue
            reader = before.get(task_file.name) or LogReader(self._spool, self._session, task_file)
            with contextlib.suppress(OSError, SpoolpoolError):  # the end of the pack tells what is wrong
                if outcomes := reader.read(self._accept.check, outgoing):
                    found.append((future.pack, reader, task_file, outcomes))
                elif task_file.name in before:
                    self._logs[task_file.name] = reader
        claims = set(files.list_names(self._spool.layout.claimed)) if found else set()
        for pack, reader, task_file, outcomes in found:
            if task_file.name in claims:  # else another claim decides which of them count; or it was committed just now
                self._logs[task_file.name] = reader
                self._take(pack, outcomes)
        return bool(found)


def set_aside_error(spool: Spool, task_file: TaskFile) -> BadTaskFile:
    """Return the error for the future of a task in ``failed/``."""
    return BadTaskFile(
        f"Task {task_file.task} was set aside as {spool.layout.failed}/{task_file.name}: its file could not be read, "
        "or its outcome not be written, or it was lost with its workers. Their logs name the cause; 'spool retry' runs "
        "it again."
    )
