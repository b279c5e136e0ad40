"""Packing: several short calls share one task, though each was submitted by itself and has a future of its own.

::

    submit --+--> a task of its own        the function's calls are long or unmeasured, or few of its tasks are pending
             |
             +--> the function's open pack  its calls are short, and many of its tasks are pending
                       |
                       +--> a task          when the pack is full; when a task of the function ends and few are left;
                             |              when one of its results is awaited or is an argument of another call;
                             |              before the executor ends
                             v
                  the futures of the calls  with their part of the result

A pack is open only while tasks of its function that ask for the same resources are pending, more of them than there are
groups that could run them. The end of one of them submits it if few are left, and so do new groups. So no timer is
needed, and a call waits in memory only as long as the worker groups have calls of the same function to run.

A pack whose calls take much longer than measured, or return much, ends early in a temporary spool: the calls that were
not run go into packs of their own. So an unfinished call of such a pack is no dependency of another task: its value is
awaited in this process.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolpool.calls import pickling
from spoolpool.calls.results import value_of
from spoolpool.client.executor_runtime import ExecutorRuntime
from spoolpool.client.futures import PartFuture, TaskFuture
from spoolpool.client.map import TARGET, ChunkSize
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.client.references import CallReferences
from spoolpool.client.safe_future import SafeFuture
from spoolpool.errors import BadTaskFile, BrokenSpool, TaskVanished, WorkerLost
from spoolpool.format.names import new_task_id
from spoolpool.protocol.packs import PackedCall
from spoolpool.resources import Resources
from spoolpool.system import fork
from spoolpool.system.user_code import is_interrupt
from spoolpool.wire import PackResults, run_pack

if TYPE_CHECKING:
    from spoolpool.format.envelope import Envelope
    from spoolpool.format.headers import OutcomeHeader
    from spoolpool.monitor.states import End, State

BUSY = 4
"""Least number of pending tasks of a function from which on its next calls are packed."""

_PER_GROUP = 2
"""The same, for each group that could run them: so a group that becomes idle finds a task."""
_SECONDS = 5 * TARGET
"""Seconds after which a pack that may end early runs no further call."""
_SMALL = 1 << 16  # bytes of a pickled call from which on it is not packed
_KNOWN = 256  # functions with statistics
_UNPACKED = ("cores", "retries", "time_limit", "not_before", "error_log_file")
"""Requests that concern one call: a call that sets one of them is not packed."""
_DEFAULT = Resources()
_NO_BUFFERS: list[bytes] = []  # of most calls, which share it; never changed


class Packer:
    """Packer of the calls of an executor. The methods may be called from any thread."""

    def __init__(self, runtime: ExecutorRuntime) -> None:
        self._runtime = runtime
        self._pid = os.getpid()
        self.may_end_early = runtime.spool.temporary
        """Whether packs that take long may return the results of some of their calls."""
        # reentrant: a task may be done before its callbacks are added, which then run at once; and a garbage collection
        # may run in any thread at any moment, and close the executor, which flushes
        self._lock = threading.RLock()
        self._cancel_ended = threading.Condition(self._lock)
        self._statistics: dict[object, FunctionStats] = {}
        self._packs: set[Pack] = set()  # without an outcome
        runtime.flush_with(self.flush)
        fork.call_in_child(self, Packer._after_fork)

    # -- gather, send, deliver

    def gather(self, call: PreparedCall) -> PackedFuture | None:
        """Add a call to the open pack of its function; returns None for a call that must have its own task."""
        if not _is_packable(call) or not self._runtime.may_run_again(call.resources):
            return None
        key = PackKey(call.lane, call.name, call.resources, call.directory)
        with self._lock:
            stats = self.stats_of(call.function)
            size = stats.size.next()
            if size == 1 or not self._is_busy(stats, key):
                return None
            pack = stats.open_packs.get(key)
            if pack is None:
                pack = stats.open_packs[key] = self._new_pack(stats, key)
            future = PackedFuture(self, pack, call.references.task)
            buffers = [bytes(each) for each in call.buffers] if call.buffers else _NO_BUFFERS
            pack.calls.append(_Call(future, bytes(call.payload), buffers))
            if len(pack.calls) >= size:
                self._send(pack)
        return future

    def _is_busy(self, stats: FunctionStats, key: PackKey) -> bool:
        """Return whether all groups that could run a call have something else to do, and soon a task more."""
        return stats.pending[key] >= max(BUSY, _PER_GROUP * self._runtime.count_groups(key.resources.shape))

    def _new_pack(self, stats: FunctionStats, key: PackKey, calls: list[_Call] | None = None) -> Pack:
        pack = Pack(stats, key, calls or [])
        for call in pack.calls:
            call.future.pack = pack
        self._packs.add(pack)
        return pack

    def flush(self) -> None:
        """Submit all open packs."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            for stats in [*self._statistics.values()]:
                for pack in [*stats.open_packs.values()]:
                    self._send(pack)

    def count_open(self) -> int:
        """Return the number of gathered calls that are not in the spool yet."""
        with self._lock:
            return sum(len(pack.calls) for each in self._statistics.values() for pack in each.open_packs.values())

    def _send(self, pack: Pack) -> Future[Any]:
        """Submit a pack, under the lock; an error becomes the error of each of its futures."""
        stats, key, resources = pack.stats, pack.key, pack.key.resources
        if stats.open_packs.get(key) is pack:
            del stats.open_packs[key]
        if not pack.calls:  # all were cancelled
            self._packs.discard(pack)
            return Future()
        for position, call in enumerate(pack.calls):
            call.future.keys = (position,)
        try:
            self._runtime.prepare(resources.shape)
            # the id of its creation: later calls of other functions do not overtake it
            references = CallReferences(self._runtime.spool, pack.task_id)
            name = key.name if len(pack.calls) == 1 else f"{key.name} x{len(pack.calls)}"
            prepared = PreparedCall(
                run_pack,
                name,
                key.lane,
                b"",
                [],
                resources,
                references,
                packed=len(pack.calls),
                directory=key.directory,
                again=pack.again,
            )
            task = pack.task = self._runtime.submit(self._with_calls(prepared, pack))
        except BaseException as error:  # of the spool or of a closed session: only the futures can report it
            pack.task = Future()
            pack.task.set_exception(error)
            self._finish(pack, pack.task)
            if is_interrupt(error):
                raise
            return pack.task
        self._count(stats, key, task)
        task.add_done_callback(functools.partial(self._deliver, pack))
        return task

    def _with_calls(self, prepared: PreparedCall, pack: Pack) -> PreparedCall:
        """Return the call of a pack with the calls in it: of one that may end early they are arguments of a function.

        Otherwise each has a record in the task file, and its outcome is delivered while the others run.
        """
        if self.may_end_early:
            calls = [(call.payload, call.buffers, call.future.task) for call in pack.calls]
            payload, buffers = pickling.dumps((run_pack, (calls, _SECONDS), {}))
            return prepared._replace(payload=payload, buffers=buffers)
        pack.futures = [call.future for call in pack.calls]
        records = [PackedCall(call.payload, call.buffers, call.future.task) for call in pack.calls]
        return prepared._replace(calls=records, pack=CallDelivery(self, pack))

    def _deliver(self, pack: Pack, task: Future[Any]) -> None:
        """Give each call its part of the outcome, and submit those again that have none.

        A pack that was lost as a whole is taken apart. That happens where a call ends the worker although it runs in a
        process of its own (:mod:`spoolpool.calls.isolation`), as a batch system does that kills all processes of a
        job. The same happens if a running call was cancelled: the others run again.
        """
        if task.cancelled():
            if pack.is_cancelling:  # for one call; the others go into another pack
                return
            again = pack.undelivered() if pack.unwanted else []
        elif (error := task.exception()) is not None:
            again = pack.undelivered() if len(pack.calls) > 1 and isinstance(error, WorkerLost) else []
        else:
            results = task.result()
            done = len(results) if self.may_end_early and isinstance(results, PackResults) else 0
            again = pack.calls[done:] if done else []
        size = len(pack.calls) - len(again)
        with self._lock:
            fit = 1  # of the calls that are submitted again, in a task
            if size and isinstance(task, TaskFuture) and task.seconds is not None:  # else it was not run
                pack.stats.size.add(size, task.seconds)
                fit = max(1, min(pack.stats.size.next(), int(TARGET * size / max(task.seconds, 1e-9))))
            pack.calls = [each for each in pack.calls if each not in again] if pack.futures else pack.calls[:size]
            unwanted = [each.future for each in again if each.future in pack.unwanted]
            again = [each for each in again if each.future not in pack.unwanted]
            for start in range(0, len(again), fit):
                part = self._new_pack(pack.stats, pack.key, again[start : start + fit])
                part.again = True
                self._send(part)
        for future in unwanted:
            future.mark_cancelled()
        self._finish(pack, task)

    def _finish(self, pack: Pack, task: Future[Any]) -> None:
        """Give each call of a pack its part of the outcome of the task."""
        ends = pack.deliver(task)
        with self._lock:
            self._packs.discard(pack)
            if self.may_end_early:  # else another call may refer to the task; the outcome is not needed any more
                pack.end(task)
        for end in ends:
            self.count_end(end)

    def count_end(self, end: State | End) -> None:
        """Count the end of one call."""
        pending = self._runtime.session.pending
        with pending.lock:
            pending.ends[end] += 1

    def count_unpacked(self, call: PreparedCall, task: Future[Any]) -> None:
        """Count a call that was submitted as a task of its own."""
        resources = call.resources
        # a task that waits for a time, for its dependencies or for a retry leaves the groups idle
        ready = call.references.is_empty and not resources.not_before and not resources.retries
        key = PackKey(call.lane, call.name, resources, call.directory) if ready else None
        with self._lock:
            stats = self.stats_of(call.function)
            stats.size.measure(task, 1)
            if key is not None:
                self._count(stats, key, task)

    def _count(self, stats: FunctionStats, key: PackKey, task: Future[Any]) -> None:
        stats.pending[key] += 1
        task.add_done_callback(lambda _: self._count_ended(stats, key))

    def _count_ended(self, stats: FunctionStats, key: PackKey) -> None:
        with self._lock:
            stats.pending[key] -= 1
            pack = stats.open_packs.get(key)
            if pack is not None and not self._is_busy(stats, key):
                self._send(pack)
            if not stats.pending[key]:
                del stats.pending[key]

    def stats_of(self, function: Any) -> FunctionStats:
        """Return the statistics of a function, under the lock; functions with the same code share them."""
        try:
            while isinstance(function, functools.partial):
                function = function.func
            key = getattr(function, "__code__", function)
            known = key in self._statistics
        except BaseException as error:  # its __getattr__, __hash__ or __eq__ may raise anything
            if is_interrupt(error):
                raise
            key = type(function)
            known = key in self._statistics
        if not known:
            if len(self._statistics) >= _KNOWN:
                self._statistics = {key: stats for key, stats in self._statistics.items() if stats.pending}
            self._statistics[key] = FunctionStats()
        return self._statistics[key]

    # -- requests of the futures

    def task_of(self, future: PackedFuture, *, keep_pack: bool = False) -> Future[Any]:
        """Return the future of the task of a call; submits its pack if it is open.

        With ``keep_pack`` no call of the pack can be cancelled any more, since another call refers to the task.
        """
        if os.getpid() != self._pid:
            raise BrokenSpool("The future belongs to the parent process; it cannot be used after fork.")
        with self._lock:
            self._cancel_ended.wait_for(lambda: not future.pack.is_cancelling)
            future.pack.is_argument |= keep_pack
            return future.pack.task or self._send(future.pack)

    def cancel(self, future: PackedFuture) -> bool:
        """Cancel one call. If its pack was submitted, that task is cancelled, and the other calls are packed anew."""
        with self._lock:
            self._cancel_ended.wait_for(lambda: not future.pack.is_cancelling)
            pack, task = future.pack, future.pack.task
            if future.done() or pack.is_argument:
                return future.cancelled()
            pack.is_cancelling = task is not None
            if task is None:
                pack.calls = [call for call in pack.calls if call.future is not future]
        if task is None:
            return future.mark_cancelled()
        # outside of the lock: a thread that cancels the task itself holds the task's lock, and acquires this one
        cancelled = not isinstance(task, TaskFuture) or task.cancel_alone()
        with self._lock:
            pack.is_cancelling = False
            self._cancel_ended.notify_all()
            if not cancelled:
                return False
            # the old pack is left empty: a later callback of its task must not cancel the other calls
            others, pack.calls = [call for call in pack.calls if call.future is not future], []
            self._packs.discard(pack)
            if others:
                self._gather_again(pack, others)
        return future.mark_cancelled()

    def _gather_again(self, old: Pack, calls: list[_Call]) -> None:
        """Move calls of a cancelled task into another pack; it is submitted at once if it cannot be the open one."""
        stats, key = old.stats, old.key
        pack = stats.open_packs.get(key)
        if pack is None:
            pack = self._new_pack(stats, key, calls)
        else:
            for call in calls:
                call.future.pack = pack
            pack.calls += calls
        if self._is_busy(stats, key):
            stats.open_packs[key] = pack
        else:
            self._send(pack)

    def interrupt(self, future: Future[Any]) -> bool:
        """Request that the worker interrupts the task of a call of this executor; the other calls run again then.

        Returns False for a call that is done, or that shares no task.
        """
        if not isinstance(future, PackedFuture) or future.packer is not self:
            return False
        with self._lock:
            self._cancel_ended.wait_for(lambda: not future.pack.is_cancelling)
            task = future.pack.task
            if future.done() or future.pack.is_argument or not isinstance(task, TaskFuture) or task.done():
                return False
            future.pack.unwanted.add(future)
        self._runtime.session.pending.request_cancel(task.task)
        return True

    def _after_fork(self) -> None:
        """Fail the unfinished calls in a forked child: only the parent has their outcomes."""
        self._lock = threading.RLock()
        self._cancel_ended = threading.Condition(self._lock)
        packs, self._packs = self._packs, set()
        for pack in packs:
            for call in pack.calls:
                call.future.after_fork()


class FunctionStats:
    """State of one function: measured durations, number of pending tasks, and the open packs."""

    def __init__(self) -> None:
        self.size = ChunkSize(None)
        self.pending: Counter[PackKey] = Counter()
        """Tasks that groups have, or could have at once."""
        self.open_packs: dict[PackKey, Pack] = {}


class PackKey(NamedTuple):
    """Common properties of the calls of a pack."""

    lane: str
    name: str
    resources: Resources
    directory: str
    """Working directory of the submitter."""

    def __hash__(self) -> int:
        return hash((self.lane, self.name, self.resources.priority))  # the resources have a dict of variables


class _Call(NamedTuple):
    future: PackedFuture
    payload: bytes
    buffers: list[bytes]


class Pack:
    """Calls that share a task, or will. The packer changes it under its lock."""

    def __init__(self, stats: FunctionStats, key: PackKey, calls: list[_Call]) -> None:
        self.stats = stats
        self.key = key
        self.calls = calls
        self.task_id = new_task_id(key.resources.priority)
        self.task: Future[Any] | None = None
        """Future of the task, once it was submitted."""
        self.is_argument = False
        """Whether another call refers to the task, so that it must not be cancelled for the sake of one call."""
        self.is_cancelling = False
        self.again = False
        """Whether its calls were in a pack before that gave them no outcome."""
        self.unwanted: set[PackedFuture] = set()
        """Calls whose interruption was requested."""
        self.seconds: float | None = None
        """Duration of the task per call, after its end."""
        self.futures: list[PackedFuture] = []
        """Futures of the calls by their numbers in the task, if each has a record of its own there."""

    def undelivered(self) -> list[_Call]:
        """Return the calls without an outcome."""
        return [call for call in self.calls if not call.future.done()]

    def deliver(self, task: Future[Any]) -> list[State | End]:
        """Give each call its part of the outcome of the task; return their ends, apart from cancelled ones."""
        results: Any = None
        error: BaseException | None = None
        try:
            results = task.result()
            if isinstance(results, CallDelivery):  # each was delivered
                return []
            if not isinstance(results, PackResults) or len(results) != len(self.calls):
                found = type(results).__name__
                error = BadTaskFile(f"The result of a pack of {len(self.calls)} calls is an object of type {found}.")
        except BaseException as raised:  # noqa: BLE001  of the whole task, or its cancellation
            error = raised
        ends: list[State | End] = []
        for position, call in enumerate(self.calls):
            if call.future.done():
                continue
            if isinstance(error, CancelledError):
                call.future.mark_cancelled()
            elif call.future.set_running_or_notify_cancel():
                try:
                    value = results[position] if error is None else None
                except BaseException as raised:  # noqa: BLE001  of the call
                    ends.append("lost" if isinstance(raised, WorkerLost) else "raised")
                    call.future.set_exception(BaseException.with_traceback(raised, None))
                else:
                    ends.append("done" if error is None else _end_of(error))
                    call.future.set_exception(error) if error is not None else call.future.set_result(value)
        return ends

    def end(self, task: Future[Any]) -> None:
        """Forget the calls and their results, which a future of one of them would keep in memory."""
        seconds = task.seconds if isinstance(task, TaskFuture) else None
        self.seconds = seconds and seconds / max(1, len(self.calls))
        self.calls = []
        self.task = Future()
        self.task.set_result(None)


class CallDelivery:
    """Delivery of the outcomes of the calls of a pack to their futures."""

    def __init__(self, packer: Packer, pack: Pack) -> None:
        self._packer = packer
        self._futures = pack.futures

    def __getitem__(self, number: int) -> Any:
        """Return the value of a call, or raise its exception, for another call that has it as an argument."""
        return self._futures[number].result(0)

    def take(self, number: int, header: OutcomeHeader, content: Envelope) -> None:
        """Give a call its outcome; harmless when repeated."""
        future = self._futures[number]
        if future.done() or not future.set_running_or_notify_cancel():
            return
        try:
            value = value_of(header, content)
        except BaseException as error:  # noqa: BLE001  of the call
            self._packer.count_end("lost" if isinstance(error, WorkerLost) else "raised")
            # without the frames of this thread, which would keep the data of the outcome alive
            future.set_exception(BaseException.with_traceback(error, None))
        else:
            self._packer.count_end("done")
            future.set_result(value)


def _end_of(error: BaseException) -> State | End:
    """Return the end of a task that has no results."""
    kinds: dict[type[BaseException], State | End] = {WorkerLost: "lost", TaskVanished: "vanished"}
    return next((end for kind, end in kinds.items() if isinstance(error, kind)), "failed")


class PackedFuture(PartFuture):
    """Future of a call that shares a task, or will."""

    __slots__ = ("_notified", "pack", "packer", "task")

    def __init__(self, packer: Packer, pack: Pack, task: str) -> None:
        SafeFuture.__init__(self)
        self.packer = packer
        self.pack = pack
        self.task = task
        """Id of the call, which ``current_task()`` has too; the task that it shares has an id of its own."""
        self.keys = ()
        self._notified = False

    def about(self) -> dict[str, str]:
        """Return id and function of the call."""
        return {"task": self.task, "function": self.pack.key.name}

    @property
    def seconds(self) -> float | None:
        """Duration of the attempt that produced the outcome, per call of the task; None before the outcome."""
        task = self.pack.task
        if isinstance(task, TaskFuture) and task.seconds is not None:
            return task.seconds / max(1, len(self.pack.calls))
        return self.pack.seconds

    @property
    def whole(self) -> Future[Any]:  # type: ignore[override]
        """Future to which another call can refer, with :attr:`keys`; submits an open pack."""
        may_end_early = self.packer.may_end_early
        task = self.packer.task_of(self, keep_pack=not may_end_early)
        return self if may_end_early else task

    def __getitem__(self, key: object) -> PartFuture:
        """Return the future of a part of the result."""
        return PartFuture(self, (key,)) if self.packer.may_end_early else super().__getitem__(key)

    @property
    def sources(self) -> tuple[Future[Any], ...]:  # type: ignore[override]
        """Future of the task, for a thread that waits for it; submits an open pack."""
        return (self.packer.task_of(self),)

    def running(self) -> bool:
        """Return whether a worker has claimed the task; lists the spool."""
        task = self.pack.task
        return not self.done() and task is not None and task.running()

    def cancel(self) -> bool:
        """Cancel this call alone; returns False if it is done, claimed, or shares its task with an argument."""
        return self.cancelled() or (not self.done() and self.packer.cancel(self))

    def mark_cancelled(self) -> bool:
        """Set the state to cancelled, and notify the waiters once, also if several threads call this."""
        if not Future.cancel(self):  # not PartFuture.cancel, which cancels the whole task
            return False
        with self._condition:
            notified, self._notified = self._notified, True
        if not notified:
            self.set_running_or_notify_cancel()
            self.packer.count_end("cancelled")
        return True

    def after_fork(self) -> None:
        """Fail in a forked child; a thread of the parent may have held the lock during the fork."""
        super().after_fork()
        if not self.done():
            self.set_exception(BrokenSpool("The future belongs to the parent process; it cannot be used after fork."))


def _is_packable(call: PreparedCall) -> bool:
    if call.init or not call.references.is_empty:
        return False
    if any(getattr(call.resources, name) != getattr(_DEFAULT, name) for name in _UNPACKED):
        return False
    return len(call.payload) + sum(map(len, call.buffers)) <= _SMALL
