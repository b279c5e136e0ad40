"""Slot of a pool: room for one worker group, and the record of the groups that ran in it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from spoolpool import settings
from spoolpool.format.names import parse_task_file
from spoolpool.launch.launcher import GroupProcess
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Shape
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

_FAILED_STARTS = 3
"""Groups in a row that ended before they announced themselves, after which a slot is exhausted."""
_DEATHS = 6
"""Groups in a row that died before they finished a task, announced or not; by then the pauses between them are 3 s."""
_LATE = 240.0
"""Seconds after which the launcher of a group is asked whether it waits for resources, and between two such looks."""
_PROVEN = 60.0
"""Seconds after which a living group counts as a success, whether or not it was given a task."""


@dataclass(kw_only=True, eq=False)
class Slot:
    """Room for one group of a shape."""

    shape: Shape
    arguments: tuple[str, ...] = ()
    """Options of the worker, besides those of the pool."""
    nodes: tuple[str, ...] = ()
    """Node of each rank, if the nodes are planned; on one host its name."""
    number: int = 0
    """Number of its groups, from 0, that no other live group of the pool has."""
    worker: str = ""
    """Worker id of the latest group."""
    process: GroupProcess | None = None
    """Its processes while they run."""
    backoff: Backoff = field(default_factory=lambda: Backoff(0.1, 30.0, 2.0))
    start_due: float = 0.0
    """Time to start the next group, by the monotonic clock; 0: never."""
    announced: bool = False
    """Whether the latest group has announced itself, that is, has an entry in the spool."""
    proven: bool = False
    """Whether a group has ever announced itself here, so that there is room for one."""
    failed_starts: int = 0
    """Groups in a row that ended before they announced themselves."""
    failed_starts_since_success: int = 0
    """The same, also with deaths of announced groups between them. Without this count, a slot in which some groups die
    before and some after the announcement would get many more groups than :data:`_DEATHS`, with pauses of 30 s."""
    deaths: int = 0
    """Groups in a row that died without having finished a task, except those that held a task."""
    deaths_by_task: int = 0
    """Groups in a row that died while they held their first task."""
    renewals: int = 0
    """Groups in a row that were replaced because of what their tasks had left."""
    _announced_at: float = 0.0
    _look_due: float = 0.0

    def assign(self, worker: str, process: GroupProcess) -> None:
        """Record a group that was started in this slot."""
        self.worker, self.process, self.announced = worker, process, False
        self._look_due = time.monotonic() + _LATE

    def is_late(self) -> bool:
        """Return, once in a while, whether a running group has not announced itself."""
        if self.announced or time.monotonic() < self._look_due:
            return False
        self._look_due = time.monotonic() + _LATE
        return True

    def poll(self, spool: Spool) -> int | None:
        """Record whether the group has announced itself; return its exit status if it has ended: this frees the slot.

        The status says nothing about the reason: a function of a task can end its process with any.
        """
        status = None if self.process is None else self.process.poll()
        if not self.announced and os.path.exists(f"{spool.layout.worker(self.worker)}/info.json"):
            self.announced = self.proven = True
            self.failed_starts = 0
            self._announced_at = time.monotonic()
        if status is not None:
            self.process = None
        return status

    def record_success(self) -> None:
        """Reset the counts of failures and the backoff."""
        self.failed_starts = self.failed_starts_since_success = self.deaths = self.deaths_by_task = 0
        self.backoff.reset()

    def record_renewal(self) -> None:
        """Count a group that ended to be replaced, unless it had lived for long before."""
        seconds = time.monotonic() - self._announced_at
        self.renewals = self.renewals + 1 if seconds < settings.RENEWAL_SECONDS else 1

    def record_failed_start(self) -> None:
        """Count a group that could not be started, or ended before it announced itself."""
        self.failed_starts += 1
        self.failed_starts_since_success += 1

    def record_death(self, spool: Spool) -> None:
        """Count the death of an announced group, after the success that it may have had before."""
        from spoolpool.protocol import journal  # late: deaths are rare

        if time.monotonic() - self._announced_at > _PROVEN or any(
            event.event in ("task", "raised") for event in journal.recent(spool, self.worker)[0]
        ):
            self.record_success()
        if _holds_a_task(spool, self.worker):  # this costs the task an attempt, so that it cannot go on without end
            self.deaths_by_task += 1
            self.backoff.reset()
        else:
            self.deaths += 1

    def is_healthy(self) -> bool:
        """Return whether a group runs here, and none has died since the last success."""
        return self.announced and self.process is not None and not (self.deaths or self.deaths_by_task)

    def is_exhausted(self, *, others_healthy: bool) -> bool:
        """Return whether every group that is started here dies.

        Deaths by tasks count only if groups in other slots are healthy: a task that kills its workers must not exclude
        a node.
        """
        deaths = self.deaths + self.failed_starts_since_success + (self.deaths_by_task if others_healthy else 0)
        return self.failed_starts >= _FAILED_STARTS or deaths >= _DEATHS


def _holds_a_task(spool: Spool, worker: str) -> bool:
    try:
        task_files = map(parse_task_file, files.list_names(spool.layout.claimed))
    except OSError:  # the server does not answer for a moment: unknown
        return False
    return any(task_file is not None and task_file.worker == worker for task_file in task_files)
