"""Results to futures: one submitter's inbox, and the thread that empties it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable

from spoolpool import envelope, fsio, layout, registry, settings, task, trust
from spoolpool.backoff import Backoff
from spoolpool.claim import read_task
from spoolpool.context import assistance
from spoolpool.envelope import Buffer
from spoolpool.errors import (
    BadTaskFile,
    BrokenSpool,
    DependencyFailed,
    NoKey,
    NotTrusted,
    SpoolVersion,
)
from spoolpool.future import TaskFuture, finish, wait
from spoolpool.graph import Graph, Node
from spoolpool.identity import hostname
from spoolpool.journal import Journal, submitters_journal
from spoolpool.layout import Token
from spoolpool.lookout import Refresher, Service
from spoolpool.needs import Needs
from spoolpool.outcome import value_of
from spoolpool.quota import Quota
from spoolpool.recovery import Recovery
from spoolpool.retention import Held, Retention
from spoolpool.signature import outcome_label
from spoolpool.spool import Spool
from spoolpool.task import Kind, TaskHeader
from spoolpool.trust import Trust
from spoolpool.watch import Watch

log = logging.getLogger(__name__)

_ID = len(layout.new_task_id())
_FIRST_LOOK, _LAST_LOOK = 0.0005, 1.0
_FIRST_CHECK, _CHECK_EVERY = 5.0, 5.0


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
    ) -> None:
        self.spool = spool
        self.name = layout.check_session(name)
        self._accept = accept
        self._submitter = submitter or layout.new_submitter_id()
        self._came_back = bool(submitter)
        # reentrant: garbage is collected in any thread at any moment, and may end in close()
        self._lock = threading.RLock()
        self._pending: dict[str, TaskFuture] = {}
        self._buckets: dict[tuple[str, str], tuple[str, int]] = {}
        self._all_done = threading.Condition(self._lock)
        self._watch = Watch()
        self._thread: threading.Thread | None = None
        self._long_wait = False
        self._closed = False
        self._detached = False
        self._broken: BaseException | None = None
        self._retention = Retention(spool, self.name, self._lock)
        self._graph = Graph()  # of the tasks that need others, and those
        self._left_alone: set[str] = set()
        self._marked: set[str] = set()
        self.on_outcome: Callable[[TaskHeader, Token], None] | None = None
        """Called with a task and its claim when its outcome has come, in the thread that collects."""
        self._told: set[str] = set()
        self._user = trust.account(os.geteuid())
        self._quota = None if spool.config.max_waiting is None else Quota(spool, spool.config.max_waiting)
        self._wait_for_room = wait_for_room
        # a temporary spool is one executor's alone, and goes with it: nobody will ask what happened there
        self._journal = None if spool.config.temporary else Journal(spool, submitters_journal(), name)
        spool.need_key()
        spool.open_session(self.name)
        registry.announce_session(spool, self.name, self._user)

    # -- submitting

    def submit(
        self,
        payload: Buffer,
        buffers: list[Buffer],
        *,
        lane: str,
        name: str,
        priority: int = settings.PRIORITY,
        max_attempts: int | None = None,
        retries: int = 0,
        retry_delay: float = 1.0,
        time_limit: float = 0.0,
        cwd: str = "",
        init: str = "",
        needs: Needs | None = None,
    ) -> TaskFuture:
        """Put one pickled call into the spool; when this returns, nothing but ``cancel`` loses it.

        ``needs`` are what was asked about the futures in it: it waits for them, and where one has failed already, its
        future has too. Raises ``RuntimeError`` once the session is closed, :class:`BrokenSpool` once it failed, and
        :class:`TooManyWaiting` where the spool bounds what may wait, unless the session waits for room.
        """
        if self._quota is not None:
            self._quota.take(self._open_still if self._wait_for_room else None)
        task_id = needs.task if needs is not None else layout.new_task_id(priority)
        header = TaskHeader(
            task=task_id,
            session=self.name,
            lane=lane,
            bucket=self._bucket(lane, task_id),
            name=name,
            user=self._user,
            host=hostname(),
            submitted=time.time(),
            max_attempts=max_attempts or self.spool.config.max_attempts,
            retries=retries,
            retry_delay=retry_delay,
            time_limit=time_limit,
            cwd=cwd,
            init=init,
            needs=needs.of_header() if needs is not None else {},
            spool=self.spool.config.id,
        )
        future = TaskFuture(self, header, here=True)
        if needs is not None and needs.end(future):
            return future
        with self._lock:
            self._open_still()
            self._pending[task_id] = future
            if header.needs and needs is not None:
                self._retention.add(task_id, needs)
                self._graph.add(header, [each.header for each in needs.futures()])
            wake = self._start()
        try:
            future.token = self.spool.enqueue(header, envelope.pack(task.encode(header), payload, buffers))
        except BaseException:
            with self._lock:
                self._pending.pop(task_id, None)
                self._retention.withdraw(task_id)
                self._all_done.notify_all()
            raise
        self._note("submitted", future, name=name, t=header.submitted)  # when it began: a worker may be done by now
        if header.needs and needs is not None:
            needs.submitted(future)
        if wake:
            with self._lock:  # the thread that collects may be about to close the watch
                self._watch.wake()
        return future

    def _note(self, event: str, future: TaskFuture, **fields: object) -> None:
        """Write into the journal what became of a task."""
        if self._journal is not None:
            with self._lock:
                self._journal.write(event, task=future.task, session=self.name, lane=future.header.lane, **fields)

    def _open_still(self) -> None:
        with self._lock:
            if self._broken is not None:
                raise BrokenSpool(f"Nothing can be submitted: {self._broken}")
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")

    def _bucket(self, lane: str, task_id: str) -> str:
        key = (lane, task_id[:3])
        with self._lock:
            bucket, used = self._buckets.get(key) or self._last_bucket(*key)
            if used >= settings.BUCKET_SIZE:
                bucket, used = layout.bucket_name(task_id, self._submitter), 0
            self._buckets[key] = (bucket, used + 1)
        return bucket

    def _last_bucket(self, lane: str, priority: str) -> tuple[str, int]:
        """The bucket that an earlier process of the same submitter left, if something waits in it, and how much.

        So a thousand processes that put in one task each leave no thousand buckets. Two that run at once may fill one
        to twice its size.
        """
        where = self.spool.layout
        names = filter(layout.is_bucket, fsio.names(where.lane(lane)) if self._came_back else [])
        last = max((name for name in names if layout.series_of(name) == (priority, self._submitter)), default="")
        used = len(fsio.names(where.bucket(lane, last))) if last else 0
        return (last, used) if used else ("", settings.BUCKET_SIZE)

    def _start(self) -> bool:
        """Make sure that somebody collects; whether he must be woken."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._collect_all, name=f"spoolpool-{self.name}", daemon=True)
            self._thread.start()
        return self._long_wait

    # -- what a future asks

    def cancel(self, future: TaskFuture) -> bool:
        """Take a task back that nobody has claimed."""
        if not self.spool.cancel(future.header, future.token):
            return False
        self._note("cancelled", future)
        token = future.token.claimed_by(layout.CANCELLED)
        self._ended(future, token, "cancelled")
        with contextlib.suppress(OSError, NotTrusted):  # the collector tries again
            self._retention.settle(token)
        return True

    def interrupt(self, future: TaskFuture) -> None:
        """Ask whoever runs the task to end it; its future is cancelled once that was done."""
        with self._lock:
            if future.task in self._pending:
                self._marked.add(future.task)
                self.spool.ask_to_cancel(future.task)

    def dependents(self, task: str) -> list[TaskFuture]:
        """Futures of this process that wait for this task."""
        return [needs.future for needs in self._retention.holders(task) if needs.future is not None]

    def assists(self) -> bool:
        """Whether the caller is a task of the same spool whose group can run others meanwhile."""
        return assistance(self.spool.config.id) is not None

    def assist(self) -> bool:
        """In such a task: run one task of this session that waits; whether there was one."""
        run_one = assistance(self.spool.config.id)
        return run_one is not None and run_one(self._submitter)

    def hold(self, task: str, needs: Needs) -> Held:
        """Keep the outcome of a task in the spool for a call, if it is not gone."""
        with self._lock:
            future = self._pending.get(task)
            if future is not None:
                self._graph.expect(future.header)
            return self._retention.hold(task, needs, pending=future is not None)

    def drop(self, task: str, needed_by: str) -> None:
        """A call needs an outcome no longer."""
        self._retention.drop(task, needed_by)

    def nodes(self) -> list[Node]:
        """The tasks that wait, and those that need others or are needed, for :mod:`spoolpool.graph`."""
        return self._graph.nodes(future.header for future in self.pending())

    def waits(self, future: TaskFuture) -> bool:
        """Whether no worker has claimed the task yet (or it waits again, after its worker died)."""
        header = future.header
        # in this order: it goes from the one to the other
        names = fsio.names(self.spool.layout.waiting) if header.needs else []
        names += fsio.names(self.spool.layout.bucket(header.lane, header.bucket))
        listed = map(layout.parse_token, names)
        return any(token is not None and token.task == header.task for token in listed)

    def waiting(self) -> int:
        """How many tasks no worker has claimed yet."""
        with self._lock:
            pending = dict(self._pending)
        where = {self.spool.layout.bucket(each.header.lane, each.header.bucket) for each in pending.values()}
        if any(each.header.needs for each in pending.values()):
            where.add(self.spool.layout.waiting)
        listed = {token.task for at in where for token in map(layout.parse_token, fsio.names(at)) if token}
        return len(listed & pending.keys())

    def pending(self) -> list[TaskFuture]:
        """Futures without an outcome, in the order of their submission."""
        with self._lock:
            return list(self._pending.values())

    # -- the end

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is pending; whether that is so."""
        with self._all_done:
            return self._all_done.wait_for(lambda: not self._pending, seconds)

    def close(self) -> None:
        """Let the thread end once nothing is pending; harmless when repeated."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._watch.wake()
        if thread is None:
            self._end()

    def detach(self) -> None:
        """End without waiting: what is pending goes on, and its outcomes stay for whoever comes to the session."""
        with self._lock:
            self._pending.clear()
            self._all_done.notify_all()
            self._detached = True
        self.close()
        self.join()

    def join(self) -> None:
        """Wait for the thread's end, after :meth:`close`."""
        if self._thread is not None and not self.collects_here():
            if self.assists():  # else nobody might
                wait(self.pending())
            self._thread.join()

    def collects_here(self) -> bool:
        """Whether the caller is the thread that collects, as it is in a callback of a future."""
        return self._thread is threading.current_thread()

    def fail(self, reason: BaseException, lane: str | None = None) -> None:
        """Nothing will come any more (of a lane; of any if None): every such future gets the reason.

        Tasks that nobody has claimed are taken back, as far as that is possible: nobody awaits them.
        """
        with self._lock:
            failed = [future for future in self._pending.values() if lane in (None, future.header.lane)]
            if lane is None:
                self._broken = reason
            for future in failed:
                del self._pending[future.task]
            self._all_done.notify_all()
        for future in failed:
            with contextlib.suppress(OSError, NotTrusted):
                self.cancel(future)
            finish(future, error=reason)
        with self._lock:
            self._watch.wake()

    def after_fork(self) -> None:
        """In a forked child: the futures are the parent's, and nothing here will ever fulfil them."""
        self._lock = threading.RLock()
        self._all_done = threading.Condition(self._lock)
        pending, self._pending = list(self._pending.values()), {}
        self._watch.close()
        self._journal = None  # what it has gathered is the parent's to write
        for future in pending:
            future.after_fork()
            finish(future, error=BrokenSpool("This future is the parent process's: ask for it there."))

    def _end(self) -> None:
        with self._lock:
            self._watch.close()
            if self._journal is not None:
                self._journal.close()
        if self._detached:  # nobody may conclude from this process's end that nobody will come for the outcomes
            fsio.remove(f"{self.spool.layout.sessions}/{self.name}.json")
            return
        self.spool.close_session(self.name)
        for (lane, _), (bucket, _) in self._buckets.items():
            with contextlib.suppress(OSError, NotTrusted):
                place = self.spool.held(self.spool.layout.lane(lane), self.spool.account)
                fsio.remove_directory(f"{place}/{bucket}")

    # -- collecting

    def _collect_all(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            log.exception("The thread that collects results ended")
            self.fail(BrokenSpool(f"The thread that collects results ended: {type(error).__name__}: {error}"))
        finally:
            with contextlib.suppress(OSError):
                self._end()

    def _loop(self) -> None:
        inbox = f"{self.spool.layout.results}/{self.name}"
        self._watch.add(inbox)
        recovery = Recovery(self.spool)
        service = Service(self.spool)
        rhythm = Backoff(_FIRST_LOOK, _LAST_LOOK)
        late: dict[str, float] = {}
        check_due = time.monotonic() + _FIRST_CHECK
        round_due = time.monotonic() + self.spool.config.lease / 4
        refresher = Refresher(self.spool, self.name)
        while True:
            self._watch.clear()
            with self._lock:
                if not self._pending and (self._closed or self._broken):
                    return
                idle = not self._pending
            try:
                if self._collect_listed(late):
                    rhythm.reset()
                    service.served()
                    check_due = time.monotonic() + _FIRST_CHECK
                    refresher.reset()
                    continue
                now = time.monotonic()
                if not idle and now > check_due:
                    check_due = now + _CHECK_EVERY
                    self._still_there()
                    self._look_for_failed()
                    awaited = [future.header for future in self.pending()]
                    service.check(awaited)
                    refresher.look(awaited)
                if not idle and now > round_due:
                    round_due = now + self.spool.config.lease / 4
                    for line in recovery.round():
                        log.warning("Recovered %s", line)
                    recovery.sweep(self.name)
            except (OSError, NotTrusted) as error:
                self._put_off(error)
            seconds = 3600.0 if idle else rhythm.next()
            with self._lock:
                if self._journal is not None and self._journal.flush(age=1.0):
                    seconds = min(seconds, 1.0)
                self._long_wait = seconds > 0.02
                if idle and self._pending:
                    continue
            if self._watch.wait(seconds):
                rhythm.reset()
            self._long_wait = False

    def _put_off(self, error: Exception) -> None:
        """Results cannot be looked for: the server is away for a moment, or somebody swapped the inbox."""
        known = isinstance(error, OSError) or str(error) in self._told
        if not known:
            self._told.add(str(error))
        log.log(logging.INFO if known else logging.WARNING, "Looking for results was put off: %s", error)

    def _collect_listed(self, late: dict[str, float]) -> bool:
        """Collect what has come; whether something has."""
        self._retention.look()
        began = time.monotonic()
        place = self.spool.results(self.name, self.spool.account)
        names = [name for name in fsio.names(str(place)) if not self._retention.keeps(name[:_ID])]
        listed = time.monotonic() - began
        collected = [self._collect(token, late) for token in map(layout.parse_token, names) if token]
        if any(collected) and listed > 0.001:  # thousands stay because they are needed: list them a fifth of the time
            Backoff(4 * listed, 4 * listed).sleep()
        return any(collected)

    def _still_there(self) -> None:
        if fsio.gone(self.spool.layout.config):  # a directory may be left of it, where something was made in it
            self.fail(BrokenSpool(f"The spool {self.spool.path} is gone, and all tasks that were in it."))
        else:
            self.spool.open_session(self.name)

    def _look_for_failed(self) -> None:
        """Tell of tasks that were set aside without an outcome: a torn file may not even say whose it is."""
        if not self.spool.sees_all:
            return
        for token in map(layout.parse_token, fsio.names(self.spool.layout.failed)):
            future = token and self._pending.get(token.task)
            if token and future:
                error = BadTaskFile(
                    f"Task {token.task} was set aside as {self.spool.layout.failed}/{token.name}: it could not be "
                    "read, or its outcome not be stored, as the log of the worker tells. Submit it again."
                )
                self._gave_up(future, error)

    def _gave_up(self, future: TaskFuture, error: BaseException) -> None:
        """A task will have no outcome, so that nobody will let go what waits for it."""
        left = [(future, error)]
        while left:
            future, error = left.pop()
            dependents = self.dependents(future.task)
            finish(future, error=error)
            self._delivered(future)
            for each in dependents:
                if not each.done() and each.inbox.cancel(each):
                    reason = DependencyFailed(
                        f"Task {each.task} was not run, because task {future.task} has no outcome."
                    )
                    reason.__cause__ = error
                    left.append((each, reason))

    def _collect(self, token: Token, late: dict[str, float]) -> bool:
        """Deliver one committed outcome and remove it; False if nothing came of it (now)."""
        if token.name in self._left_alone or not token.worker:
            return False
        future = self._pending.get(token.task)
        if token.worker == layout.CANCELLED:
            return self._collect_cancelled(future, token)
        path = self.spool.layout.outcome(self.name, token)
        if future is not None:
            try:
                kind = self._deliver(future, token, path)
                self._note("collected", future, kind=kind)
            except (OSError, BadTaskFile, SpoolVersion, NotTrusted) as error:
                # its content may come to this client later than its name (NFS): look again, remove nothing
                first = late.setdefault(token.name, time.monotonic())
                decided = isinstance(error, NotTrusted) and not isinstance(error, NoKey)  # a new key may be on its way
                if decided or time.monotonic() - first > max(self.spool.config.lease, 5.0):
                    self._left_alone.add(token.name)
                    if isinstance(error, OSError):
                        error = BadTaskFile(f"The outcome {path} cannot be read: {error.strerror}. It was left there.")
                    finish(future, error=error)
                    self._delivered(future)
                return False
        self._retention.settle(token)
        return future is not None

    def _collect_cancelled(self, future: TaskFuture | None, token: Token) -> bool:
        """Take note of a token that says it was cancelled, from outside this process or by it."""
        results = self.spool.results(self.name, self.spool.account)
        marker = f"{results}/{token.name}"
        if self.spool.shared and (owner := fsio.owner(marker)) not in (None, self.spool.account):
            self._left_alone.add(token.name)
            log.warning("%s says that %s was cancelled. It was left alone.", trust.account(owner or 0), token.task)
            return False
        if future is not None:  # from outside this process
            future.withdrawn()
            self._ended(future, token, "cancelled")
        elif not self._retention.knows(token):  # of an earlier life
            header = read_task(self.spool, marker, token)
            self._retention.delivered(token, "cancelled", header, here=False)
        return self._retention.settle(token)

    def _deliver(self, future: TaskFuture, token: Token, path: str) -> Kind:
        outgoing = self.spool.outgoing(self.name, self.spool.account)
        fd = fsio.open_file(f"{outgoing}/{token.name}")
        try:
            label = outcome_label(self.name, token.name)
            content = self.spool.read(fd, self._accept.check(fd, path).st_size, path, label)
        finally:
            fsio.close(fd)
        outcome = task.decode_outcome(content.header, path)
        if outcome.task != future.task:
            raise BadTaskFile(f"{path} says that it is the outcome of {outcome.task}.")
        if self.on_outcome is not None:
            self.on_outcome(future.header, token)
        if outcome.kind == "cancelled":
            future.withdrawn()
            self.spool.withdraw_mark(future.task)  # which somebody else may have made
            self._ended(future, token, outcome.kind)
            return outcome.kind
        try:
            value = value_of(outcome, content)
        except BaseException as error:  # noqa: BLE001  it is the task's own
            # the frames of this thread tell nobody anything, and would keep the outcome's data
            finish(future, error=error.with_traceback(None))
        else:
            finish(future, value=value)
        self._ended(future, token, outcome.kind)
        return outcome.kind

    def _ended(self, future: TaskFuture, token: Token, kind: Kind) -> None:
        """A future has the outcome that this token stands for, which can be taken away."""
        self._retention.delivered(token, kind, future.header, here=future.here)
        self._delivered(future)
        self._graph.ended(future.task, kind)  # after that nobody says any more that it is expected

    def _delivered(self, future: TaskFuture) -> None:
        """Nothing is awaited of a task any more; what waits for it may go."""
        with self._lock:
            self._pending.pop(future.task, None)
            if future.task in self._marked:
                self._marked.remove(future.task)
                self.spool.withdraw_mark(future.task)
            if not self._pending:
                self._all_done.notify_all()
            holders = self._retention.holders(future.task)
        for needs in holders:
            needs.ended(self.name, future.task)
