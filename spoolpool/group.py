"""Worker groups: one process, or the ranks of an MPI communicator, that run one task at a time together.

Rank 0 has the task; the others hear of it through their own duplicate of the communicator, so that no
message of ours can meet one of a function's::

    rank 0                                   other ranks
    Ibcast  order, serial, lengths      ->   (idle: tested in the rhythm of a Backoff)
    bcast   header, pickle, buffers     ->
    ------------------- every rank runs the call -------------------
    <- vote: serial, failed or not           everybody votes before any payload is sent
    verdict: send, or drop              ->
    <- payloads, in rank order               all of them, or the lowest failed rank's alone

A rank whose function raised does not wait for ever for ranks that sit in a collective with it: after a
grace period it publishes its exception itself and aborts the group.
"""

from __future__ import annotations

import array
import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from spoolpool import call, settings
from spoolpool.backoff import Backoff
from spoolpool.call import Presets, Report
from spoolpool.context import CurrentTask
from spoolpool.envelope import Buffer
from spoolpool.errors import LauncherError
from spoolpool.layout import Token
from spoolpool.task import TaskHeader

if TYPE_CHECKING:
    from mpi4py import MPI

_RUN, _STOP = 1, 2
_SEND, _DROP = 1, 2
_VOTE, _VERDICT, _PAYLOAD = 1, 2, 3
_PIECE = 1 << 30  # bytes: MPI counts are 32-bit integers

_IDLE = (0.0001, 0.01)
_BUSY = (0.00002, 0.02)

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


class MPIGroup:
    """The ranks of one communicator. Made by all ranks together; rank 0 runs, the others :meth:`serve`.

    After a task in which a rank raised, messages of the function that nobody received may be left in its
    communicator, where the next task could read them as its own. Then the group is ``tainted``: a
    supervised group ends and is replaced; another one goes on with a new communicator in the place of
    ``MPI.COMM_WORLD``.
    """

    def __init__(
        self, comm: MPI.Comm, publish: Publish, *, supervised: bool, grace: float, ends: float | None = None
    ) -> None:
        self.comm = comm
        self.size = comm.Get_size()
        self.rank = comm.Get_rank()
        self.tainted = False
        self._private = comm.Dup()
        self._publish = publish
        self._supervised = supervised
        self._grace = grace
        self._ends = ends
        self._presets = Presets()
        self._serial = 0

    def knows(self, init: str) -> bool:
        """Whether this ``init_function`` was called in the group."""
        return self._presets.knows(init)

    # -- rank 0

    def run(self, token: Token, header: TaskHeader, content: Init, init: Init | None) -> tuple[Report, int]:
        """Run a call on all ranks; returns the joined values, or the exception of the lowest failed rank."""
        self._serial += 1
        self._order(_RUN)
        self._private.bcast((token, header, _lengths(content), init and _lengths(init)), root=0)
        for part in (content, init):
            if part is not None:
                for buffer in (part[0], *part[1]):
                    self._bcast(buffer)
        mine = self._call(token, header, content, init)
        votes = [bool(mine.failure), *self._votes(mine, header, token)]
        failed = any(votes)
        chosen = [votes.index(True)] if failed else list(range(self.size))
        for rank in range(1, self.size):
            verdict = array.array("q", [self._serial, _SEND if rank in chosen else _DROP, failed])
            _wait(self._private.Isend(verdict, dest=rank, tag=_VERDICT), _BUSY)
        reports = [mine if rank == 0 else self._receive(rank) for rank in chosen]
        self._after(failed)
        if failed:
            return reports[0], self.size
        return join(reports), self.size

    def stop(self) -> None:
        """End the other ranks."""
        self._order(_STOP)

    def _order(self, what: int) -> None:
        order = array.array("q", [what, self._serial])
        _wait(self._private.Ibcast(order, root=0), _BUSY)

    def _votes(self, mine: Report, header: TaskHeader, token: Token) -> list[bool]:
        buffers = [array.array("q", [0, 0]) for _ in range(1, self.size)]
        requests = [self._private.Irecv(buffer, source=rank + 1, tag=_VOTE) for rank, buffer in enumerate(buffers)]
        rhythm = Backoff(*_BUSY)
        deadline = time.monotonic() + self._grace
        waiting = list(requests)
        while waiting:
            waiting = [request for request in waiting if not request.Test()]
            if waiting:
                if mine.failure and time.monotonic() > deadline:
                    self._give_up(header, token, mine)
                rhythm.sleep()
        wrong = [rank + 1 for rank, vote in enumerate(buffers) if vote[0] != self._serial]
        if wrong:
            raise LauncherError(f"Ranks {wrong} voted about another task than {self._serial}: the group is broken.")
        return [bool(vote[1]) for vote in buffers]

    def _receive(self, rank: int) -> Report:
        lengths, failure = self._private.recv(source=rank, tag=_PAYLOAD)
        payload, *buffers = [bytearray(length) for length in lengths]
        for buffer in (payload, *buffers):
            for piece in _pieces(buffer):
                self._private.Recv(piece, source=rank, tag=_PAYLOAD)
        return Report(memoryview(payload), [memoryview(buffer) for buffer in buffers], failure)

    # -- the other ranks

    def serve(self) -> None:
        """Run what rank 0 runs until it ends the group."""
        while True:
            order = array.array("q", [0, 0])
            _wait(self._private.Ibcast(order, root=0), _IDLE)
            if order[0] == _STOP:
                return
            self._serial = order[1]
            token, header, lengths, init_lengths = self._private.bcast(None, root=0)
            content = self._received(lengths)
            init = self._received(init_lengths) if init_lengths else None
            mine = self._call(token, header, content, init)
            vote = array.array("q", [self._serial, bool(mine.failure)])
            sent = self._private.Isend(vote, dest=0, tag=_VOTE)
            verdict = array.array("q", [0, 0, 0])
            request = self._private.Irecv(verdict, source=0, tag=_VERDICT)
            rhythm = Backoff(*_BUSY)
            deadline = time.monotonic() + self._grace
            while not request.Test():
                if mine.failure and time.monotonic() > deadline:
                    self._give_up(header, token, mine)
                rhythm.sleep()
            sent.Wait()
            if verdict[1] == _SEND:
                self._private.send((_lengths(mine), mine.failure), dest=0, tag=_PAYLOAD)
                for buffer in (mine.payload, *mine.buffers):
                    for piece in _pieces(buffer):
                        self._private.Send(piece, dest=0, tag=_PAYLOAD)
            self._after(bool(verdict[2]))

    def _received(self, lengths: list[int]) -> Init:
        payload, *buffers = [bytearray(length) for length in lengths]
        for buffer in (payload, *buffers):
            self._bcast(buffer)
        return memoryview(payload), [memoryview(buffer) for buffer in buffers]

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
        return call.run(task, *content, cwd=header.cwd, init=header.init, init_content=init, presets=self._presets)

    def _bcast(self, buffer: Buffer | bytearray) -> None:
        for piece in _pieces(buffer):
            self._private.Bcast(piece, root=0)

    def _after(self, failed: bool) -> None:
        """Make sure that no later task can receive what this one left behind."""
        if not failed:
            return
        self.tainted = True
        if not self._supervised:
            from mpi4py import MPI

            self.comm = self._private.Dup()
            MPI.COMM_WORLD = self.comm  # type: ignore[misc, assignment]

    def _give_up(self, header: TaskHeader, token: Token, mine: Report) -> None:
        """Other ranks sit in a collective that this one will never join: publish, and abort the group."""
        from mpi4py import MPI

        if not self._publish(header, token, mine):
            # another rank is about to do it: leave it the time
            rhythm = Backoff(0.05, 0.5)
            end = time.monotonic() + self._grace
            while time.monotonic() < end:
                rhythm.sleep()
        MPI.COMM_WORLD.Abort(settings.EXIT_RENEW)
        os._exit(settings.EXIT_RENEW)  # not reached


def _wait(request: Any, rhythm: tuple[float, float]) -> None:
    """Wait without spinning: MPI's own waits burn a core."""
    if request.Test():
        return
    pause = Backoff(*rhythm)
    while not request.Test():
        pause.sleep()


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

    def leave(self) -> None:
        """Wait, without spinning, until every rank of every group is about to end."""
        _wait(self._comm.Ibarrier(), _IDLE)

    @staticmethod
    def abort(code: int) -> None:
        """End all ranks at once."""
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(code)
