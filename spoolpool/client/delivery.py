"""Delivery of committed outcomes to the futures of a session."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable

from spoolpool.calls.results import error_of, value_of
from spoolpool.client.futures import CallSink, TaskFuture, finish
from spoolpool.client.pending import PendingTasks
from spoolpool.errors import BadTaskFile, NoKey, NotTrusted, SpoolpoolError, SpoolVersion
from spoolpool.format.headers import Kind, OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile, new_task_id, parse_task_file
from spoolpool.protocol import cancel
from spoolpool.protocol.outcome_log import CallOutcome, LogReader
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.protocol.tasks import read_task
from spoolpool.security.signing import outcome_label
from spoolpool.security.trust import Trust
from spoolpool.system import accounts, files, open_directory
from spoolpool.system.backoff import Backoff
from spoolpool.system.user_code import is_interrupt

log = logging.getLogger("spoolpool.session")

_ID = len(new_task_id())
_MOST_NAMES = 10_000  # names of unreadable outcomes that are remembered before the missing ones are forgotten
_MANY = 100  # pending tasks from which on outcomes are collected in batches
_BATCH_SECONDS = 0.002
_STREAM_SECONDS = 0.1  # between two looks at the outcomes of packs that run


class Delivery:
    """Reader of the outcomes of a session's pending tasks; each outcome is removed once its future is done.

    The methods are called by one thread at a time. Only outcomes of the accounts in ``accept`` are unpickled.
    """

    def __init__(self, pending: PendingTasks, accept: Trust) -> None:
        self._pending = pending
        self._spool = pending.spool
        self._session = pending.session
        self._accept = accept
        self._ignored: set[str] = set()  # names of task files
        self._unreadable: dict[str, float] = {}  # times of the first tries, by names of task files
        self._logs: dict[str, LogReader] = {}  # of running packs, by the names of their claims
        self._stream_due = 0.0
        self._delivered: deque[TaskFile] = deque()  # results that are to be removed from the spool
        self.on_outcome: Callable[[TaskHeader, TaskFile], None] | None = None
        """Called in the collector thread with a task and its attempt, before its future is done."""
        self.on_result: Callable[[TaskHeader, OutcomeHeader, str, str], None] | None = None
        """Called before the delivery of a result to be cached, with the path of its outcome and its signature label."""

    def collect_listed(self) -> bool:
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
        if len(self._unreadable) + len(self._ignored) > _MOST_NAMES:  # of outcomes that others removed since
            self._ignored.intersection_update(names)
            for name in self._unreadable.keys() - set(names):
                del self._unreadable[name]
        listed = time.monotonic() - began
        collected = sum(self._collect(task_file) for task_file in map(parse_task_file, names) if task_file)
        if collected and listed > 0.001:  # thousands are retained: spend at most a fifth of the time on listing them
            Backoff(4 * listed, 4 * listed).sleep()
        elif (
            collected > 1 and len(self._pending) > _MANY
        ):  # else each outcome would wake this thread, and slow down the submitting one
            Backoff(_BATCH_SECONDS, _BATCH_SECONDS).sleep()
        return collected > 0

    def deliver_alone(self, future: TaskFuture, task_file: TaskFile) -> bool:
        """Deliver a result to a future that only threads in ``result()`` wait for; returns False for another outcome.

        That one is left to the collector thread, as is an outcome that cannot be read now. Raises the exceptions of
        signal handlers, and of unpickling; then the collector thread tries it, too.
        """
        plain = task_file.worker not in ("", CANCELLED) and not task_file.calls and not future.header.cache
        if not plain or self.on_outcome is not None or task_file.name in self._ignored:
            return False
        outgoing = self._spool.outgoing(self._session, self._spool.account)
        try:
            outcome, content = read_outcome(self._spool, self._session, task_file, self._accept, outgoing)
            value = value_of(outcome, content) if outcome.kind == "result" else None
        except (SpoolpoolError, OSError) as error:
            if is_interrupt(error) or (isinstance(error, OSError) and error.errno is None):
                raise
            return False
        except (MemoryError, RecursionError):  # the collector thread has a stack of its own
            return False
        future.seconds = outcome.ended - outcome.started
        future.usage = outcome.usage
        if outcome.kind != "result" or not future.set_unobserved(value):
            return False
        self._pending.record_event("collected", future, kind="result")
        self._pending.mark_delivered(future, task_file, "result")
        self._delivered.append(task_file)
        return True

    def discard_delivered(self) -> None:
        """Remove the outcomes that :meth:`deliver_alone` has delivered, unless a dependent needs them."""
        while self._delivered:
            try:
                self._pending.retention.discard_if_unneeded(self._delivered.popleft())
            except (OSError, NotTrusted, IndexError) as error:
                # the collector thread tries again, and may have emptied the queue during a signal handler
                if isinstance(error, OSError) and error.errno is None:  # of a signal handler
                    raise

    def _collect(self, task_file: TaskFile) -> bool:
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
                first = self._unreadable.setdefault(name, time.monotonic())
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
                "Ignoring %s, which marks the task as cancelled: it belongs to %s.",
                open_directory.display_path(marker),
                account,
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
                log.warning("Ignoring %s: %s", open_directory.display_path(marker), error)
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
        future.usage = outcome.usage
        if outcome.kind == "cancelled":
            future.mark_cancelled()
            cancel.withdraw_request(self._spool, future.task)  # which another process may have made
            self._pending.mark_delivered(future, task_file, outcome.kind)
            return outcome.kind
        if outcome.kind == "lost":
            cancel.withdraw_request(self._spool, future.task)  # it would end a retry
        try:
            value = value_of(outcome, content, future.title)
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

    def _deliver_pack(
        self, future: TaskFuture, pack: CallSink, task_file: TaskFile, outgoing: open_directory.Place
    ) -> Kind:
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
            error = error_of(whole.header, whole.content, future.title)
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

    def stream(self) -> bool:
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
