"""Group commit: in a shared spool a gathered call is appended to an open pack, so that it is in the spool at once.

::

    submit --> append to the open pack in the spool --> sync, if the durability asks for it --> return
                                                             |
    the pack is full, a group may be idle, ...  --> one rename seals it: a task like any other

``submit`` never returns before the call is in the spool. A call whose pack was sealed without it, since this process
was stopped for long, is appended to a new pack (:mod:`spoolpool.protocol.open_packs`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

from spoolpool.client.futures import TaskFuture
from spoolpool.client.packs import CallDelivery, Pack, PackCall, PackedFuture, PackKey, gathered_call, record_of
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.client.references import CallReferences
from spoolpool.errors import SpoolpoolError
from spoolpool.wire import run_pack

if TYPE_CHECKING:
    from spoolpool.client.executor_runtime import ExecutorRuntime
    from spoolpool.client.function_stats import FunctionStats
    from spoolpool.client.packing import Packer

_Answer = Literal["committed", "again", "alone"]
"""Whether a call is in its pack, is to be appended to another one, or needs a task of its own."""


class GroupCommit:
    """Open packs of one executor in the spool. May be used from several threads; the packer has the lock."""

    def __init__(self, packer: Packer, runtime: ExecutorRuntime) -> None:
        self._packer = packer
        self._runtime = runtime

    def gather(self, stats: FunctionStats, key: PackKey, call: PreparedCall, size: int) -> PackedFuture | None:
        """Append a call to the open pack of its function, which is sealed when it has ``size`` calls.

        Returns None if that is not possible, as in a spool that is full: a task of its own meets the same, and reports
        it. Raises :class:`TaskVanished` if it is unknown whether the call is in the spool.
        """
        answer: _Answer = "again"
        while answer == "again":
            with self._packer.lock:
                pack = self._find_pack(stats, key)
                if pack is None:
                    return None
                gathered = gathered_call(self._packer, pack, call)
                if not _append(pack, gathered):
                    self._packer.send(pack)
                    return None
            answer = "alone"
            try:  # outside of the lock: one sync serves all threads, and outcomes are delivered meanwhile
                answer = _commit(pack, gathered)
            finally:
                with self._packer.lock:
                    answer = self._settle(pack, gathered, answer)
                    if not pack.is_sent and (answer != "committed" or len(pack.calls) >= size):
                        self._packer.send(pack)
        return gathered.future if answer == "committed" else None

    def _settle(self, pack: Pack, call: PackCall, answer: _Answer) -> _Answer:
        """Add a committed call to the calls of its pack for good, or remove it."""
        pack.uncommitted.discard(call.future)
        if call.future.done():
            return "committed"
        if answer == "committed":
            if pack in self._packer.packs:
                return "committed"
            answer = "again"  # the pack was lost as a whole, or cancelled
        pack.calls = [each for each in pack.calls if each.future is not call.future]
        _count(pack)
        return answer

    def _find_pack(self, stats: FunctionStats, key: PackKey) -> Pack | None:
        """Return the open pack of a function, or a new one; None if none can be opened."""
        pack = stats.open_packs.get(key)
        if pack is not None:
            assert pack.file is not None
            if pack.file.may_append:
                return pack
            self._packer.send(pack)
        pack = self._packer.new_pack(stats, key)
        prepared = PreparedCall(
            run_pack,
            key.name,
            key.lane,
            b"",
            [],
            key.resources,
            CallReferences(self._runtime.spool, pack.task_id),
            directory=key.directory,
            pack=CallDelivery(self._packer, pack),
        )
        try:
            self._runtime.prepare(key.resources.shape)
            pack.task, pack.file = self._runtime.open_pack(prepared)
        except (OSError, SpoolpoolError):
            return None
        finally:
            if pack.task is None:
                self._packer.packs.discard(pack)
        pack.file.has_ended = pack.task.done
        stats.open_packs[key] = pack
        pack.task.add_done_callback(functools.partial(self._packer.deliver, pack))
        return pack

    def seal(self, pack: Pack) -> None:
        """Seal a pack, under the lock. If that fails, other processes seal it, and its outcome comes all the same."""
        task, file = pack.task, pack.file
        assert isinstance(task, TaskFuture)
        assert file is not None
        if task.done():  # others have sealed it, while this process was stopped
            file.abandon()
            return
        file.seal()
        if file.sealed is not None:
            task.task_file = file.sealed
        elif file.is_empty:
            self._runtime.session.pending.withdraw(pack.task_id)
            task.mark_cancelled()


def _append(pack: Pack, call: PackCall) -> bool:
    """Append a call; returns False if that fails, since there is no space, say."""
    assert pack.file is not None
    number = pack.file.calls
    call.future.keys = (number,)
    # before the append, after which a signal handler may raise; in place of that of an append that was interrupted
    pack.futures[number:] = [call.future]
    try:
        pack.file.append(record_of(call))
    except OSError:
        return False
    pack.uncommitted.add(call.future)
    pack.calls.append(call)
    _count(pack)
    return True


def _commit(pack: Pack, call: PackCall) -> _Answer:
    assert pack.file is not None
    try:
        return "committed" if pack.file.commit(call.future.number) else "again"
    except OSError:
        return "alone"


def _count(pack: Pack) -> None:
    assert isinstance(pack.task, TaskFuture)
    pack.task.packed = max(1, len(pack.calls))
