"""Messages among the ranks of a group, in their own duplicate of the communicator."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from spoolpool.format.envelope import Buffer
from spoolpool.system.backoff import Backoff
from spoolpool.worker import mpi_messages, mpi_world
from spoolpool.worker.mpi_messages import Head
from spoolpool.worker.rank_wakeup import Wakeup

if TYPE_CHECKING:
    from spoolpool.format.headers import Usage
    from spoolpool.worker.mpi_world import Comm, Request

_ORDER, _PAYLOAD = 1, 3
VOTE, ACK = 2, 4
"""Tags of the answers to rank 0."""


class Intervals(NamedTuple):
    """Seconds before the first check of a message, and at most between two checks."""

    woken: tuple[float, float]
    """On ranks that are woken when a message is sent."""
    polling: tuple[float, float]
    """On the others."""


IDLE = Intervals((0.001, 1.0), (0.0001, 0.02))
BUSY = Intervals((0.001, 0.05), (0.00002, 0.02))


class Answers(NamedTuple):
    """One answer of each rank but 0, which may still be on its way."""

    requests: list[Request]
    messages: list[bytearray]

    def heads(self) -> list[Head]:
        """Return the heads of the answers, after all have come."""
        return [Head.of(message) for message in self.messages]


class RankLink:
    """Messages of one rank to and from the others, with waits that do not spin: the waits of MPI burn a core.

    All ranks make it together. ``share_host`` is called with the communicator of the ranks that share this host.
    ``grace`` is the number of seconds after which a wait calls the function that it was given.
    """

    def __init__(self, comm: Comm, share_host: Callable[[Comm], None], grace: float) -> None:
        self._comm = comm.Dup()
        host = mpi_world.on_this_host(self._comm)
        self._wakeup = Wakeup(host, self._comm)
        share_host(host)
        host.Free()
        self._grace = grace
        self.order = bytearray(mpi_messages.FIRST)
        """Last message from rank 0."""
        self.serial = 0
        """Number of the present task in this group; part of each message."""
        self.others = range(1, self._comm.Get_size())

    def send(
        self,
        rank: int,
        kind: int,
        tag: int = _ORDER,
        mark: int = 0,
        parts: Sequence[Buffer] = (),
        *,
        suspicious: bool = False,
        usage: Usage | None = None,
    ) -> Sequence[Buffer]:
        """Send a message to a rank and wake it; return the parts that were too large for it."""
        head = Head(kind, self.serial, mark, suspicious=suspicious)
        if usage is not None:
            head = head._replace(cpu=usage.cpu, wall=usage.wall, memory=usage.memory, of_process=usage.of_process)
        first, large = head.message(parts)
        request = self._comm.Isend(first, rank, tag)
        self._wakeup.wake(rank)
        self.wait([request])
        return large

    def send_all(self, kind: int, parts: Sequence[Buffer] = ()) -> None:
        """Send a message to all other ranks, and broadcast the parts that are too large for it."""
        first, large = Head(kind, self.serial).message(parts)
        requests = [self._comm.Isend(first, rank, _ORDER) for rank in self.others]
        self._wakeup.wake_all()
        self.wait(requests)
        for part in large:
            self._broadcast(part)

    def receive_order(self, intervals: Intervals = BUSY, late: Callable[[], None] | None = None) -> Head:
        """Receive the next message of rank 0 into :attr:`order`."""
        self.wait([self._comm.Irecv(self.order, 0, _ORDER)], intervals, late)
        if self._wakeup.leads:  # rank 0 is on another host, and cannot wake the ranks of this one
            self._wakeup.wake_all()
        return Head.of(self.order)

    def expect_answers(self, tag: int) -> Answers:
        """Begin to receive one message of each other rank."""
        messages = [bytearray(mpi_messages.FIRST) for _ in self.others]
        requests = [self._comm.Irecv(message, rank, tag) for rank, message in zip(self.others, messages, strict=True)]
        return Answers(requests, messages)

    def _broadcast(self, buffer: Buffer | bytearray) -> None:
        for piece in mpi_messages.pieces(buffer):
            self._comm.Bcast(piece, 0)

    def receive_broadcast(self, length: int) -> memoryview:
        """Receive a part that rank 0 broadcasts."""
        buffer = bytearray(length)
        self._broadcast(buffer)
        return memoryview(buffer)

    def send_payload(self, parts: Sequence[Buffer]) -> None:
        """Send large parts to rank 0."""
        for part in parts:
            for piece in mpi_messages.pieces(part):
                self._comm.Send(piece, 0, _PAYLOAD)

    def receive_payload(self, rank: int, length: int) -> memoryview:
        """Receive a large part from a rank."""
        buffer = bytearray(length)
        for piece in mpi_messages.pieces(buffer):
            self._comm.Recv(piece, rank, _PAYLOAD)
        return memoryview(buffer)

    def wait(
        self, requests: Sequence[Request], intervals: Intervals = BUSY, late: Callable[[], None] | None = None
    ) -> None:
        """Wait until all transfers are done. Call ``late`` after the grace period."""
        if mpi_world.all_done(requests):
            return
        backoff = Backoff(*(intervals.woken if self._wakeup.woken else intervals.polling))
        deadline = time.monotonic() + self._grace
        while not mpi_world.all_done(requests):
            if late is not None and time.monotonic() > deadline:
                late()
            self._wakeup.wait(backoff)

    def duplicate(self) -> Comm:
        """Return a new communicator of the same ranks, made by all ranks together."""
        comm, request = self._comm.Idup()
        self.wait([request])
        return comm

    def abort(self, code: int) -> None:
        """End all ranks of the group at once."""
        self._comm.Abort(code)
