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

A pack is open only while tasks of its function are pending, and the end of one of them submits it if few are left. So
no timer is needed, and a call waits in memory only as long as the worker groups have calls of the same function to run.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

from spoolpool.calls import pickling
from spoolpool.client.executor_runtime import ExecutorRuntime
from spoolpool.client.futures import PartFuture, TaskFuture
from spoolpool.client.map import ChunkSize
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.client.references import CallReferences
from spoolpool.client.safe_future import SafeFuture
from spoolpool.errors import BadTaskFile, BrokenSpool, WorkerLost
from spoolpool.format.names import new_task_id
from spoolpool.resources import Resources
from spoolpool.system.user_code import is_interrupt
from spoolpool.wire import PackResults, run_pack

BUSY = 4
"""Pending tasks of a function from which on its next calls are packed."""

_SMALL = 1 << 16  # bytes of a pickled call from which on it is not packed
_KNOWN = 256  # functions with statistics
_UNPACKED = ("cores", "retries", "time_limit", "not_before", "error_log_file")
"""Requests that concern one call: a call that sets one of them is not packed."""
_DEFAULT = Resources()


class Packer:
    """Packer of the calls of an executor. The methods may be called from any thread."""

    def __init__(self, runtime: ExecutorRuntime) -> None:
        self._runtime = runtime
        self._pid = os.getpid()
        # reentrant: a task may be done before its callbacks are added, which then run at once; and a garbage collection
        # may run in any thread at any moment, and close the executor, which flushes
        self._lock = threading.RLock()
        self._cancel_ended = threading.Condition(self._lock)
        self._statistics: dict[object, FunctionStats] = {}
        runtime.flush_with(self.flush)

    # -- gather, send, deliver

    def gather(self, call: PreparedCall) -> PackedFuture | None:
        """Add a call to the open pack of its function; returns None for a call that must have its own task."""
        if not _is_packable(call) or not self._runtime.may_run_again(call.resources):
            return None
        key = PackKey(call.lane, call.name, call.resources)
        with self._lock:
            stats = self.stats_of(call.function)
            size = stats.size.next()
            if size == 1 or stats.pending_tasks < BUSY:
                return None
            pack = stats.open_pack
            if pack is None or pack.key != key:
                if pack is not None:
                    self._send(pack)
                pack = stats.open_pack = Pack(stats, key)
            future = PackedFuture(self, pack)
            pack.calls.append(_Call(future, bytes(call.payload), [bytes(each) for each in call.buffers]))
            if len(pack.calls) >= size:
                self._send(pack)
        return future

    def flush(self) -> None:
        """Submit all open packs."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            for stats in self._statistics.values():
                if stats.open_pack is not None:
                    self._send(stats.open_pack)

    def _send(self, pack: Pack) -> Future[Any]:
        """Submit a pack, under the lock; an error becomes the error of each of its futures."""
        if pack.stats.open_pack is pack:
            pack.stats.open_pack = None
        if not pack.calls:  # all were cancelled
            return Future()
        for position, call in enumerate(pack.calls):
            call.future.keys = (position,)
        key, resources = pack.key, pack.key.resources
        try:
            self._runtime.prepare(resources.shape)
            pickled = pickling.dumps((run_pack, ([(call.payload, call.buffers) for call in pack.calls],), {}))
            references = CallReferences(self._runtime.spool, new_task_id(resources.priority))
            name = f"{key.name} x{len(pack.calls)}"
            task = pack.task = self._runtime.submit(
                PreparedCall(run_pack, name, key.lane, *pickled, resources, references, again=pack.again)
            )
        except BaseException as error:  # of the spool or of a closed session: only the futures can report it
            pack.task = Future()
            pack.task.set_exception(error)
            pack.deliver(pack.task)
            if is_interrupt(error):
                raise
            return pack.task
        self._count(pack.stats, task, len(pack.calls))
        task.add_done_callback(functools.partial(self._deliver, pack))
        return task

    def _deliver(self, pack: Pack, task: Future[Any]) -> None:
        """Give each call its part of the outcome; a pack that was lost as a whole is taken apart.

        That happens where a call ends the worker although it runs in a process of its own
        (:mod:`spoolpool.calls.isolation`), as a batch system does that kills all processes of a job.
        """
        if len(pack.calls) == 1 or task.cancelled() or not isinstance(task.exception(), WorkerLost):
            pack.deliver(task)
            return
        with self._lock:
            calls, pack.calls = pack.calls, []
            for call in calls:
                alone = call.future.pack = Pack(pack.stats, pack.key)
                alone.calls.append(call)
                alone.again = True
                self._send(alone)

    def count_unpacked(self, function: Callable[..., Any], task: Future[Any]) -> None:
        """Count a call that was submitted as a task of its own."""
        with self._lock:
            self._count(self.stats_of(function), task, 1)

    def _count(self, stats: FunctionStats, task: Future[Any], calls: int) -> None:
        stats.pending_tasks += 1
        stats.size.measure(task, calls)
        task.add_done_callback(lambda _: self._count_ended(stats))

    def _count_ended(self, stats: FunctionStats) -> None:
        with self._lock:
            stats.pending_tasks -= 1
            if stats.open_pack is not None and stats.pending_tasks < BUSY:
                self._send(stats.open_pack)

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
        if not known and len(self._statistics) >= _KNOWN:
            self._statistics = {key: stats for key, stats in self._statistics.items() if stats.pending_tasks}
        return self._statistics.setdefault(key, FunctionStats())

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
            if others:
                self._gather_again(pack, others)
        return future.mark_cancelled()

    def _gather_again(self, old: Pack, calls: list[_Call]) -> None:
        """Move calls of a cancelled task into another pack; it is submitted at once if it cannot be the open one."""
        stats, open_pack = old.stats, old.stats.open_pack
        pack = open_pack if open_pack is not None and open_pack.key == old.key else Pack(stats, old.key)
        for call in calls:
            call.future.pack = pack
        pack.calls += calls
        if open_pack in (None, pack) and stats.pending_tasks >= BUSY:
            stats.open_pack = pack
        else:
            self._send(pack)


class FunctionStats:
    """State of one function: measured durations, number of pending tasks, and the open pack."""

    def __init__(self) -> None:
        self.size = ChunkSize(None)
        self.pending_tasks = 0
        self.open_pack: Pack | None = None


class PackKey(NamedTuple):
    """Common properties of the calls of a pack."""

    lane: str
    name: str
    resources: Resources


class _Call(NamedTuple):
    future: PackedFuture
    payload: bytes
    buffers: list[bytes]


class Pack:
    """Calls that share a task, or will. The packer changes it under its lock."""

    def __init__(self, stats: FunctionStats, key: PackKey) -> None:
        self.stats = stats
        self.key = key
        self.calls: list[_Call] = []
        self.task: Future[Any] | None = None
        """Future of the task, once it was submitted."""
        self.is_argument = False
        """Whether another call refers to the task, so that it must not be cancelled for the sake of one call."""
        self.is_cancelling = False
        self.again = False
        """Whether its call was in a pack that was lost."""

    def deliver(self, task: Future[Any]) -> None:
        """Give each call its part of the outcome of the task."""
        if self.is_cancelling and task.cancelled():  # for one call; the others go into another pack
            return
        results: Any = None
        error: BaseException | None = None
        try:
            results = task.result()
            if not isinstance(results, PackResults) or len(results) != len(self.calls):
                found = type(results).__name__
                error = BadTaskFile(f"The result of a pack of {len(self.calls)} calls is an object of type {found}.")
        except BaseException as raised:  # noqa: BLE001  of the whole task, or its cancellation
            error = raised
        for position, call in enumerate(self.calls):
            if isinstance(error, CancelledError):
                call.future.mark_cancelled()
            elif call.future.set_running_or_notify_cancel():
                try:
                    value = results[position] if error is None else None
                except BaseException as raised:  # noqa: BLE001  of the call
                    call.future.set_exception(BaseException.with_traceback(raised, None))
                else:
                    call.future.set_exception(error) if error is not None else call.future.set_result(value)


class PackedFuture(PartFuture):
    """Future of a call that shares a task, or will."""

    __slots__ = ("_notified", "_packer", "pack")

    def __init__(self, packer: Packer, pack: Pack) -> None:
        SafeFuture.__init__(self)
        self._packer = packer
        self.pack = pack
        self.keys = ()
        self._notified = False

    @property
    def whole(self) -> Future[Any]:  # type: ignore[override]
        """Future of the task, for another call that refers to it; submits an open pack."""
        return self._packer.task_of(self, keep_pack=True)

    @property
    def sources(self) -> tuple[Future[Any], ...]:  # type: ignore[override]
        """Future of the task, for a thread that waits for it; submits an open pack."""
        return (self._packer.task_of(self),)

    def running(self) -> bool:
        """Return whether a worker has claimed the task; lists the spool."""
        task = self.pack.task
        return not self.done() and task is not None and task.running()

    def cancel(self) -> bool:
        """Cancel this call alone; returns False if it is done, claimed, or shares its task with an argument."""
        return self.cancelled() or (not self.done() and self._packer.cancel(self))

    def mark_cancelled(self) -> bool:
        """Set the state to cancelled, and notify the waiters once, also if several threads call this."""
        if not Future.cancel(self):  # not PartFuture.cancel, which cancels the whole task
            return False
        with self._condition:
            notified, self._notified = self._notified, True
        if not notified:
            self.set_running_or_notify_cancel()
        return True


def _is_packable(call: PreparedCall) -> bool:
    if call.init or not call.references.is_empty:
        return False
    if any(getattr(call.resources, name) != getattr(_DEFAULT, name) for name in _UNPACKED):
        return False
    return len(call.payload) + sum(map(len, call.buffers)) <= _SMALL
