"""Failure detector: one observer's part of the watch over workers that all observers of a spool keep together.

Each observer makes four rounds a lease. If there are few workers, it checks all of them. If there are many, it checks
a random sample, and of many observers each skips most of its rounds: so the total number of checks grows with the
number of workers, and not with its square. A worker that was seen for the first time, or without a change of
its heartbeat between two checks, is a suspect and is checked in every round until that is decided.

No safety depends on this: any number of observers may watch any worker at any time, or be wrong.
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

MIN_SAMPLE = 16
"""Workers that an observer checks in each round, if there are so many."""

MIN_CHECKS = 2
"""How often each worker is checked in a quarter of a lease, by all observers together and on average."""

MAX_OBSERVERS = 64
"""Number of observers beyond which some of them skip rounds."""

MIN_RATE = 1 / 8
"""Least part of its rounds that an observer takes: one round in two leases."""


def sampling_rate(observers: int) -> float:
    """Return the part of its rounds that each of so many observers takes."""
    return max(MIN_RATE, min(1.0, MAX_OBSERVERS / observers))


def sample_size(workers: int, observers: int) -> int:
    """Return how many workers an observer checks in a round that it takes."""
    return min(workers, max(MIN_SAMPLE, math.ceil(MIN_CHECKS * workers / (observers * sampling_rate(observers)))))


class FailureDetector:
    """One observer of the workers of a spool, with its observations.

    With ``all_workers`` it checks all workers in every round.
    """

    def __init__(self, spool: Spool, *, all_workers: bool = False) -> None:
        self._spool = spool
        self._all_workers = all_workers
        self._lease = spool.config.lease
        self._liveness = Liveness(spool)
        self._processes: dict[str, ProcessId | None] = {}  # None: on another host, so that nothing can be proven here
        self._suspects: set[str] = set()
        self._claims: set[TaskFile] | None = None
        self._observers = 1
        self._takes_round = True

    def due(self) -> bool:
        """Return whether to make a round now: it is this observer's turn, or one of its suspects is dead.

        To be called four times a lease.
        """
        self._takes_round = self._all_workers or random.random() < sampling_rate(self._observers)
        if self._takes_round:
            return True
        return max(map(self._silence, tuple(self._suspects)), default=0.0) >= self._lease

    def check(self, workers: Collection[str], claims: Mapping[str, Collection[TaskFile]]) -> dict[str, bool]:
        """Return the dead among these workers, and for each whether the lock of its claim has expired too.

        A worker whose process lives on this host is not among them, whatever its heartbeat. ``claims`` are those of all
        workers, as they are now.
        """
        self._suspects.intersection_update(workers)
        self._liveness.keep_only(workers)
        self._processes = {worker: self._processes[worker] for worker in workers if worker in self._processes}
        watched = set(self._suspects)
        if self._takes_round:
            count = sample_size(len(workers), self._count_observers(workers, claims))
            watched.update(workers if self._all_workers else random.sample(sorted(workers), count))
        self._identify(watched)
        dead = {worker: True for worker in workers if self._is_provably_dead(worker)}
        for worker in watched - dead.keys():
            # a live process of this host may be silent because its heartbeat processes were killed or stopped
            if (silence := self._silence(worker)) >= self._lease and not self._is_alive_here(worker):
                dead[worker] = silence >= settings.GONE_LEASES * self._lease
        self._suspects -= dead.keys()
        return dead

    def forget(self, worker: str) -> None:
        """Drop the observations of a worker."""
        self._liveness.forget(worker)

    def _count_observers(self, workers: Collection[str], claims: Mapping[str, Collection[TaskFile]]) -> int:
        """Estimate how many workers make rounds.

        A worker that still runs the task of the last check makes none. At the first check all workers with a task are
        assumed to make none: rather too many are checked than too few.
        """
        before, self._claims = self._claims, {task_file for task_files in claims.values() for task_file in task_files}
        busy = {task_file.worker for task_file in self._claims if before is None or task_file in before}
        self._observers = max(1, len(workers) - len(busy))
        return self._observers

    def _silence(self, worker: str) -> float:
        """Return the seconds since the heartbeat changed; suspect the worker if it did not, or is new."""
        new = not self._liveness.knows(worker)
        silence = self._liveness.seconds_since_change(worker)
        if new or silence:
            self._suspects.add(worker)
        else:
            self._suspects.discard(worker)
        return silence

    def _identify(self, workers: Iterable[str]) -> None:
        """Read the entries of these workers once: an entry never changes."""
        for worker in workers:
            if worker not in self._processes and (info := read_worker(self._spool, worker)) is not None:
                self._processes[worker] = info.process if info.process.is_near() else None

    def _is_provably_dead(self, worker: str) -> bool:
        """Return whether the process of a worker of this host has ended, which costs the spool no operation."""
        process = self._processes.get(worker)
        return process is not None and process.is_provably_dead()

    def _is_alive_here(self, worker: str) -> bool:
        """Return whether the process of a worker of this host certainly lives, which costs the spool no operation."""
        process = self._processes.get(worker)
        return process is not None and process.is_alive_here()
