"""Packs as the submitter sees them: calls that share a task, their futures, and the delivery of their outcomes."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolpool.calls.results import value_of
from spoolpool.client.futures import PartFuture, TaskFuture, about_call
from spoolpool.client.safe_future import SafeFuture
from spoolpool.errors import BadTaskFile, BrokenSpool, TaskVanished, WorkerLost
from spoolpool.format.names import new_task_id
from spoolpool.protocol.packs import PackedCall
from spoolpool.resources import Resources
from spoolpool.wire import PackResults

if TYPE_CHECKING:
    from spoolpool.client.function_stats import FunctionStats
    from spoolpool.client.packing import Packer
    from spoolpool.client.prepared_call import PreparedCall
    from spoolpool.format.envelope import Envelope
    from spoolpool.format.headers import OutcomeHeader
    from spoolpool.monitor.states import End, State
    from spoolpool.protocol.open_packs import OpenPack


class PackKey(NamedTuple):
    """Common properties of the calls of a pack."""

    lane: str
    name: str
    resources: Resources
    directory: str
    """Working directory of the submitter."""

    def __hash__(self) -> int:
        return hash((self.lane, self.name, self.resources.priority))  # the resources have a dict of variables


class PackCall(NamedTuple):
    """Pickled call of a pack, and its future."""

    future: PackedFuture
    payload: bytes
    buffers: list[bytes]


_NO_BUFFERS: list[bytes] = []  # of most calls, which share it; never changed


def gathered_call(packer: Packer, pack: Pack, call: PreparedCall) -> PackCall:
    """Return a call for a pack, with a new future."""
    buffers = [bytes(each) for each in call.buffers] if call.buffers else _NO_BUFFERS
    future = PackedFuture(packer, pack, call.references.task, call.label, call.arguments)
    return PackCall(future, bytes(call.payload), buffers)


def record_of(call: PackCall) -> PackedCall:
    """Return the record of a call in the file of its pack."""
    future = call.future
    return PackedCall(call.payload, call.buffers, future.task, future.label, future.arguments)


class Pack:
    """Calls that share a task, or will. The packer changes it under its lock."""

    def __init__(self, stats: FunctionStats, key: PackKey, calls: list[PackCall]) -> None:
        self.stats = stats
        self.key = key
        self.calls = calls
        self.task_id = new_task_id(key.resources.priority)
        self.opened = time.monotonic()
        """Time of its creation."""
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
        self.file: OpenPack | None = None
        """Pack in the spool to which the calls are appended, if it is not gathered in memory."""
        self.uncommitted: set[PackedFuture] = set()
        """Calls that are being appended to it: their submission has not returned."""
        self.is_sent = False
        """Whether it gets no further call."""

    def undelivered(self) -> list[PackCall]:
        """Return the calls without an outcome."""
        return [call for call in self.settled() if not call.future.done()]

    def settled(self) -> list[PackCall]:
        """Return the calls without those that are being appended, which the appending threads submit again."""
        return [call for call in self.calls if call.future not in self.uncommitted]

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
            if call.future.done() or call.future in self.uncommitted:
                continue
            if isinstance(error, CancelledError):
                call.future.mark_cancelled()
            elif call.future.mark_running():
                try:
                    value = results[position] if error is None else None
                except BaseException as raised:  # noqa: BLE001  of the call
                    ends.append("lost" if isinstance(raised, WorkerLost) else "raised")
                    call.future.set_exception(BaseException.with_traceback(raised, None))
                else:
                    ends.append("done" if error is None else end_of(error))
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
        if number >= len(self._futures):  # its append was interrupted: the call was not submitted
            return
        future = self._futures[number]
        if header.kind == "cancelled":
            future.mark_cancelled()
            self._packer.withdraw_request(future)
        if not future.mark_running():
            return
        try:
            value = value_of(header, content, future.title)
        except BaseException as error:  # noqa: BLE001  of the call
            self._packer.count_end("lost" if isinstance(error, WorkerLost) else "raised")
            # without the frames of this thread, which would keep the data of the outcome alive
            future.set_exception(BaseException.with_traceback(error, None))
        else:
            self._packer.count_end("done")
            future.set_result(value)


def end_of(error: BaseException) -> State | End:
    """Return the end of a task that has no results."""
    kinds: dict[type[BaseException], State | End] = {WorkerLost: "lost", TaskVanished: "vanished"}
    return next((end for kind, end in kinds.items() if isinstance(error, kind)), "failed")


class PackedFuture(PartFuture):
    """Future of a call that shares a task, or will."""

    __slots__ = ("_notified", "arguments", "label", "pack", "packer", "task")

    def __init__(self, packer: Packer, pack: Pack, task: str, label: str = "", arguments: str = "") -> None:
        SafeFuture.__init__(self)
        self.packer = packer
        self.pack = pack
        self.task = task
        """Id of the call, which ``current_task()`` has too; the task that it shares has an id of its own."""
        self.label = label
        """Label of the call, for people."""
        self.arguments = arguments
        """Preview of the arguments, for people."""
        self.keys = ()
        self._notified = False

    def about(self) -> dict[str, str]:
        """Return id, function and label of the call."""
        return about_call(self.task, self.pack.key.name, self.label, self.arguments)

    @property
    def number(self) -> int:
        """Number of the call in its pack, once that was submitted."""
        (number,) = self.keys
        assert isinstance(number, int)
        return number

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

    def mark_running(self) -> bool:
        """Set the state to running before the outcome; returns False if the future is done, or was cancelled."""
        with self._condition:  # race: another thread may cancel it between the look and the change
            return not self.done() and self.set_running_or_notify_cancel()

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
