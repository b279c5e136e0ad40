"""Who is dead: one observer's part of the watch that all observers of a spool keep together.

Each goes round four times a lease. Where there are few workers it looks at everybody. Where there are many it looks at
a random share, and where many go round it leaves most of its rounds to the others: so the looks that all take together
grow with the number of workers, and not with its square. Whoever did not move from one look to the next, or was seen
for the first time, is looked at in every round until that is decided.

Nothing that is safe depends on this: any number of observers may watch anybody at any time, or be wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping

from spoolpool import settings
from spoolpool.format.names import TaskFile
from spoolpool.protocol.heartbeat import Liveness
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import read_worker
from spoolpool.system.processes import ProcessId

FEW = 16
"""Workers that an observer always looks at in a round, if there are so many."""

LOOKS = 2
"""Of all workers, how often one is looked at in a quarter of a lease by all observers together, at least."""

CROWD = 64
"""Observers beyond which not each goes round four times a lease."""

SELDOM = 1 / 8
"""The least part of its rounds that an observer takes: those of two leases come to one."""


def sampling_rate(observers: int) -> float:
    """Which part of its rounds each of so many observers takes."""
    return max(SELDOM, min(1.0, CROWD / observers))


def sample_size(workers: int, observers: int) -> int:
    """How many workers an observer looks at in a round that it takes."""
    return min(workers, max(FEW, math.ceil(LOOKS * workers / (observers * sampling_rate(observers)))))


class Detector:
    """One observer of the workers of a spool, with what it has seen so far.

    ``everybody``: it watches all in every round, and leaves nothing to others.
    """

    def __init__(self, spool: Spool, *, everybody: bool = False) -> None:
        self._spool = spool
        self._everybody = everybody
        self._lease = spool.config.lease
        self._liveness = Liveness(spool)
        self._processes: dict[str, ProcessId | None] = {}  # None: of another host, of which nothing can be proven here
        self._suspects: set[str] = set()
        self._claims: set[TaskFile] | None = None
        self._observers = 1
        self._going = True

    def due(self) -> bool:
        """Whether to go round now: it is this observer's turn, or one that it suspects has turned out dead.

        To be asked four times a lease.
        """
        self._going = self._everybody or random.random() < sampling_rate(self._observers)
        if self._going:
            return True
        return max(map(self._still, tuple(self._suspects)), default=0.0) >= self._lease

    def look(self, workers: Collection[str], claims: Mapping[str, Collection[TaskFile]]) -> dict[str, bool]:
        """Which of these workers are dead, and of each whether also a lock that it holds says nothing any more.

        ``claims`` are those of all workers, as they are now.
        """
        self._suspects.intersection_update(workers)
        self._liveness.keep(workers)
        self._processes = {worker: self._processes[worker] for worker in workers if worker in self._processes}
        watched = set(self._suspects)
        if self._going:
            count = sample_size(len(workers), self._count(workers, claims))
            watched.update(workers if self._everybody else random.sample(sorted(workers), count))
        self._identify(watched)
        dead = {worker: True for worker in workers if self._provably_dead(worker)}
        for worker in watched - dead.keys():
            if (still := self._still(worker)) >= self._lease:
                dead[worker] = still >= settings.GONE_LEASES * self._lease
        self._suspects -= dead.keys()
        return dead

    def forget(self, worker: str) -> None:
        """Drop what was seen of a worker."""
        self._liveness.forget(worker)

    def _count(self, workers: Collection[str], claims: Mapping[str, Collection[TaskFile]]) -> int:
        """How many workers go round, as far as can be seen.

        Who is in the middle of the same task as at the last look does not. At the first look all who have a task are
        taken to be: rather too much is looked at than too little.
        """
        before, self._claims = self._claims, {task_file for task_files in claims.values() for task_file in task_files}
        busy = {task_file.worker for task_file in self._claims if before is None or task_file in before}
        self._observers = max(1, len(workers) - len(busy))
        return self._observers

    def _still(self, worker: str) -> float:
        """Look at a sign of life: seconds for which it has not moved. Suspected is who did not, or is new."""
        new = not self._liveness.knows(worker)
        still = self._liveness.look(worker)
        if new or still:
            self._suspects.add(worker)
        else:
            self._suspects.discard(worker)
        return still

    def _identify(self, workers: Iterable[str]) -> None:
        """Read who these are, once: an entry never changes."""
        for worker in workers:
            if worker not in self._processes and (info := read_worker(self._spool, worker)) is not None:
                self._processes[worker] = info.process if info.process.is_near() else None

    def _provably_dead(self, worker: str) -> bool:
        """Whether the process of a worker of this host has ended: asked at no cost for the spool."""
        process = self._processes.get(worker)
        return process is not None and process.is_provably_dead()
