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
groups that could run them. The end of one of them submits it if few are left, and so do new groups. So a call waits in
memory only as long as the worker groups have calls of the same function to run.

Short calls do not keep all groups busy (:mod:`spoolpool.client.demand`). Then fewer pending tasks are enough, and the
collector submits the pack after a moment, since a group may be idle.

A pack whose calls take much longer than measured, or return much, ends early in a temporary spool: the calls that were
not run go into packs of their own. So an unfinished call of such a pack is no dependency of another task: its value is
awaited in this process.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from spoolpool.calls import pickling
from spoolpool.client.executor_runtime import ExecutorRuntime
from spoolpool.client.function_stats import FunctionStats, KnownFunctions
from spoolpool.client.futures import TaskFuture
from spoolpool.client.group_commit import GroupCommit
from spoolpool.client.map import TARGET
from spoolpool.client.packs import CallDelivery, Pack, PackCall, PackedFuture, PackKey, gathered_call, record_of
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.client.preview import LABEL_LIMIT, LIMIT, summary
from spoolpool.client.references import CallReferences
from spoolpool.errors import BrokenSpool, WorkerLost
from spoolpool.protocol import cancel
from spoolpool.resources import Resources
from spoolpool.system import fork
from spoolpool.system.user_code import is_interrupt
from spoolpool.wire import PackResults, run_pack

if TYPE_CHECKING:
    from spoolpool.monitor.states import End, State

BUSY = 4
"""Least number of pending tasks of a function from which on its next calls are packed."""

_PER_GROUP = 2
"""The same, for each group that could run them: so a group that becomes idle finds a task."""
_MOMENT = 0.01
"""Seconds for which a call may wait for others although a group may be idle."""
_SECONDS = 5 * TARGET
"""Seconds after which a pack that may end early runs no further call."""
_SMALL = 1 << 16  # bytes of a pickled call from which on it is not packed
_UNPACKED = ("cores", "retries", "not_before", "error_log_file")
"""Requests that concern one call: a call that sets one of them is not packed."""
_DEFAULT = Resources()


class Packer:
    """Packer of the calls of an executor. The methods may be called from any thread."""

    def __init__(self, runtime: ExecutorRuntime) -> None:
        self._runtime = runtime
        self._pid = os.getpid()
        self.may_end_early = runtime.spool.temporary
        """Whether packs that take long may return the results of some of their calls."""
        # reentrant: a task may be done before its callbacks are added, which then run at once; and a garbage collection
        # may run in any thread at any moment, and close the executor, which flushes
        self.lock = threading.RLock()
        """Lock of all packs and statistics."""
        self._cancel_ended = threading.Condition(self.lock)
        self._commits = None if self.may_end_early else GroupCommit(self, runtime)
        self.functions = KnownFunctions()
        self.packs: set[Pack] = set()
        """Packs without an outcome."""
        runtime.flush_with(self.flush)
        runtime.session.collector.flush_due = self.flush_due
        fork.call_in_child(self, Packer._after_fork)

    # -- gather, send, deliver

    def gather(self, call: PreparedCall) -> PackedFuture | None:
        """Add a call to the open pack of its function; returns None for a call that must have its own task."""
        if not _is_packable(call) or not self._runtime.may_run_again(call.resources):
            return None
        if call.resources.time_limit and self.may_end_early:  # it would be that of all calls
            return None
        key = PackKey(call.lane, call.name, call.resources, call.directory)
        with self.lock:
            stats = self.functions.of(call.function)
            stats.demand.note_submission()
            size = stats.size.next()
            if size == 1 or not self._may_gather(stats, key):
                return None
            if self._commits is None:
                pack = stats.open_packs.get(key)
                if pack is None:
                    pack = stats.open_packs[key] = self.new_pack(stats, key)
                gathered = gathered_call(self, pack, call)
                pack.calls.append(gathered)
                if len(pack.calls) >= size:
                    self.send(pack)
                return gathered.future
        return self._commits.gather(stats, key, call, size)

    def _may_gather(self, stats: FunctionStats, key: PackKey) -> bool:
        """Return whether a call may wait for others: so many tasks are pending that all groups are busy.

        For a moment also if there is one more than groups that the calls keep busy.
        """
        enough = stats.demand.groups(stats.size.durations) + 1
        return stats.pending[key] >= enough or self._is_busy(stats, key)

    def _is_busy(self, stats: FunctionStats, key: PackKey) -> bool:
        """Return whether all groups that could run a call have something else to do, and soon a task more."""
        return stats.pending[key] >= max(BUSY, _PER_GROUP * self._runtime.count_groups(key.resources.shape))

    def new_pack(self, stats: FunctionStats, key: PackKey, calls: list[PackCall] | None = None) -> Pack:
        """Return a new pack with these calls, under the lock."""
        pack = Pack(stats, key, calls or [])
        for call in pack.calls:
            call.future.pack = pack
        self.packs.add(pack)
        return pack

    def flush_due(self) -> float:
        """Submit the calls that have waited for a moment while a group may be idle; return the seconds to the next."""
        left = math.inf
        for pack in self.functions.open_packs():
            with self.lock:
                stats, key = pack.stats, pack.key
                if stats.open_packs.get(key) is not pack or self._is_busy(stats, key):
                    continue
                seconds = pack.opened + _MOMENT - time.monotonic()
                if seconds > 0:
                    left = min(left, seconds)
                elif stats.demand.ended < pack.opened:  # the tasks take longer than measured
                    self._divide(pack)
                else:
                    self.send(pack)
        return left

    def _divide(self, pack: Pack) -> None:
        """Submit the calls of an open pack in as many tasks as there may be idle groups, under the lock."""
        stats, key, calls = pack.stats, pack.key, pack.calls
        if pack.file is not None:
            self.send(pack)
            return
        idle = self._runtime.count_groups(key.resources.shape) - stats.pending[key]
        size = max(1, math.ceil(len(calls) / max(1, idle)))
        others = [self.new_pack(stats, key, calls[start : start + size]) for start in range(size, len(calls), size)]
        pack.calls = calls[:size]
        for each in (pack, *others):
            self.send(each)

    def flush(self) -> None:
        """Submit all open packs."""
        if os.getpid() != self._pid:
            return
        with self.lock:
            for pack in self.functions.open_packs():
                self.send(pack)

    def count_open(self) -> int:
        """Return the number of gathered calls that are not in the spool yet."""
        with self.lock:
            return sum(len(pack.calls) for pack in self.functions.open_packs() if pack.file is None)

    def send(self, pack: Pack) -> Future[Any]:
        """Submit a pack, under the lock; an error becomes the error of each of its futures."""
        stats, key, resources = pack.stats, pack.key, pack.key.resources
        if stats.open_packs.get(key) is pack:
            del stats.open_packs[key]
        if pack.file is not None:
            assert pack.task is not None
            assert self._commits is not None
            if not pack.is_sent:
                pack.is_sent = True
                self._count(stats, key, pack.task)
                self._commits.seal(pack)
            return pack.task
        pack.is_sent = True
        if not pack.calls:  # all were cancelled
            self.packs.discard(pack)
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
                label=summary([each.future.label for each in pack.calls], LABEL_LIMIT),
                arguments=summary([each.future.arguments for each in pack.calls], LIMIT),
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
        task.add_done_callback(functools.partial(self.deliver, pack))
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
        return prepared._replace(calls=[record_of(each) for each in pack.calls], pack=CallDelivery(self, pack))

    def deliver(self, pack: Pack, task: Future[Any]) -> None:
        """Give each call its part of the outcome, and submit those again that have none.

        A pack that was lost as a whole is taken apart. That happens where a call ends the worker although it runs in a
        process of its own (:mod:`spoolpool.calls.isolation`), as a batch system does that kills all processes of a
        job. The same happens if a running call was cancelled in a temporary spool: the others run again.
        """
        if pack.file is not None and not pack.is_sent:
            with self.lock:
                self.send(pack)
        if task.cancelled():
            if pack.is_cancelling:  # for one call; the others go into another pack
                return
            again = pack.undelivered() if pack.unwanted and not pack.futures else []
        elif (error := task.exception()) is not None:
            again = pack.undelivered() if len(pack.calls) > 1 and isinstance(error, WorkerLost) else []
        else:
            results = task.result()
            done = len(results) if self.may_end_early and isinstance(results, PackResults) else 0
            again = pack.calls[done:] if done else []
            if pack.file is not None:  # another process has sealed it without them: a virtual machine was paused, say
                again = pack.undelivered()
        left = {each.future for each in again}
        size = len(pack.calls) - len(left)
        with self.lock:
            fit = 1  # of the calls that are submitted again, in a task
            if size and isinstance(task, TaskFuture) and task.seconds is not None:  # else it was not run
                pack.stats.size.add(size, task.seconds)
                fit = max(1, min(pack.stats.size.next(), int(TARGET * size / max(task.seconds, 1e-9))))
            pack.calls = [each for each in pack.calls if each.future not in left]
            unwanted = pack.unwanted & left
            again = [each for each in again if each.future not in unwanted]
            for start in range(0, len(again), fit):
                part = self.new_pack(pack.stats, pack.key, again[start : start + fit])
                part.again = True
                self.send(part)
        for future in unwanted:
            future.mark_cancelled()
        self._finish(pack, task)

    def _finish(self, pack: Pack, task: Future[Any]) -> None:
        """Give each call of a pack its part of the outcome of the task."""
        for future in pack.unwanted if pack.futures else ():
            self.withdraw_request(future)
        if pack.file is not None:  # first: a call that is committed later finds that its pack has ended
            with self.lock:
                self.packs.discard(pack)
        ends = pack.deliver(task)
        with self.lock:
            self.packs.discard(pack)
            if self.may_end_early:  # else another call may refer to the task; the outcome is not needed any more
                pack.end(task)
        for end in ends:
            self.count_end(end)

    def count_end(self, end: State | End) -> None:
        """Count the end of one call."""
        pending = self._runtime.session.pending
        with pending.lock:
            pending.ends[end] += 1

    def withdraw_request(self, future: PackedFuture) -> None:
        """Remove the request to cancel a call, which another process may have made."""
        task = future.pack.task
        if isinstance(task, TaskFuture):
            cancel.withdraw_request(self._runtime.spool, task.task, future.number)

    def count_unpacked(self, call: PreparedCall, task: Future[Any]) -> None:
        """Count a call that was submitted as a task of its own."""
        resources = call.resources
        # a task that waits for a time, for its dependencies or for a retry leaves the groups idle
        ready = call.references.is_empty and not resources.not_before and not resources.retries
        key = PackKey(call.lane, call.name, resources, call.directory) if ready else None
        with self.lock:
            stats = self.functions.of(call.function)
            stats.size.measure(task, 1)
            if key is not None:
                self._count(stats, key, task)

    def _count(self, stats: FunctionStats, key: PackKey, task: Future[Any]) -> None:
        stats.pending[key] += 1
        task.add_done_callback(lambda _: self._count_ended(stats, key))

    def _count_ended(self, stats: FunctionStats, key: PackKey) -> None:
        with self.lock:
            stats.pending[key] -= 1
            stats.demand.note_end()
            pack = stats.open_packs.get(key)
            if pack is not None and not self._may_gather(stats, key):
                self.send(pack)
            if not stats.pending[key]:
                del stats.pending[key]

    # -- requests of the futures

    def task_of(self, future: PackedFuture, *, keep_pack: bool = False) -> Future[Any]:
        """Return the future of the task of a call; submits its pack if it is open.

        With ``keep_pack`` no call of the pack can be cancelled any more, since another call refers to the task.
        """
        if os.getpid() != self._pid:
            raise BrokenSpool("The future belongs to the parent process; it cannot be used after fork.")
        with self.lock:
            self._cancel_ended.wait_for(lambda: not future.pack.is_cancelling)
            future.pack.is_argument |= keep_pack
            pack = future.pack
            return pack.task if pack.task is not None and pack.is_sent else self.send(pack)

    def cancel(self, future: PackedFuture) -> bool:
        """Cancel one call. If its pack was submitted, that task is cancelled, and the other calls are packed anew."""
        with self.lock:
            self._cancel_ended.wait_for(lambda: not future.pack.is_cancelling)
            pack, task = future.pack, future.pack.task
            if future.done() or pack.is_argument:
                return future.cancelled()
            if pack.file is not None:
                self.send(pack)
            pack.is_cancelling = task is not None
            if task is None:
                pack.calls = [call for call in pack.calls if call.future is not future]
        if task is None:
            return future.mark_cancelled()
        # outside of the lock: a thread that cancels the task itself holds the task's lock, and acquires this one
        cancelled = not isinstance(task, TaskFuture) or task.cancel_alone()
        with self.lock:
            pack.is_cancelling = False
            self._cancel_ended.notify_all()
            if not cancelled:
                return False
            # the old pack is left empty: a later callback of its task must not cancel the other calls
            others, pack.calls = [call for call in pack.settled() if call.future is not future], []
            self.packs.discard(pack)
            if others:
                self._gather_again(pack, others)
        return future.mark_cancelled()

    def _gather_again(self, old: Pack, calls: list[PackCall]) -> None:
        """Move calls of a cancelled task into another pack; it is submitted at once if it cannot be the open one."""
        stats, key = old.stats, old.key
        pack = stats.open_packs.get(key) if self._commits is None else None
        if pack is None:
            pack = self.new_pack(stats, key, calls)
        else:
            for call in calls:
                call.future.pack = pack
            pack.calls += calls
        if self._commits is None and self._is_busy(stats, key):
            stats.open_packs[key] = pack
        else:
            self.send(pack)

    def interrupt(self, future: Future[Any]) -> bool:
        """Request that the worker interrupts a call of this executor, or does not begin it; the others go on.

        In a temporary spool the task is interrupted, and the other calls run again. Returns False for a call that is
        done, or that shares no task.
        """
        if not isinstance(future, PackedFuture) or future.packer is not self:
            return False
        with self.lock:
            self._cancel_ended.wait_for(lambda: not future.pack.is_cancelling)
            pack, task = future.pack, future.pack.task
            if future.done() or not isinstance(task, TaskFuture) or task.done():
                return False
            if not pack.futures and pack.is_argument:
                return False
            pack.unwanted.add(future)
        if pack.futures:
            cancel.request(self._runtime.spool, task.task, future.number)
        else:
            self._runtime.session.pending.request_cancel(task.task)
        return True

    def _after_fork(self) -> None:
        """Fail the unfinished calls in a forked child: only the parent has their outcomes."""
        self.lock = threading.RLock()
        self._cancel_ended = threading.Condition(self.lock)
        packs, self.packs = self.packs, set()
        for pack in packs:
            if pack.file is not None:
                pack.file.after_fork()
            for call in pack.calls:
                call.future.after_fork()


def _is_packable(call: PreparedCall) -> bool:
    if call.init or not call.references.is_empty:
        return False
    if any(getattr(call.resources, name) != getattr(_DEFAULT, name) for name in _UNPACKED):
        return False
    return len(call.payload) + sum(map(len, call.buffers)) <= _SMALL
