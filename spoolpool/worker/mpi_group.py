"""The ranks of an MPI communicator as a worker group: they run one task at a time together.

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
    ----------- each takes out what the function left in its communicator -----------
    <- ready

A rank whose function raised does not wait for ever for ranks that sit in a collective with it: after a
grace period it publishes its exception itself and aborts the group.
"""

from __future__ import annotations

import functools
import os
import pickle
import time
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from spoolpool import settings
from spoolpool.calls import run
from spoolpool.calls.interruption import Interrupter, Publish
from spoolpool.calls.results import DependencyValue
from spoolpool.calls.run import InitializerCache, RankResult
from spoolpool.context import CurrentTask
from spoolpool.errors import LauncherError
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile
from spoolpool.system.backoff import Backoff
from spoolpool.worker import mpi, mpi_messages
from spoolpool.worker.capture import Capture
from spoolpool.worker.mpi_messages import Content, Head
from spoolpool.worker.rank_wakeup import Wakeup

if TYPE_CHECKING:
    from spoolpool.protocol.objects import ObjectCache
    from spoolpool.protocol.progress import Progress
    from spoolpool.worker.mpi import Comm, Request

_RUN, _STOP, _RENEW, _SEND, _DROP, _DONE, _FAILED, _READY = range(1, 9)
_ORDER, _VOTE, _PAYLOAD, _ACK = range(1, 5)  # tags

Rhythm = tuple[float, float]
"""Seconds until the first look, and between later ones."""
# for ranks that are woken, and for those that must look by themselves
_IDLE_WOKEN, _IDLE = (0.001, 1.0), (0.0001, 0.02)
_BUSY_WOKEN, _BUSY = (0.001, 0.05), (0.00002, 0.02)

_RENEWALS = 500  # MPICH has 2048 communicators in all, and functions may want some


def join(reports: Sequence[RankResult]) -> RankResult:
    """The ranks' values as one payload: a list of (pickle, number of its buffers), then all the buffers."""
    pickles = [(bytes(report.payload), len(report.buffers)) for report in reports]
    return RankResult(pickle.dumps(pickles, protocol=5), [b for report in reports for b in report.buffers], None)


class _Verdict(NamedTuple):
    """What came of a task."""

    chosen: Sequence[int]
    """Ranks whose values, or whose exception, are its outcome."""
    alike: bool
    """Whether all ranks ended alike."""


class MPIGroup:
    """The ranks of one communicator. Made by all ranks together; rank 0 runs, the others :meth:`serve`.

    No task can receive what another one left in the communicator that both were given. Messages from rank
    to rank that nobody received are taken out once all ranks are done: each rank ends with a message to
    every rank, and MPI keeps the order of messages between two ranks. The message of a collective cannot be
    found by any call of MPI; so where the ranks did not all end alike (one failed, or they called different
    collectives), a supervised group is ``tainted``: it ends and is replaced. A group without a supervisor
    goes on with a new communicator in the place of ``MPI.COMM_WORLD``, :data:`_RENEWALS` times.
    """

    def __init__(
        self,
        comm: Comm,
        publish: Publish,
        *,
        supervised: bool,
        grace: float,
        ends: float | None = None,
        interrupter: Interrupter | None = None,
        capture: Capture | None = None,
        progress: Progress | None = None,
        spool: str = "",
        objects: ObjectCache | None = None,
    ) -> None:
        self._objects = objects
        self.size = comm.Get_size()
        self.rank = comm.Get_rank()
        self.tainted = False
        self._private = comm.Dup()
        node = mpi.on_this_host(self._private)
        self._node = Wakeup(node, self._private)
        self._interrupter = interrupter or Interrupter(None, None, 0.0)
        self._interrupter.share(node)
        node.Free()
        self._publish = publish
        self._supervised = supervised
        self._grace = grace
        self._ends = ends
        self._capture = capture or Capture(None)
        self._progress = progress
        self._spool = spool
        self._presets = InitializerCache()
        self._others = range(1, self.size)
        self._serial = 0
        self._renewals = 0
        self._inbox = bytearray(mpi_messages.FIRST)
        self._verdict: _Verdict | None = None
        self._told = False
        self._unready: list[Request] = []
        self._answers: list[bytearray] = []
        self._clean = True
        self._functions = mpi.CommunicatorCleaner(comm)

    def knows(self, init: str) -> bool:
        """Whether this ``init_function`` was called in the group."""
        return self._presets.knows(init)

    # -- rank 0

    def run(
        self,
        task_file: TaskFile,
        header: TaskHeader,
        content: Content,
        init: Content | None,
        needed: Sequence[DependencyValue] = (),
    ) -> tuple[RankResult, int]:
        """Run a call on all ranks.

        Return the joined values, or the exception of the lowest failed rank, and the number of values in it.
        """
        self._get_ready()
        self._serial += 1
        about = task_file, header, [(each.session, each.task, each.ranks) for each in needed]
        results = [(each.payload, each.buffers) for each in needed]
        for part in self._tell_all(_RUN, mpi_messages.parts(about, content, init, *results)):
            self._bcast(part)
        inboxes = self._inboxes()
        requests = [self._private.Irecv(inbox, rank, _VOTE) for rank, inbox in zip(self._others, inboxes, strict=True)]
        mine = self._call(task_file, header, content, init, needed)
        self._wait(requests, late=self._late(task_file, header, mine))
        votes = [Head.of(inbox) for inbox in inboxes]
        if wrong := [vote.serial for vote in votes if vote.serial != self._serial]:
            raise LauncherError(f"Ranks voted about task {wrong[0]} in place of {self._serial}: the group is broken.")
        failed = [0] if mine.failure else [rank for rank, vote in enumerate(votes, 1) if vote.what == _FAILED][:1]
        alike = all(vote.mark == self._mark(mine, header) for vote in votes)
        chosen = failed or range(self.size)
        self.tainted = self.tainted or self._ends_by(alike) or (self._supervised and self._interrupter.interrupted)
        self._verdict, self._told = _Verdict(chosen, alike), False
        if failed or not all(vote.inside for vote in votes):  # somebody needs it now
            self._judge()
        reports = [mine if rank == 0 else self._report(rank, inboxes[rank - 1]) for rank in chosen]
        return (reports[0] if failed or self.size == 1 else join(reports)), self.size

    def settle(self, *, idle: bool) -> None:
        """Get ready for the next task, after the outcome was published: it need not wait for this.

        Not ``idle``, only have the other ranks do so meanwhile: the next task may be there already.
        """
        if self._verdict is not None:
            self._judge()
            if idle or not self._verdict.alike:  # the ranks wait for this one to make a new communicator with them
                self._get_ready()

    def stop(self) -> None:
        """End the other ranks, once they are done with the last task."""
        self._get_ready()
        self._tell_all(_STOP)
        self._capture.close()

    def _judge(self) -> None:
        """Tell each rank whether to send its value, and that all ranks are done with the function."""
        if self._told or self._verdict is None:
            return
        self._told = True
        self._answers = self._inboxes()
        self._unready = [self._private.Irecv(box, rank, _ACK) for rank, box in enumerate(self._answers, 1)]
        for rank in self._others:
            self._tell(rank, _SEND if rank in self._verdict.chosen else _DROP, _ORDER, self._verdict.alike)
        self._functions.end(self._serial)

    def _clean_up(self) -> None:
        if self._verdict is not None:
            self._after(self._verdict.alike)
            self._verdict = None

    def _get_ready(self) -> None:
        """Make sure that every rank is done with the task before, and that nothing of it is left."""
        self._judge()
        self._clean_up()
        self._wait(self._unready)
        if not (self._clean and all(Head.of(answer).mark for answer in self._answers)):
            self._tell_all(_RENEW)
            self._renew()
        self._answers = []

    def _inboxes(self) -> list[bytearray]:
        return [bytearray(mpi_messages.FIRST) for _ in self._others]

    def _tell_all(self, what: int, parts: Sequence[Buffer] = ()) -> Sequence[Buffer]:
        first, large = Head(what, self._serial).message(parts)
        requests = [self._private.Isend(first, rank, _ORDER) for rank in self._others]
        self._node.wake_all()
        self._wait(requests)
        return large

    def _report(self, rank: int, vote: bytearray) -> RankResult:
        def receive(length: int) -> memoryview:
            buffer = bytearray(length)
            for piece in mpi_messages.pieces(buffer):
                self._private.Recv(piece, rank, _PAYLOAD)
            return memoryview(buffer)

        failure, (value,) = mpi_messages.unpack(vote, receive)
        assert value is not None
        return RankResult(*value, failure)

    # -- the other ranks

    def serve(self) -> None:
        """Run what rank 0 runs until it ends the group."""
        while (order := self._hear(_IDLE_WOKEN, _IDLE)).what != _STOP:
            if order.what == _RENEW:
                self._renew()
            else:
                self._serial = order.serial
                self._serve(*mpi_messages.unpack(self._inbox, self._bcast_received))
        self._capture.close()

    def _serve(
        self, about: tuple[TaskFile, TaskHeader, list[tuple[str, str, int]]], contents: Sequence[Content | None]
    ) -> None:
        (task_file, header, names), (content, init, *results) = about, contents
        assert content is not None
        needed = [
            DependencyValue(session, task, ranks, *result)
            for (session, task, ranks), result in zip(names, results, strict=True)
            if result is not None
        ]
        mine = self._call(task_file, header, content, init, needed)
        parts = mpi_messages.parts(mine.failure, (mine.payload, mine.buffers))
        large = self._tell(0, _FAILED if mine.failure else _DONE, _VOTE, self._mark(mine, header), parts)
        verdict = self._hear(_BUSY_WOKEN, _BUSY, self._late(task_file, header, mine))
        if verdict.serial != self._serial:
            raise LauncherError(f"Rank 0 judges task {verdict.serial}, and rank {self.rank} ran {self._serial}.")
        self._functions.end(self._serial)
        for part in large if verdict.what == _SEND else ():
            for piece in mpi_messages.pieces(part):
                self._private.Send(piece, 0, _PAYLOAD)
        self._after(bool(verdict.mark))
        self._tell(0, _READY, _ACK, self._clean)

    def _hear(self, woken: Rhythm, backoff: Rhythm, late: Callable[[], None] | None = None) -> Head:
        """The next message of rank 0, which is left in the inbox."""
        self._wait([self._private.Irecv(self._inbox, 0, _ORDER)], woken=woken, backoff=backoff, late=late)
        if self._node.leads:  # rank 0 is on another host, and can wake nobody here
            self._node.wake_all()
        return Head.of(self._inbox)

    def _bcast_received(self, length: int) -> memoryview:
        buffer = bytearray(length)
        self._bcast(buffer)
        return memoryview(buffer)

    # -- all ranks

    def _call(
        self,
        task_file: TaskFile,
        header: TaskHeader,
        content: Content,
        init: Content | None,
        needed: Sequence[DependencyValue],
    ) -> RankResult:
        task = CurrentTask(
            id=task_file.task,
            attempt=task_file.attempt,
            worker=task_file.worker,
            rank=self.rank,
            size=self.size,
            comm=self._functions.comm,
            spool=self._spool,
            ends=self._ends,
            _progress=None if self.rank else self._progress,
        )
        self._functions.begin()
        with self._capture.of(task_file):
            return run.run_call(
                task,
                *content,
                header=header,
                init_content=init,
                presets=self._presets,
                needed=needed,
                objects=self._objects,
                guard=self._interrupter.watch(task_file, header),
            )

    def _mark(self, mine: RankResult, header: TaskHeader) -> int:
        """How this rank ended: the same number on all ranks that left the same behind."""
        raised = mine.failure.type if mine.failure else ""
        return zlib.crc32(f"{self._functions.collectives} {raised} {self._presets.knows(header.init)}".encode())

    def _tell(self, rank: int, what: int, tag: int, mark: int = 0, parts: Sequence[Buffer] = ()) -> Sequence[Buffer]:
        """Send a message to a rank and wake it; returns the parts that were too large for it."""
        first, large = Head(what, self._serial, mark).message(parts)
        request = self._private.Isend(first, rank, tag)
        self._node.wake(rank)
        self._wait([request])
        return large

    def _bcast(self, buffer: Buffer | bytearray) -> None:
        for piece in mpi_messages.pieces(buffer):
            self._private.Bcast(piece, 0)

    def _wait(
        self,
        requests: Sequence[Request],
        *,
        woken: Rhythm = _BUSY_WOKEN,
        backoff: Rhythm = _BUSY,
        late: Callable[[], None] | None = None,
    ) -> None:
        """Wait without spinning: MPI's own waits burn a core. Call ``late`` after the grace period."""
        if mpi.all_done(requests):
            return
        pause = Backoff(*(woken if self._node.woken else backoff))
        deadline = time.monotonic() + self._grace
        while not mpi.all_done(requests):
            if late is not None and time.monotonic() > deadline:
                late()
            self._node.wait(pause)

    def _after(self, alike: bool) -> None:
        """Make sure that no later task can receive what this one left behind; all ranks are done with it."""
        self._clean = self._functions.sweep(self._serial, self._grace)
        if not alike and not self._ends_by(alike):
            self._renew()

    def _ends_by(self, alike: bool) -> bool:
        """Whether the group is to be replaced, since its ranks did not end alike."""
        return not alike and (self._supervised or self._renewals == _RENEWALS)

    def _renew(self) -> None:
        """Go on with a new communicator.

        The old one is never freed: MPICH would give its number again, and what waits under it with it.
        """
        self._renewals += 1
        self._presets = InitializerCache()  # a function that failed on some ranks only is to be called again
        comm, request = self._private.Idup()
        self._wait([request])
        self._functions.use(comm)
        self._clean = True

    def _late(self, task_file: TaskFile, header: TaskHeader, mine: RankResult) -> Callable[[], None] | None:
        """What this rank does if the others do not come: nothing, where it has not failed itself."""
        return functools.partial(self._give_up, header, task_file, mine) if mine.failure else None

    def _give_up(self, header: TaskHeader, task_file: TaskFile, mine: RankResult) -> None:
        """Other ranks sit in a collective that this one will never join: publish, and abort the group."""
        if not self._publish(header, task_file, mine):
            # another rank is about to do it: leave it the time
            backoff = Backoff(0.05, 0.5)
            end = time.monotonic() + self._grace
            while time.monotonic() < end:
                backoff.sleep()
        self._private.Abort(settings.EXIT_RENEW)
        os._exit(settings.EXIT_RENEW)  # not reached
