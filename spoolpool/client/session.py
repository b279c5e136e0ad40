"""A session of a spool, as its submitter uses it: submission, cancellation, earlier tasks, and the end."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from spoolpool.client.collector import Collector, set_aside_error
from spoolpool.client.futures import DeferredFuture, TaskFuture, finish, wait
from spoolpool.client.object_store import SessionObjects
from spoolpool.client.pending import PendingTasks
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.context import assistance
from spoolpool.errors import BrokenSpool, NotTrusted, SpoolpoolError, TaskVanished
from spoolpool.format import envelope, headers
from spoolpool.format.headers import NO_ENTRIES, TaskHeader
from spoolpool.format.names import CANCELLED, check_session, new_submitter_id, open_pack_file
from spoolpool.protocol import cancel, packs
from spoolpool.protocol.open_packs import OpenPack
from spoolpool.protocol.sessions import RENEWAL, entry_of, register, renew, unregister
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.submit import Submitter
from spoolpool.security.trust import Trust
from spoolpool.system import accounts, files
from spoolpool.system.environment import working_directory
from spoolpool.system.processes import hostname

if TYPE_CHECKING:
    from spoolpool.monitor.query import TaskView

log = logging.getLogger("spoolpool.session")


class SubmitterSession:
    """Named inbox of one submitter in a spool. The methods may be called from any thread.

    The first submission starts the collector thread. It ends when the session is closed and no task is pending.
    """

    def __init__(
        self,
        spool: Spool,
        name: str,
        *,
        accept: Trust,
        submitter: str = "",
        wait_for_room: bool = False,
        keeps: bool = False,
        raises_cause: bool = False,
    ) -> None:
        self.spool = spool
        self.name = check_session(name)
        run = new_submitter_id()
        self.entry = entry_of(name, run, keeps=keeps)
        """Entry of this process in ``sessions/``."""
        self.pending = PendingTasks(spool, self.name, keeps_all=keeps)
        self.collector = Collector(self.pending, accept, end=self._end, fail=self.fail, renew=self._renew)
        self.objects = SessionObjects(spool, self.name, run, keeps=keeps, needed=self.pending.needed_objects)
        self.raises_cause = raises_cause
        """Whether a call whose dependency failed has the exception of the dependency."""
        self.may_be_left = False
        """Whether the process may exit without waiting for the pending tasks."""
        self._submitter = Submitter(spool, submitter)
        self._wait_for_room = wait_for_room
        self.keeps = keeps
        """Whether outcomes stay after their delivery, for a later process."""
        self._user = accounts.account_name(os.geteuid())
        self._directory = ""
        self._opened_in = working_directory()
        self._renewal_due = time.monotonic() + RENEWAL
        self._closed = False
        self.detached = False
        """Whether the tasks were left to the spool."""
        self._broken: BaseException | None = None
        spool.need_key()
        spool.open_session(self.name)
        register(spool, self.name, self._user, run, keeps=keeps)

    # -- submitting

    def submit(self, call: PreparedCall) -> TaskFuture:
        """Put a call into the spool and return its future. After the return only ``cancel`` can remove the task.

        The task waits for the futures among the arguments. If one of them has failed already, the returned future has
        failed too, and no task is created. Raises ``RuntimeError`` after the session was closed, :class:`BrokenSpool`
        after it failed, and :class:`TooManyWaiting` at the spool's limit of waiting tasks, unless the session waits
        for room.
        """
        references = call.references
        self._submitter.await_room(self._check_open if self._wait_for_room and not call.again else None)
        header = self._header_of(call)
        future = TaskFuture(self, header, submitted_by_this_run=True, packed=call.packed)
        future.pack = call.pack
        if references.finish_if_failed(future):
            return future
        with self.pending.lock:
            self._check_open(also_closed=call.again)
            self.pending.add(future, references)
            must_wake = self.collector.start()
        try:
            if call.calls:
                parts = packs.parts_of(self.spool, header, call.calls)
            else:
                parts = envelope.pack(headers.encode(header), call.payload, call.buffers)
            future.task_file = self._submitter.submit(header, parts)
        except BrokenSpool as error:
            self.pending.withdraw(header.task)
            self.fail(error)
            raise
        except BaseException as error:
            if not (isinstance(error, TaskVanished) and future.done()):  # else it was collected during the search
                self.pending.withdraw(header.task)
                raise
        future.is_submitted = True
        # with the time of the header: a worker may have finished the task already
        packed = {"calls": header.calls} if header.calls else {}
        self.pending.record_event("submitted", future, name=call.name, t=header.submitted, **packed)
        if header.needs:
            references.mark_submitted(future)
        if must_wake:
            self.collector.wake()
        return future

    def _header_of(self, call: PreparedCall, entry: str = "") -> TaskHeader:
        references, resources = call.references, call.resources
        return TaskHeader(
            task=references.task,
            session=self.name,
            lane=call.lane,
            bucket=self._submitter.bucket(call.lane, references.task),
            name=call.name,
            label=call.label,
            arguments=call.arguments,
            user=self._user,
            host=hostname(),
            submitted=time.time(),
            max_attempts=resources.max_attempts or self.spool.config.max_attempts,
            init=call.init,
            needs=references.by_session(),
            objects={**references.objects, **call.objects} if references.objects or call.objects else NO_ENTRIES,
            spool=self.spool.config.id,
            calls=1 if entry else len(call.calls),
            entry=entry,
            key=call.key,
            cache=call.cache,
            directory=self._shared(call.directory),
            **{"env": NO_ENTRIES, **resources.header_fields(self._server_time)},
        )

    def open_pack(self, call: PreparedCall) -> tuple[TaskFuture, OpenPack]:
        """Open a pack without calls, for calls to be appended; return the future of its task, and the pack.

        The future gets the outcome after the seal, by whichever process. Raises as :meth:`submit`.
        """
        header = self._header_of(call, self.entry)
        future = TaskFuture(self, header, submitted_by_this_run=True, packed=call.packed)
        future.pack = call.pack
        future.task_file = open_pack_file(header.task)
        with self.pending.lock:
            self._check_open(also_closed=call.again)
            self.pending.add(future)
            must_wake = self.collector.start()
        try:
            with files.translate_errors(f"submit a task to {self.spool.path}"):
                pack = OpenPack(self.spool, header)
        except BaseException:
            self.pending.withdraw(header.task)
            raise
        future.is_submitted = True
        self.pending.record_event("submitted", future, name=call.name, t=header.submitted)
        if must_wake:
            self.collector.wake()
        return future, pack

    def _shared(self, directory: str) -> str:
        """Return the same object as for the last call if the directory is the same: there may be a million calls.

        A header cannot have a directory whose name is not UTF-8. The groups of a temporary spool were started in the
        directory in which the session was opened, and need not be told.
        """
        if directory != self._directory:
            if self.spool.temporary and directory == self._opened_in and not headers.is_text(directory):
                return ""
            self._directory = directory
        return self._directory

    def expect(self, future: DeferredFuture) -> None:
        """Note a call that gets its task later; the session does not end before. Raises as :meth:`submit` does."""
        with self.pending.lock:
            self._check_open()
            self.pending.add_deferred(future)
            self.collector.start()

    def _server_time(self) -> float:
        try:
            return self.spool.server_time()
        except FileNotFoundError:  # a purge has removed tmp/
            self.spool.make_directories(self.spool.layout.tmp)
            return self.spool.server_time()

    def _check_open(self, *, also_closed: bool = False) -> None:
        with self.pending.lock:
            if self._broken is not None:
                raise BrokenSpool(f"Cannot submit: {self._broken}")
            if self._closed and not also_closed:
                raise RuntimeError("cannot schedule new futures after shutdown")

    # -- tasks of earlier runs

    def futures(self) -> list[TaskFuture]:
        """Return futures of all tasks of the session in the spool, in the order of submission.

        Outcomes that are in the spool are delivered before the return, except in a callback of a future.
        If a directory cannot be listed, as in another account's dropbox, its waiting and running tasks are left out,
        and a warning is logged.
        """
        from spoolpool.monitor.inventory import find_session_tasks

        tasks, unlisted = find_session_tasks(self.spool, self.name)
        for path, reason in unlisted.items():
            log.warning("Cannot list tasks of the session %s in %s: %s.", self.name, path, reason)
        futures = [self.future_of(task) for task in tasks]
        ended = [future for task, future in zip(tasks, futures, strict=True) if task.location.place == "done"]
        if not all(future.done() for future in ended):
            self.collector.wait_for_pass()
        return futures

    def future_of(self, task: TaskView) -> TaskFuture:
        """Return the future of a task found in the spool: the existing one of this process, or a new one."""
        place, task_file = task.location.place, task.location.task_file
        with self.pending.lock:
            self._check_open()
            future = self.pending.known(task.id)
            if future is not None:
                return future
            assert task.header is not None  # find_session_tasks returns no others
            future = TaskFuture(self, task.header)
            future.is_submitted = True
            future.task_file = task_file if place == "done" else task_file.claimed_by("")
            if place == "failed":
                finish(future, error=set_aside_error(self.spool, task_file))
                return future
            self.pending.add(future)
            must_wake = self.collector.start()
        if must_wake:
            self.collector.wake()
        return future

    # -- sign of life

    def start_renewal(self) -> None:
        """Start the thread that renews the leases, if the session is open: it may submit its first task much later."""
        with self.pending.lock:
            if not self._closed:
                self.collector.start()

    def _renew(self) -> None:
        self.objects.remove_unused()
        if time.monotonic() < self._renewal_due:
            return
        self._renewal_due = time.monotonic() + RENEWAL
        try:
            renew(self.spool, self.entry, self._user, keeps=self.keeps)
            self.objects.renew()
        except (OSError, SpoolpoolError) as error:  # the server is away; or the spool is gone, as a submission will say
            log.info("Cannot renew the leases of session %s now: %s", self.name, error)

    # -- requests of futures

    def cancel(self, future: TaskFuture) -> bool:
        """Cancel a task that no worker has claimed; returns whether it succeeded."""
        if not cancel.cancel_task(self.spool, future.header, future.task_file):
            return False
        self.collector.direct.recall()  # a thread may wait for the result
        self.pending.record_event("cancelled", future)
        task_file = future.task_file.claimed_by(CANCELLED)
        self.pending.mark_delivered(future, task_file, "cancelled")
        with contextlib.suppress(OSError, NotTrusted):  # the collector tries again
            self.pending.retention.discard_if_unneeded(task_file)
        return True

    def can_assist(self) -> bool:
        """Return whether the caller is a task of the same spool whose group can execute other tasks meanwhile."""
        return assistance(self.spool.config.id) is not None

    def assist(self) -> bool:
        """Execute one ready task of this session if the caller is a task; returns whether there was one."""
        run_one = assistance(self.spool.config.id)
        return run_one is not None and run_one(self._submitter.id)

    # -- the end

    def close(self) -> None:
        """Let the collector end once no task is pending. May be repeated."""
        with self.pending.lock:
            self._closed = True
            self.collector.stop()
            started = self.collector.started
        if not started:
            self._end()

    def detach(self) -> None:
        """Close without waiting: pending tasks go on, and their outcomes stay for a later process of the session."""
        for each in self.pending.deferred():  # they are in this process alone
            each.cancel()
        with self.pending.lock:
            self.pending.forget()
            self.detached = True
        self.close()
        self.join()

    def join(self) -> None:
        """Wait for the end of the collector, after :meth:`close`; returns at once in the collector itself."""
        if self.collector.started and not self.collector.runs_here():
            if self.can_assist():  # the group of the caller may be the only one
                while pending := [*self.pending.futures(), *self.pending.deferred()]:
                    wait(pending)
            self.collector.join()

    def fail(self, reason: BaseException, lane: str | None = None) -> None:
        """Fail all pending futures (of a lane; of all lanes if None, which breaks the session) with a reason.

        Unclaimed tasks are cancelled as far as possible, since nothing would collect their outcomes. In a session that
        keeps its outcomes they stay for a later process.
        """
        with self.pending.lock:
            if lane is None:
                self._broken = reason
            failed = self.pending.forget(lane)
        for future in failed:
            with contextlib.suppress(OSError, NotTrusted):
                if not self.keeps:
                    self.cancel(future)
            finish(future, error=reason)
        for call in self.pending.deferred() if lane is None else ():
            call.fail(reason)
        if self.keeps and failed:
            self.detached = True  # never `|=`: another thread may detach between the read and the write
        if lane is None:
            self.collector.stop()
        else:
            self.collector.wake()

    def after_fork(self) -> None:
        """Fail the pending futures in a forked child: only the parent collects their outcomes."""
        pending = self.pending.after_fork()  # first: it makes new locks
        self.collector.direct.after_fork()
        self.collector.close()
        for future in pending:
            future.after_fork()
            error = BrokenSpool("The future belongs to the parent process; it cannot be used after fork.")
            if isinstance(future, DeferredFuture):
                future.fail(error)
            else:
                finish(future, error=error)

    def _end(self) -> None:
        self.collector.close()
        self.pending.close()
        if self.detached or self.keeps:  # the directories stay: another process may use the session
            unregister(self.spool, self.entry)
        if not self.detached:
            if self._broken is None:  # else any task may still run, and need the objects
                self.objects.close()
            if not self.keeps:
                self.spool.close_session(self.name)
            self._submitter.close()
        self.spool.close_directories()
