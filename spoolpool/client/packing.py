"""Several short calls in one task, though each was submitted by itself and has a future of its own.

::

    submit --+--> a task of its own          nothing is known of the function yet, its calls are long, or few wait
             |
             +--> the open pack of its line  many tasks of the function wait or run, and its calls are short
                       |
                       +--> a task: when it is full; when one of those tasks ends and few are left; when a result of
                            it is waited for or needed by another call; and before the executor ends

A pack is open only while tasks of its function are on their way, and each that comes back lets it go if few are
left. So no clock is needed, and a call waits in memory only as long as groups have the same to do anyway.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

from spoolpool.calls import pickling
from spoolpool.client.futures import PartFuture, TaskFuture
from spoolpool.client.map import Sizes
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.client.references import CallReferences
from spoolpool.client.runtime import ExecutorRuntime
from spoolpool.errors import BadTaskFile, BrokenSpool
from spoolpool.format.names import new_task_id
from spoolpool.resources import Resources
from spoolpool.wire import PackResults, run_pack

BUSY = 4
"""Tasks of a function that wait or run, from which on its next calls are gathered."""

_SMALL = 1 << 16  # bytes of a pickled call, from which on it has a task of its own
_KNOWN = 256  # functions of which times are remembered
_ALONE = ("cores", "retries", "time_limit", "not_before", "error_log_file")
"""Wishes that are about one call: where one is not as usual, the call has a task of its own."""


class PackKey(NamedTuple):
    """What calls of one pack have in common."""

    lane: str
    name: str
    resources: Resources


class Pack:
    """Calls that share a task, or will: with their futures, and as they were pickled."""

    def __init__(self, packer: Packer, line: FunctionStats, shape: PackKey) -> None:
        self.packer = packer
        self.line = line
        self.shape = shape
        self.calls: list[tuple[PackedFuture, bytes, list[bytes]]] = []
        self.task: Future[Any] | None = None
        """The task's future, once it was submitted."""
        self.needed = False
        """Whether another call refers to it, so that it must stay what it is."""
        self.dissolving = False


class FunctionStats:
    """What is known of one function: how long its calls take, how many of its tasks are on their way."""

    def __init__(self) -> None:
        self.sizes = Sizes(None)
        self.on_their_way = 0
        self.open: Pack | None = None


class PackedFuture(PartFuture):
    """The future of a call that shares a task, or will."""

    def __init__(self, pack: Pack) -> None:
        Future.__init__(self)
        self.pack = pack
        self.keys = ()
        self._told = False

    @property
    def whole(self) -> Future[Any]:  # type: ignore[override]
        """The future of the task, for another call that refers to it; a pack that is open is submitted now."""
        return self.pack.packer.task_of(self, needed=True)

    @property
    def of(self) -> tuple[Future[Any], ...]:  # type: ignore[override]
        """The same, for who waits for it."""
        return (self.pack.packer.task_of(self),)

    def running(self) -> bool:
        """Whether a worker has claimed the task."""
        task = self.pack.task
        return not self.done() and task is not None and task.running()

    def cancel(self) -> bool:
        """Take the call back, and no other; False once a worker has its task, another call needs it, or it is done."""
        return self.cancelled() or (not self.done() and self.pack.packer.take_back(self))

    def end(self) -> bool:
        """Be cancelled, since nobody will run the call. Of several threads that come here one tells who waits."""
        if not Future.cancel(self):  # the class above would cancel the whole task
            return False
        with self._condition:
            told, self._told = self._told, True
        if not told:
            self.set_running_or_notify_cancel()
        return True


class Packer:
    """Decides which calls of an executor share a task. Its methods may be called from any thread."""

    def __init__(self, core: ExecutorRuntime) -> None:
        self._core = core
        self._pid = os.getpid()
        # reentrant: a future may be done already when somebody asks to be told
        self._lock = threading.RLock()
        self._dissolved = threading.Condition(self._lock)
        self._lines: dict[object, FunctionStats] = {}
        core.flush_with(self.flush)

    def take(self, call: PreparedCall) -> PackedFuture | None:
        """Take a call into a pack; returns None for a call that should have a task of its own."""
        size = len(call.payload) + sum(map(len, call.buffers))
        if (
            size > _SMALL
            or not call.references.is_empty
            or call.init
            or any(_is_set(call.resources, n) for n in _ALONE)
        ):
            return None
        shape = PackKey(call.lane, call.name, call.resources)
        with self._lock:
            line = self._line(call.function)
            most = line.sizes.next()
            if most == 1 or line.on_their_way < BUSY:
                return None
            pack = line.open
            if pack is None or pack.shape != shape:
                if pack is not None:
                    self._send(pack)
                pack = line.open = Pack(self, line, shape)
            future = PackedFuture(pack)
            pack.calls.append((future, bytes(call.payload), [bytes(each) for each in call.buffers]))
            if len(pack.calls) >= most:
                self._send(pack)
        return future

    def sent(self, function: Callable[..., Any], future: Future[Any]) -> None:
        """A call went into a task of its own."""
        with self._lock:
            line = self._line(function)
            line.on_their_way += 1
        line.sizes.measure(future, 1)
        future.add_done_callback(lambda _: self._came_back(line))

    def flush(self) -> None:
        """Submit whatever is open."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            for line in self._lines.values():
                if line.open is not None:
                    self._send(line.open)

    def task_of(self, future: PackedFuture, *, needed: bool = False) -> Future[Any]:
        """The task's future, submitted now if it was not."""
        if os.getpid() != self._pid:
            raise BrokenSpool("This future is the parent process's: ask for it there.")
        with self._lock:
            self._dissolved.wait_for(lambda: not future.pack.dissolving)
            future.pack.needed |= needed
            return future.pack.task or self._send(future.pack)

    def take_back(self, future: PackedFuture) -> bool:
        """Take one call back. If it is in the spool, its task is taken back, and the others go into a new one."""
        with self._lock:
            self._dissolved.wait_for(lambda: not future.pack.dissolving)
            pack, task = future.pack, future.pack.task
            if future.done() or pack.needed:
                return future.cancelled()
            pack.dissolving = task is not None
            if task is None:
                pack.calls = [call for call in pack.calls if call[0] is not future]
        if task is None:
            return future.end()
        # outside of the lock: whoever cancels the task itself holds its own lock, and asks for this one
        taken = not isinstance(task, TaskFuture) or task.take_back()
        with self._lock:
            pack.dissolving = False
            self._dissolved.notify_all()
            if not taken:
                return False
            # none are left in the old one: that its task was cancelled may be told only later, and is not about them
            rest, pack.calls = [call for call in pack.calls if call[0] is not future], []
            if rest:
                self._gather(pack, rest)
        return future.end()

    # -- inside

    def _line(self, function: Any) -> FunctionStats:
        while isinstance(function, functools.partial):
            function = function.func
        key = getattr(function, "__code__", function)
        key = key if isinstance(key, Hashable) else type(function)
        if key not in self._lines and len(self._lines) >= _KNOWN:
            self._lines = {each: line for each, line in self._lines.items() if line.on_their_way}
        return self._lines.setdefault(key, FunctionStats())

    def _gather(self, old: Pack, calls: list[tuple[PackedFuture, bytes, list[bytes]]]) -> None:
        """Calls whose task was taken back go into another one, later if they can wait."""
        pack = Pack(self, old.line, old.shape)
        if old.line.open is not None and old.line.open.shape == old.shape:
            pack = old.line.open
        for call in calls:
            call[0].pack = pack
        pack.calls += calls
        if old.line.open in (None, pack) and old.line.on_their_way >= BUSY:
            old.line.open = pack
        else:
            self._send(pack)

    def _send(self, pack: Pack) -> Future[Any]:
        """Submit a pack, under the lock. What goes wrong is told to each of its futures."""
        if pack.line.open is pack:
            pack.line.open = None
        if not pack.calls:  # all were taken back
            return Future()
        for number, (future, _, _) in enumerate(pack.calls):
            future.keys = (number,)
        core, shape, resources = self._core, pack.shape, pack.shape.resources
        calls = [(payload, buffers) for _, payload, buffers in pack.calls]
        try:
            core.prepare(resources.shape)
            payload, buffers = pickling.dumps((run_pack, (calls,), {}))
            references = CallReferences(core.spool, new_task_id(resources.priority))
            name = f"{shape.name} x{len(calls)}"
            task = pack.task = core.session.submit(
                PreparedCall(run_pack, name, shape.lane, payload, buffers, resources, references)
            )
        except Exception as error:  # noqa: BLE001  of the spool, or that the session is closed: nobody else is told
            pack.task = Future()
            pack.task.set_exception(error)
            self._deliver(pack, pack.task)
            return pack.task
        if core.stream is not None:
            core.stream.submitted()
        pack.line.on_their_way += 1
        pack.line.sizes.measure(task, len(calls))
        task.add_done_callback(functools.partial(self._landed, pack))
        return task

    def _landed(self, pack: Pack, task: Future[Any]) -> None:
        self._came_back(pack.line)
        if not (pack.dissolving and task.cancelled()):
            self._deliver(pack, task)

    def _came_back(self, line: FunctionStats) -> None:
        with self._lock:
            line.on_their_way -= 1
            if line.open is not None and line.on_their_way < BUSY:
                self._send(line.open)

    @staticmethod
    def _deliver(pack: Pack, task: Future[Any]) -> None:
        """Give each call what came of it."""
        results: Any = None
        error: BaseException | None = None
        try:
            results = task.result()
            if not isinstance(results, PackResults) or len(results) != len(pack.calls):
                error = BadTaskFile(f"The outcome of a pack of {len(pack.calls)} calls is {type(results).__name__}.")
        except BaseException as raised:  # noqa: BLE001  the whole task failed, or was cancelled
            error = raised
        for number, (future, _, _) in enumerate(pack.calls):
            if isinstance(error, CancelledError):
                future.end()
            elif future.set_running_or_notify_cancel():
                try:
                    value = results[number] if error is None else None
                except BaseException as raised:  # noqa: BLE001  the call's own
                    future.set_exception(raised.with_traceback(None))
                else:
                    future.set_exception(error) if error is not None else future.set_result(value)


def _is_set(resources: Resources, name: str) -> bool:
    return bool(getattr(resources, name) != getattr(_DEFAULT, name))


_DEFAULT = Resources()
