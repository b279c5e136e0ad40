"""Worker group of the ranks of an MPI communicator.

Rank 0 has the task; the others receive it through their own duplicate of the communicator, so that no message of the
group can meet a message of a function. Each message begins with its kind and the number of the task in this group, and
contains all small parts::

    rank 0                                   other ranks
    order: run, the call                ->   (idle: woken by a FIFO, or polling with backoff)
    (broadcast of a large call)         ->
    ------------------- every rank runs the call -------------------
    <- vote: done or failed, its value       a large value is kept back until all ranks have voted
    verdict: send it or drop it         ->   all of them send, or the lowest failed rank alone
    <- (large values, in rank order)
    ----------- each removes the messages that the function left in its communicator -----------
    <- ready, with the severity of what the function left there

A rank whose function raised does not wait for ever for ranks that wait in a collective with it: after a grace period
it publishes its exception itself and aborts the group.
"""

from __future__ import annotations

import functools
import os
import pickle
import time
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from spoolpool import settings
from spoolpool.calls import usage
from spoolpool.calls.interruption import Publish
from spoolpool.calls.leftovers import Severity
from spoolpool.calls.results import DependencyValue
from spoolpool.calls.run import RankResult
from spoolpool.errors import LauncherError
from spoolpool.format.headers import TaskHeader, Usage
from spoolpool.system.backoff import Backoff
from spoolpool.worker import mpi_messages
from spoolpool.worker.group import Group, RankEnvironment, TaskCall
from spoolpool.worker.mpi_link import ACK, IDLE, VOTE, Answers, RankLink
from spoolpool.worker.mpi_messages import Content, Head
from spoolpool.worker.mpi_world import CommunicatorCleaner

if TYPE_CHECKING:
    from spoolpool.worker.mpi_world import Comm

_RUN, _STOP, _RENEW, _SEND, _DROP, _DONE, _FAILED, _READY = range(1, 9)

_RENEWALS = 500  # MPICH has 2048 communicators in all, and functions may need some


def join(reports: Sequence[RankResult]) -> RankResult:
    """Join the ranks' values to one payload: a list of (pickle, number of its buffers), then all the buffers."""
    pickles = [(bytes(report.payload), len(report.buffers)) for report in reports]
    return RankResult(pickle.dumps(pickles, protocol=5), [b for report in reports for b in report.buffers], None)


def _usage_of(mine: RankResult, votes: Sequence[Head]) -> Usage | None:
    """Return what all ranks have used together."""
    if mine.usage is None:
        return None
    others = [Usage(cpu=vote.cpu, wall=vote.wall, memory=vote.memory, of_process=vote.of_process) for vote in votes]
    return usage.join([mine.usage, *others])


class _Verdict:
    """Decision of rank 0 about the end of a task; in force until all ranks are ready for the next one."""

    def __init__(self, chosen: Sequence[int], *, alike: bool) -> None:
        self.chosen = chosen
        """Ranks whose values, or whose exception, are the outcome."""
        self.alike = alike
        """Whether all ranks ended alike."""
        self.acks: Answers | None = None
        """Answers of the ranks that the verdict was sent to; None before."""


class MPIGroup(Group):
    """Ranks of one communicator. All ranks make it together; rank 0 runs calls, the others :meth:`serve`.

    No task can receive a message that an earlier task left in the communicator that both were given. Messages between
    ranks that were not received are removed once all ranks are done: each rank ends with a message to every rank, and
    MPI keeps the order of messages between two ranks. No call of MPI finds the message of a collective; so if the
    ranks did not all end alike (one failed, or they called different collectives), a supervised group is ``tainted``:
    it ends and is replaced. A group without a supervisor continues with a new communicator in the place of
    ``MPI.COMM_WORLD``, :data:`_RENEWALS` times.
    """

    def __init__(
        self,
        comm: Comm,
        publish: Publish,
        environment: RankEnvironment | None = None,
        *,
        supervised: bool,
        grace: float,
    ) -> None:
        super().__init__(environment, supervised=supervised)
        self.size = comm.Get_size()
        self.rank = comm.Get_rank()
        self._publish = publish
        self._grace = grace
        self._link = RankLink(comm, self._environment.share_host, grace)
        self._cleaner = CommunicatorCleaner(comm)
        self._verdict: _Verdict | None = None
        self._damaged = False
        self._suspicious = False

    @property
    def tainted(self) -> bool:
        """Whether the group must be replaced, because a call may have left something behind in it."""
        return self._damaged or super().tainted

    # -- rank 0

    def run(self, call: TaskCall) -> tuple[RankResult, int]:
        """Run a call on all ranks.

        Return the joined values, or the exception of the lowest failed rank, and the number of values in it.
        """
        link = self._link
        self._get_ready()
        link.serial += 1
        about = call.task_file, call.header, [(each.session, each.task, each.ranks) for each in call.dependencies]
        values = [(each.payload, each.buffers) for each in call.dependencies]
        link.send_all(_RUN, mpi_messages.parts(about, call.content, call.init, *values))
        answers = link.expect_answers(VOTE)
        mine = self._run_here(call)
        link.wait(answers.requests, late=self._when_late(call, mine))
        votes = answers.heads()
        self._suspicious = self._is_suspicious or any(vote.suspicious for vote in votes)
        if wrong := [vote.serial for vote in votes if vote.serial != link.serial]:
            raise LauncherError(f"Ranks voted about task {wrong[0]} in place of {link.serial}: the group is broken.")
        failed = [0] if mine.failure else [rank for rank, vote in enumerate(votes, 1) if vote.kind == _FAILED][:1]
        alike = all(vote.mark == self._mark(mine, call.header) for vote in votes)
        chosen = failed or range(self.size)
        self._damaged = self._damaged or self._must_end(alike=alike)
        self._verdict = _Verdict(chosen, alike=alike)
        if failed or not all(vote.inside for vote in votes):  # otherwise it can wait until the outcome is published
            self._judge(self._verdict)
        reports = [mine if rank == 0 else self._report(rank, answers.messages[rank - 1]) for rank in chosen]
        joined = reports[0] if failed or self.size == 1 else join(reports)
        return joined._replace(usage=_usage_of(mine, votes)), self.size

    def settle(self, *, idle: bool) -> None:
        """Prepare all ranks for the next task; see :meth:`spoolpool.worker.group.Group.settle`."""
        if self._verdict is not None:
            self._judge(self._verdict)
            found = self._look_here()
            # unless alike, the ranks wait for this one to make a new communicator with them
            if idle or found or self._suspicious or not self._verdict.alike:
                self._get_ready()

    def stop(self) -> None:
        """End the other ranks after the last task."""
        self._get_ready()
        self._link.send_all(_STOP)
        super().stop()

    def _judge(self, verdict: _Verdict) -> None:
        """Tell each rank whether to send its value, and that all ranks are done with the function."""
        if verdict.acks is not None:
            return
        verdict.acks = self._link.expect_answers(ACK)
        for rank in self._link.others:
            self._link.send(rank, _SEND if rank in verdict.chosen else _DROP, mark=verdict.alike)
        self._cleaner.end(self._link.serial)

    def _get_ready(self) -> None:
        """Ensure that each rank is done with the task before, and that none of its messages is left."""
        verdict, self._verdict = self._verdict, None
        if verdict is None:
            return
        self._judge(verdict)
        assert verdict.acks is not None
        found = self._look_here()
        if verdict.alike:  # first: once all are ready, their last messages are there; else they wait for this rank
            self._link.wait(verdict.acks.requests)
        self._clean_up(alike=verdict.alike)
        self._link.wait(verdict.acks.requests)
        acks = verdict.acks.heads()
        self.severity = max([found, *(Severity(ack.mark >> 1) for ack in acks)])
        if not (self._cleaner.clean and all(ack.mark & 1 for ack in acks)):
            self._link.send_all(_RENEW)
            self._renew()

    def _report(self, rank: int, vote: bytearray) -> RankResult:
        failure, (value,) = mpi_messages.unpack(vote, functools.partial(self._link.receive_payload, rank))
        assert value is not None
        return RankResult(*value, failure)

    # -- the other ranks

    def serve(self) -> None:
        """Run the calls of rank 0 until it ends the group."""
        while (order := self._link.receive_order(IDLE)).kind != _STOP:
            if order.kind == _RENEW:
                self._renew()
            else:
                self._link.serial = order.serial
                self._serve(*mpi_messages.unpack(self._link.order, self._link.receive_broadcast))
        super().stop()

    def _serve(self, about: tuple[Any, ...], contents: Sequence[Content | None]) -> None:
        (task_file, header, names), (content, init, *values) = about, contents
        assert content is not None
        dependencies = [
            DependencyValue(session, task, ranks, *value)
            for (session, task, ranks), value in zip(names, values, strict=True)
            if value is not None
        ]
        call, link = TaskCall(task_file, header, content, init, dependencies), self._link
        mine = self._run_here(call)
        parts = mpi_messages.parts(mine.failure, (mine.payload, mine.buffers))
        kind, mark = _FAILED if mine.failure else _DONE, self._mark(mine, header)
        large = link.send(0, kind, VOTE, mark, parts, suspicious=self._is_suspicious, usage=mine.usage)
        verdict = link.receive_order(late=self._when_late(call, mine))
        if verdict.serial != link.serial:
            raise LauncherError(f"Rank 0 judges task {verdict.serial}, and rank {self.rank} ran {link.serial}.")
        self._cleaner.end(link.serial)
        if verdict.kind == _SEND:
            link.send_payload(large)
        self._clean_up(alike=bool(verdict.mark))
        link.send(0, _READY, ACK, self._cleaner.clean | self._look_here() << 1)

    # -- all ranks

    def _run_here(self, call: TaskCall, comm: Any = None) -> RankResult:
        self._cleaner.begin()
        return super()._run_here(call, self._cleaner.comm)

    def _mark(self, mine: RankResult, header: TaskHeader) -> int:
        """Return a number that is the same on all ranks that ended alike."""
        raised = mine.failure.type if mine.failure else ""
        return zlib.crc32(f"{self._cleaner.collectives} {raised} {self.is_initialized(header.init)}".encode())

    def _clean_up(self, *, alike: bool) -> None:
        """Ensure that no later task can receive a message of this one, once all ranks are done with it."""
        self._cleaner.sweep(self._link.serial, self._grace)
        if not alike and not self._must_end(alike=alike):
            self._renew()

    def _must_end(self, *, alike: bool) -> bool:
        """Return whether the group is to be replaced, because its ranks did not end alike."""
        return not alike and (self._supervised or self._cleaner.renewals == _RENEWALS)

    def _renew(self) -> None:
        """Continue with a new communicator.

        The old one is never freed: MPICH would assign its number again, and with it the messages under that number.
        """
        self._initializers = self._new_initializers()  # a function that failed on some ranks only is to be called again
        self._cleaner.renew(self._link.duplicate())

    def _when_late(self, call: TaskCall, mine: RankResult) -> Callable[[], None] | None:
        """Return the action of this rank if the others are late: none, unless it has failed itself.

        Its guard kills a rank that it has interrupted after the end of rank 0: the task is recovered as from a dead
        worker, and must not get the interruption as its outcome.
        """
        failed = mine.failure and not self._environment.interrupter.abandoned
        return functools.partial(self._give_up, call, mine) if failed else None

    def _give_up(self, call: TaskCall, mine: RankResult) -> None:
        """Publish the failure and abort the group: other ranks wait in a collective that this one will never join."""
        if not self._publish(call.header, call.task_file, mine, None):
            # another rank publishes and aborts now: leave it the time
            backoff = Backoff(0.05, 0.5)
            end = time.monotonic() + self._grace
            while time.monotonic() < end:
                backoff.sleep()
        self._link.abort(settings.EXIT_RENEW)
        os._exit(settings.EXIT_RENEW)  # not reached
