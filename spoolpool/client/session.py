"""One submitter's inbox: what puts tasks in, and what their futures ask."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable

from spoolpool.client.collector import Collector, set_aside
from spoolpool.client.futures import TaskFuture, finish, wait
from spoolpool.client.object_store import SessionObjects
from spoolpool.client.pending import PendingTasks
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.client.references import CallReferences
from spoolpool.client.retention import Held
from spoolpool.context import assistance
from spoolpool.errors import BrokenSpool, NotTrusted
from spoolpool.format import envelope, headers
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile, check_session, parse_task_file
from spoolpool.monitor.graph import Node
from spoolpool.monitor.inventory import find_session_tasks
from spoolpool.monitor.query import TaskView
from spoolpool.protocol import cancel
from spoolpool.protocol.sessions import register, unregister
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.submit import Submitter
from spoolpool.security.trust import Trust
from spoolpool.system import accounts, files
from spoolpool.system.processes import hostname

log = logging.getLogger(__name__)


class Session:
    """One submitter's inbox of a spool. All methods may be called from any thread.

    The thread that collects is started by the first submission, and ends when the session is closed and
    nothing is pending any more.
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
    ) -> None:
        self.spool = spool
        self.name = check_session(name)
        self._submitter = Submitter(spool, submitter)
        self._awaited = PendingTasks(spool, self.name, keeps_all=keeps)
        self._collector = Collector(self._awaited, accept, end=self._end, fail=self.fail)
        self.objects = SessionObjects(spool, self.name)
        self._closed = False
        self._detached = False
        self.may_be_left = False
        """Whether the end of the process need not wait for what is pending."""
        self._broken: BaseException | None = None
        self._user = accounts.account_name(os.geteuid())
        self._wait_for_room = wait_for_room
        spool.need_key()
        spool.open_session(self.name)
        register(spool, self.name, self._user, keeps=keeps)

    @property
    def keeps(self) -> bool:
        """Whether outcomes stay in the spool after they were delivered, for a later process of the same name."""
        return self._awaited.retention.keeps_all

    # -- submitting

    def submit(self, call: PreparedCall) -> TaskFuture:
        """Put a call into the spool; after the return only ``cancel`` can lose it.

        The task waits for the futures among the arguments. If one of them has failed already, the returned future has
        failed too, and there is no task. Raises ``RuntimeError`` after the session was closed, :class:`BrokenSpool`
        after it failed, and :class:`TooManyWaiting` at the spool's limit of waiting tasks, unless the session waits
        for room.
        """
        references, resources = call.references, call.resources
        self._submitter.await_room(self._open_still if self._wait_for_room else None)
        header = TaskHeader(
            task=references.task,
            session=self.name,
            lane=call.lane,
            bucket=self._submitter.bucket(call.lane, references.task),
            name=call.name,
            user=self._user,
            host=hostname(),
            submitted=time.time(),
            max_attempts=resources.max_attempts or self.spool.config.max_attempts,
            init=call.init,
            needs=references.of_header(),
            objects={**references.objects, **call.objects},
            spool=self.spool.config.id,
            key=call.key,
            cache=call.cache,
            **resources.header_fields(self.spool.server_time),
        )
        future = TaskFuture(self, header, here=True)
        if references.end(future):
            return future
        with self._awaited.lock:
            self._open_still()
            self._awaited.add(future, references)
            wake = self._collector.start()
        try:
            parts = envelope.pack(headers.encode(header), call.payload, call.buffers)
            future.task_file = self._submitter.submit(header, parts)
        except BaseException:
            self._awaited.withdraw(header.task)
            raise
        # dated by the header, since a worker may have finished the task by now
        self._awaited.note("submitted", future, name=call.name, t=header.submitted)
        if header.needs:
            references.submitted(future)
        if wake:
            self._collector.wake()
        return future

    def _open_still(self) -> None:
        with self._awaited.lock:
            if self._broken is not None:
                raise BrokenSpool(f"Nothing can be submitted: {self._broken}")
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")

    # -- an earlier life

    def futures(self) -> list[TaskFuture]:
        """Futures of all tasks of this name that are in the spool, in the order of submission.

        Where not all of the spool can be listed, as in somebody else's dropbox, those that wait or run are left out,
        and the log tells.
        """
        tasks, unlisted = find_session_tasks(self.spool, self.name)
        for path, reason in unlisted.items():
            log.warning("Tasks of the session %s in %s are not seen: %s.", self.name, path, reason)
        return [self.take_up(task) for task in tasks]

    def take_up(self, task: TaskView) -> TaskFuture:
        """The future of a task that was found in the spool: the one that this process has already, or a new one."""
        place, task_file = task.location.place, task.location.task_file
        with self._awaited.lock:
            self._open_still()
            future = self._awaited.known(task.id)
            if future is not None:
                return future
            assert task.header is not None  # as of all tasks of an inventory
            future = TaskFuture(self, task.header)
            future.task_file = task_file if place == "done" else task_file.claimed_by("")
            if place == "failed":
                finish(future, error=set_aside(self.spool, task_file))
                return future
            self._awaited.add(future)
            wake = self._collector.start()
        if wake:
            self._collector.wake()
        return future

    # -- what a future asks

    def cancel(self, future: TaskFuture) -> bool:
        """Take a task back that nobody has claimed."""
        if not cancel.cancel_task(self.spool, future.header, future.task_file):
            return False
        self._awaited.note("cancelled", future)
        task_file = future.task_file.claimed_by(CANCELLED)
        self._awaited.ended(future, task_file, "cancelled")
        with contextlib.suppress(OSError, NotTrusted):  # the collector tries again
            self._awaited.retention.settle(task_file)
        return True

    def interrupt(self, future: TaskFuture) -> None:
        """Ask whoever runs the task to end it; its future is cancelled once that was done."""
        self._awaited.mark(future.task)

    def dependents(self, task: str) -> list[TaskFuture]:
        """Futures of this process that wait for this task."""
        return [needs.future for needs in self._awaited.retention.holders(task) if needs.future is not None]

    def assists(self) -> bool:
        """Whether the caller is a task of the same spool whose group can run others meanwhile."""
        return assistance(self.spool.config.id) is not None

    def assist(self) -> bool:
        """In such a task: run one task of this session that waits; whether there was one."""
        run_one = assistance(self.spool.config.id)
        return run_one is not None and run_one(self._submitter.id)

    def hold(self, task: str, needs: CallReferences) -> Held:
        """Keep the outcome of a task in the spool for a call, if it is not gone."""
        with self._awaited.lock:
            future = self._awaited.get(task)
            if future is not None:
                self._awaited.graph.expect(future.header)
            return self._awaited.retention.hold(task, needs, pending=future is not None)

    def drop(self, task: str, needed_by: str) -> None:
        """A call needs an outcome no longer."""
        self._awaited.retention.drop(task, needed_by)

    def nodes(self) -> list[Node]:
        """The tasks that wait, and those that need others or are needed, for :mod:`spoolpool.monitor.graph`."""
        return self._awaited.graph.nodes(future.header for future in self.pending())

    def waits(self, future: TaskFuture) -> bool:
        """Whether no worker has claimed the task yet (or it waits again, after its worker died)."""
        header = future.header
        # in this order: it goes from the one to the other
        names = files.list_names(self.spool.layout.waiting) if header.delayed else []
        names += files.list_names(self.spool.layout.bucket(header.lane, header.bucket))
        listed = map(parse_task_file, names)
        return any(task_file is not None and task_file.task == header.task for task_file in listed)

    def waiting(self) -> int:
        """How many tasks no worker has claimed yet."""
        pending = {future.task: future.header for future in self.pending()}
        where = {self.spool.layout.bucket(each.lane, each.bucket) for each in pending.values()}
        if any(each.delayed for each in pending.values()):
            where.add(self.spool.layout.waiting)
        listed = {
            task_file.task for at in where for task_file in map(parse_task_file, files.list_names(at)) if task_file
        }
        return len(listed & pending.keys())

    def pending(self) -> list[TaskFuture]:
        """Futures without an outcome, in the order of their submission."""
        return self._awaited.futures()

    # -- the end

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is pending; whether that is so."""
        return self._awaited.wait(seconds)

    def close(self) -> None:
        """Let the thread end once nothing is pending; harmless when repeated."""
        with self._awaited.lock:
            self._closed = True
            self._collector.stop()
            started = self._collector.started
        if not started:
            self._end()

    def detach(self) -> None:
        """End without waiting: what is pending goes on, and its outcomes stay for whoever comes to the session."""
        with self._awaited.lock:
            self._awaited.forget()
            self._detached = True
        self.close()
        self.join()

    def join(self) -> None:
        """Wait for the thread's end, after :meth:`close`."""
        if self._collector.started and not self.collects_here():
            if self.assists():  # else nobody might
                wait(self.pending())
            self._collector.join()

    def collects_here(self) -> bool:
        """Whether the caller is the thread that collects, as it is in a callback of a future."""
        return self._collector.runs_here()

    def on_outcome(self, call: Callable[[TaskHeader, TaskFile], None]) -> None:
        """Have this called with a task and its claim when its outcome has come, in the thread that collects."""
        self._collector.on_outcome = call

    def on_result(self, call: Callable[[TaskHeader, OutcomeHeader, str, str], None]) -> None:
        """Set the callback for results to be cached; see :attr:`Collector.on_result`."""
        self._collector.on_result = call

    def fail(self, reason: BaseException, lane: str | None = None) -> None:
        """Nothing will come any more (of a lane; of any if None): every such future gets the reason.

        Tasks that nobody has claimed are taken back, as far as that is possible, unless a later process may come for
        them: nobody awaits them.
        """
        with self._awaited.lock:
            if lane is None:
                self._broken = reason
            failed = self._awaited.forget(lane)
        for future in failed:
            with contextlib.suppress(OSError, NotTrusted):
                if not self.keeps:
                    self.cancel(future)
            finish(future, error=reason)
        self._detached |= self.keeps and bool(failed)
        if lane is None:
            self._collector.stop()
        else:
            self._collector.wake()

    def after_fork(self) -> None:
        """In a forked child: the futures are the parent's, and nothing here will ever fulfil them."""
        pending = self._awaited.after_fork()  # first: it makes new locks
        self._collector.close()
        for future in pending:
            future.after_fork()
            finish(future, error=BrokenSpool("This future is the parent process's: ask for it there."))

    def _end(self) -> None:
        self._collector.close()
        self._awaited.close()
        if self._detached or self.keeps:  # its directories too: another process of this name may be at work
            unregister(self.spool, self.name)
        if not self._detached:
            lost = self.keeps and self._awaited.lost  # and may be retried
            if self._broken is None and not lost:  # else something may still run that needs them
                self.objects.close(lost=self._awaited.lost)
            if not self.keeps:
                self.spool.close_session(self.name)
            self._submitter.close()
        self.spool.close_directories()
