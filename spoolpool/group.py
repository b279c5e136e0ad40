"""Worker groups: one process, or the ranks of an MPI communicator, that run one task at a time together.

Rank 0 has the task; the others hear of it through their own duplicate of the communicator, so that no
message of ours can meet one of a function's. Every message begins with what it is and the task's number
in this group, and what is small travels within that first message::

    rank 0                                   other ranks
    order: run, the call                ->   (idle: woken by a FIFO, or tested in a slow rhythm)
    (bcast of a large call)             ->
    ------------------- every rank runs the call -------------------
    <- vote: done or failed, its value       a large value is held back: everybody votes first
    verdict: send it or drop it         ->   all of them send, or the lowest failed rank alone
    <- (large values, in rank order)
    <- ready: nothing of the function is left in the communicator

A rank whose function raised does not wait for ever for ranks that sit in a collective with it: after a
grace period it publishes its exception itself and aborts the group.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import pickle
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolpool import call, pickling, settings
from spoolpool.backoff import Backoff
from spoolpool.call import Presets, Report
from spoolpool.context import CurrentTask
from spoolpool.envelope import Buffer
from spoolpool.errors import LauncherError
from spoolpool.layout import Token
from spoolpool.task import TaskHeader
from spoolpool.wakeup import Wakeup

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger(__name__)

_RUN, _STOP, _SEND, _DROP, _DONE, _FAILED, _READY = range(1, 8)
_ORDER, _VOTE, _PAYLOAD, _ACK = range(1, 5)  # tags

_FIRST = 4000  # bytes of a first message: every MPI sends so few without asking (Open MPI: up to 4 KiB with its header)
_PIECE = 1 << 30  # bytes: MPI counts are 32-bit integers

Rhythm = tuple[float, float]
"""Seconds until the first look, and between later ones."""
# for ranks that are woken, and for those that must look by themselves
_IDLE_WOKEN, _IDLE = (0.001, 1.0), (0.0001, 0.02)
_BUSY_WOKEN, _BUSY = (0.001, 0.05), (0.00002, 0.02)
_LEAVING = (0.0001, 0.2)

_RENEWALS = 500  # MPICH has 2048 communicators in all, and functions may want some

_ONE_SIDED = re.compile(
    "I?(bcast|gatherv?|scatterv?|reduce|(ex)?scan)|I(barrier|all.*|reduce_scatter.*)", re.IGNORECASE
)
"""Collectives that a rank can leave although another never comes: its message then waits for that one's next."""

Init = tuple[Buffer, Sequence[Buffer]]
"""A pickle and its buffers."""

Publish = Callable[[TaskHeader, Token, Report], bool]
"""Publishes an outcome from any rank; False where another rank did."""


class SerialGroup:
    """One process, without MPI."""

    size = 1
    tainted = False

    def __init__(self, ends: float | None = None) -> None:
        self._ends = ends
        self._presets = Presets()

    def knows(self, init: str) -> bool:
        """Whether this ``init_function`` was called here."""
        return self._presets.knows(init)

    def run(self, token: Token, header: TaskHeader, content: Init, init: Init | None) -> tuple[Report, int]:
        """Run a call in this process."""
        task = CurrentTask(id=token.task, attempt=token.attempt, worker=token.worker, ends=self._ends)
        report = call.run(task, *content, cwd=header.cwd, init=header.init, init_content=init, presets=self._presets)
        return report, 1

    def stop(self) -> None:
        """Nobody else to end."""


def join(reports: Sequence[Report]) -> Report:
    """The ranks' values as one payload: a list of (pickle, number of its buffers), then all the buffers."""
    pickles = [(bytes(report.payload), len(report.buffers)) for report in reports]
    return Report(pickle.dumps(pickles, protocol=5), [b for report in reports for b in report.buffers], None)


class _Head(NamedTuple):
    """How every first message begins."""

    what: int
    serial: int
    """The task's number in this group."""
    mark: int
    """Of a vote: how the rank ended. Of a verdict: whether all ended alike."""
    length: int
    """Bytes of the first part."""
    inside: bool
    """Whether the parts are in this message; else they follow one by one."""

    @classmethod
    def of(cls, message: Buffer | bytearray) -> _Head:
        return cls._make(_HEAD.unpack_from(message))


_HEAD = struct.Struct("<qqqq?")


class MPIGroup:
    """The ranks of one communicator. Made by all ranks together; rank 0 runs, the others :meth:`serve`.

    No task can receive what another one left in the communicator that both were given. Messages from rank
    to rank that nobody received are taken out once all ranks are done. The message of a collective cannot be
    found by any call of MPI; so where the ranks did not all end alike (one failed, or they called different
    collectives), a supervised group is ``tainted``: it ends and is replaced. A group without a supervisor
    goes on with a new communicator in the place of ``MPI.COMM_WORLD`` (:data:`_RENEWALS` times).
    """

    def __init__(
        self, comm: MPI.Comm, publish: Publish, *, supervised: bool, grace: float, ends: float | None = None
    ) -> None:
        self.size = comm.Get_size()
        self.rank = comm.Get_rank()
        self.tainted = False
        self._private = comm.Dup()
        node = self._on_this_host()
        self._node = Wakeup(node, self._private)
        node.Free()
        self._publish = publish
        self._supervised = supervised
        self._grace = grace
        self._ends = ends
        self._presets = Presets()
        self._others = range(1, self.size)
        self._serial = 0
        self._renewals = 0
        self._inbox = bytearray(_FIRST)
        self._unready: list[MPI.Request] = []
        self._use(comm)

    def _on_this_host(self) -> MPI.Comm:
        from mpi4py import MPI

        return self._private.Split_type(MPI.COMM_TYPE_SHARED, self.rank)

    def _use(self, comm: MPI.Comm) -> None:
        """Have functions find this communicator, also under the name that all of them know."""
        from mpi4py import MPI

        self.comm = _watched(comm)
        MPI.COMM_WORLD = self.comm  # type: ignore[misc]

    def knows(self, init: str) -> bool:
        """Whether this ``init_function`` was called in the group."""
        return self._presets.knows(init)

    # -- rank 0

    def run(self, token: Token, header: TaskHeader, content: Init, init: Init | None) -> tuple[Report, int]:
        """Run a call on all ranks; returns the joined values, or the exception of the lowest failed rank."""
        self._wait(self._unready)
        self._serial += 1
        call_parts = [content[0], *content[1], *((init[0], *init[1]) if init else ())]
        lengths = pickle.dumps((token, header, _lengths(content), init and _lengths(init)), protocol=5)
        for part in self._tell_all(_RUN, [lengths, *call_parts]):
            self._bcast(part)
        inboxes = [bytearray(_FIRST) for _ in self._others]
        requests = [self._private.Irecv(inbox, rank, _VOTE) for rank, inbox in zip(self._others, inboxes, strict=True)]
        mine = self._call(token, header, content, init)
        self._wait(requests, late=self._late(token, header, mine))
        votes = [_Head.of(inbox) for inbox in inboxes]
        if wrong := [vote.serial for vote in votes if vote.serial != self._serial]:
            raise LauncherError(f"Ranks voted about task {wrong[0]} in place of {self._serial}: the group is broken.")
        failed = [0] if mine.failure else [rank for rank, vote in enumerate(votes, 1) if vote.what == _FAILED][:1]
        alike = all(vote.mark == self._mark(mine, header) for vote in votes)
        chosen = failed or range(self.size)
        self._unready = [self._private.Irecv(bytearray(_HEAD.size), rank, _ACK) for rank in self._others]
        for rank in self._others:
            self._tell(rank, _SEND if rank in chosen else _DROP, _ORDER, alike)
        reports = [mine if rank == 0 else self._report(rank, inboxes[rank - 1]) for rank in chosen]
        self._after(alike)
        return (reports[0] if failed or self.size == 1 else join(reports)), self.size

    def stop(self) -> None:
        """End the other ranks."""
        self._tell_all(_STOP)

    def _tell_all(self, what: int, parts: Sequence[Buffer] = ()) -> Sequence[Buffer]:
        first, large = _first(what, self._serial, 0, parts)
        requests = [self._private.Isend(first, rank, _ORDER) for rank in self._others]
        self._node.wake_all()
        self._wait(requests)
        return large

    def _report(self, rank: int, vote: bytearray) -> Report:
        def receive(length: int) -> memoryview:
            buffer = bytearray(length)
            for piece in _pieces(buffer):
                self._private.Recv(piece, rank, _PAYLOAD)
            return memoryview(buffer)

        take = _taker(vote, receive)
        lengths, failure = pickling.loads(take(_Head.of(vote).length))
        return Report(*_content(lengths, take), failure)

    # -- the other ranks

    def serve(self) -> None:
        """Run what rank 0 runs until it ends the group."""
        while (order := self._hear(_IDLE_WOKEN, _IDLE)).what != _STOP:
            self._serial = order.serial
            take = _taker(self._inbox, self._bcast_received)
            token, header, lengths, init_lengths = pickling.loads(take(order.length))
            content = _content(lengths, take)
            init = _content(init_lengths, take) if init_lengths else None
            mine = self._call(token, header, content, init)
            parts = [pickle.dumps((_lengths(mine), mine.failure), protocol=5), mine.payload, *mine.buffers]
            large = self._tell(0, _FAILED if mine.failure else _DONE, _VOTE, self._mark(mine, header), parts)
            verdict = self._hear(_BUSY_WOKEN, _BUSY, self._late(token, header, mine))
            if verdict.what == _STOP:  # rank 0 failed
                return
            if verdict.serial != self._serial:
                raise LauncherError(f"Rank 0 judges task {verdict.serial}, and rank {self.rank} ran {self._serial}.")
            for part in large if verdict.what == _SEND else ():
                for piece in _pieces(part):
                    self._private.Send(piece, 0, _PAYLOAD)
            self._after(bool(verdict.mark))
            self._tell(0, _READY, _ACK)

    def _hear(self, woken: Rhythm, rhythm: Rhythm, late: Callable[[], None] | None = None) -> _Head:
        """The next message of rank 0, which is left in the inbox."""
        self._wait([self._private.Irecv(self._inbox, 0, _ORDER)], woken=woken, rhythm=rhythm, late=late)
        if self._node.leads:  # rank 0 is on another host, and can wake nobody here
            self._node.wake_all()
        return _Head.of(self._inbox)

    def _bcast_received(self, length: int) -> memoryview:
        buffer = bytearray(length)
        self._bcast(buffer)
        return memoryview(buffer)

    # -- all ranks

    def _call(self, token: Token, header: TaskHeader, content: Init, init: Init | None) -> Report:
        task = CurrentTask(
            id=token.task,
            attempt=token.attempt,
            worker=token.worker,
            rank=self.rank,
            size=self.size,
            comm=self.comm,
            ends=self._ends,
        )
        self.comm.called = 0
        return call.run(task, *content, cwd=header.cwd, init=header.init, init_content=init, presets=self._presets)

    def _mark(self, mine: Report, header: TaskHeader) -> int:
        """How this rank ended: the same number on all ranks that left the same behind."""
        raised = mine.failure.type if mine.failure else ""
        return zlib.crc32(f"{self.comm.called} {raised} {self._presets.knows(header.init)}".encode())

    def _tell(self, rank: int, what: int, tag: int, mark: int = 0, parts: Sequence[Buffer] = ()) -> Sequence[Buffer]:
        """Send a message to a rank and wake it; returns the parts that were too large for it."""
        first, large = _first(what, self._serial, mark, parts)
        request = self._private.Isend(first, rank, tag)
        self._node.wake(rank)
        self._wait([request])
        return large

    def _bcast(self, buffer: Buffer | bytearray) -> None:
        for piece in _pieces(buffer):
            self._private.Bcast(piece, 0)

    def _wait(
        self,
        requests: Sequence[MPI.Request],
        *,
        woken: Rhythm = _BUSY_WOKEN,
        rhythm: Rhythm = _BUSY,
        late: Callable[[], None] | None = None,
    ) -> None:
        """Wait without spinning: MPI's own waits burn a core. Call ``late`` after the grace period."""
        from mpi4py import MPI

        if MPI.Request.Testall(requests):
            return
        pause = Backoff(*(woken if self._node.woken else rhythm))
        deadline = time.monotonic() + self._grace
        while not MPI.Request.Testall(requests):
            if late is not None and time.monotonic() > deadline:
                late()
            self._node.wait(pause)

    def _after(self, alike: bool) -> None:
        """Make sure that no later task can receive what this one left behind; all ranks are done with it."""
        from mpi4py import MPI

        status = MPI.Status()
        while (message := self.comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)) is not None:
            # a matched message can meet no other receive; a large one is not worth its transfer
            log.warning("A task left a message from rank %d with tag %d behind.", status.source, status.tag)
            if (length := status.Get_count(MPI.BYTE)) < _FIRST:
                message.Recv([bytearray(length), MPI.BYTE])
        if alike:
            return
        self.tainted = self._supervised or self._renewals == _RENEWALS
        if not self.tainted:
            self._renewals += 1
            self._presets = Presets()  # a function that failed on some ranks only is to be called again
            # The old one is never freed: MPICH would give its number, and what waits under it, to the next one.
            self._use(self._private.Dup())

    def _late(self, token: Token, header: TaskHeader, mine: Report) -> Callable[[], None] | None:
        """What this rank does if the others do not come: nothing, where it has not failed itself."""
        return functools.partial(self._give_up, header, token, mine) if mine.failure else None

    def _give_up(self, header: TaskHeader, token: Token, mine: Report) -> None:
        """Other ranks sit in a collective that this one will never join: publish, and abort the group."""
        if not self._publish(header, token, mine):
            # another rank is about to do it: leave it the time
            rhythm = Backoff(0.05, 0.5)
            end = time.monotonic() + self._grace
            while time.monotonic() < end:
                rhythm.sleep()
        self._private.Abort(settings.EXIT_RENEW)
        os._exit(settings.EXIT_RENEW)  # not reached


def _watched(comm: MPI.Comm) -> Any:
    """A communicator of the same group and context that remembers which one-sided collectives were called."""
    from mpi4py import MPI

    class Watched(MPI.Intracomm):
        called = 0

    def remembering(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call_it(self: Watched, *args: Any, **kwargs: Any) -> Any:
            self.called = zlib.crc32(method.__name__.encode(), self.called)
            return method(self, *args, **kwargs)

        return call_it

    for name in filter(_ONE_SIDED.fullmatch, dir(MPI.Intracomm)):
        setattr(Watched, name, remembering(getattr(MPI.Intracomm, name)))
    return Watched(comm)


def _first(what: int, serial: int, mark: int, parts: Sequence[Buffer]) -> tuple[bytes, Sequence[Buffer]]:
    """A first message, and the parts that must follow because they are too large for it."""
    inside = _HEAD.size + sum(map(len, parts)) <= _FIRST
    head = _HEAD.pack(what, serial, mark, len(parts[0]) if parts else 0, inside)
    return (b"".join((head, *parts)), ()) if inside else (head, parts)


Take = Callable[[int], memoryview]
"""The next part, of so many bytes."""


def _taker(message: bytearray, receive: Take) -> Take:
    """Take the parts one by one: out of a first message, or as they follow it."""
    if not _Head.of(message).inside:
        return receive
    inside = io.BytesIO(message)
    inside.seek(_HEAD.size)
    return lambda length: memoryview(bytearray(inside.read(length)))


def _content(lengths: list[int], take: Take) -> Init:
    payload, *buffers = [take(length) for length in lengths]
    return payload, buffers


def _lengths(content: Report | Init) -> list[int]:
    return [len(content[0]), *(len(buffer) for buffer in content[1])]


def _pieces(buffer: Buffer | bytearray) -> list[memoryview]:
    view = memoryview(buffer)
    return [view[start : start + _PIECE] for start in range(0, len(view), _PIECE)]


class World:
    """All ranks that the launcher started, and the group of this one among them."""

    def __init__(self, ranks: int | None, expected: int | None) -> None:
        """Split ``COMM_WORLD`` into groups of ``ranks`` (all of it if None).

        Raises :class:`LauncherError` where the world has not the size that was asked for: a launcher and
        an MPI that do not fit make many worlds of one rank, with no error of their own.
        """
        from mpi4py import MPI

        self._comm = MPI.COMM_WORLD.Dup()
        size = MPI.COMM_WORLD.Get_size()
        if expected is not None and size != expected:
            raise LauncherError(
                f"MPI sees {size} ranks where {expected} were started: the launcher and the MPI that mpi4py loads "
                f"({MPI.Get_library_version().splitlines()[0]}) do not fit. Use the mpiexec of that MPI "
                f"({settings.ENV_MPIEXEC}), under Slurm the right --mpi= (pmi2 for MPICH, pmix for Open MPI)."
            )
        ranks = ranks or size
        if size % ranks:
            raise LauncherError(
                f"{size} ranks cannot be split into groups of {ranks}. Start a multiple of {ranks} ranks."
            )
        self.split = ranks != size
        self.rank = MPI.COMM_WORLD.Get_rank()
        self.comm: MPI.Comm = MPI.COMM_WORLD
        if self.split:
            self.comm = MPI.COMM_WORLD.Split(self.rank // ranks, self.rank)

    def leave(self, code: int) -> None:
        """Wait, without spinning, until every rank of every group is about to end, and end MPI.

        MPI may wait for ever for a message that a function sent and nobody received: then the process ends
        with ``code`` here.
        """
        from mpi4py import MPI

        rhythm = Backoff(*_LEAVING)
        request = self._comm.Ibarrier()
        while not request.Test():
            rhythm.sleep()
        limit = threading.Timer(settings.GRACE, os._exit, (code,))
        limit.daemon = True
        limit.start()
        MPI.Finalize()
        limit.cancel()

    def abort(self, code: int) -> None:
        """End all ranks of all groups at once."""
        self._comm.Abort(code)
