"""One place for a worker group: what stands in it now, and how it went with those that stood there before."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from spoolpool import settings
from spoolpool.format.names import parse_task_file
from spoolpool.launch.launcher import GroupProcess
from spoolpool.protocol import journal
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Shape
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

_FAILED_STARTS = 3
"""Groups in a row that ended before they announced themselves: then it is no bad luck."""
_DEATHS = 6
"""Groups in a row that died before they had finished a task, announced or not; the pauses are 3 s by then."""
_PROVEN = 60.0
"""Seconds after which a group that lives does well, whether or not it was given a task."""


@dataclass(kw_only=True, eq=False)
class Slot:
    """One place for a group."""

    shape: Shape
    arguments: tuple[str, ...] = ()
    place: tuple[str, ...] = ()
    """The node of each rank, where the nodes are dealt out; on one host its name."""
    worker: str = ""
    process: GroupProcess | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(0.1, 30.0, 2.0))
    start_due: float = 0.0
    """When to start the next group, by the monotonic clock; 0: not."""
    served: bool = False
    """Whether the group that stands here announced itself."""
    failed_starts: int = 0
    """Groups in a row that ended before they announced themselves."""
    failed_starts_since_success: int = 0
    """Likewise, also where announced groups died between them. Without this count, a place where some groups die before
    and some after the announcement would get many more groups than :data:`_DEATHS`, with pauses of 30 s."""
    deaths: int = 0
    """Groups in a row that died without having done anything; not those that died of a task that they held."""
    deaths_of_tasks: int = 0
    """Groups in a row that died of the first task that they had."""
    _announced: float = 0.0

    def stands(self, worker: str, process: GroupProcess) -> None:
        """A new group was started here."""
        self.worker, self.process, self.served = worker, process, False

    def look(self, spool: Spool) -> int | None:
        """See whether the group announced itself, and whether it ended: its exit code then, and the place is free."""
        code = None if self.process is None else self.process.poll()
        if not self.served and os.path.exists(f"{spool.layout.worker(self.worker)}/info.json"):
            self.served = True
            self.failed_starts = 0
            self._announced = time.monotonic()
        if code is not None:
            self.process = None
            if code in (0, settings.EXIT_RENEW):
                self.did_well()
        return code

    def did_well(self) -> None:
        """What went wrong before counts no more."""
        self.failed_starts = self.failed_starts_since_success = self.deaths = self.deaths_of_tasks = 0
        self.backoff.reset()

    def record_failed_start(self) -> None:
        """Count a group that could not be started, or ended before it announced itself."""
        self.failed_starts += 1
        self.failed_starts_since_success += 1

    def died(self, spool: Spool) -> None:
        """The group that had announced itself died: whose fault is it?"""
        if time.monotonic() - self._announced > _PROVEN or any(
            event.event in ("task", "raised") for event in journal.recent(spool, self.worker)[0]
        ):
            self.did_well()
        if _holds_a_task(spool, self.worker):  # it costs that task an attempt: it cannot go on like this
            self.deaths_of_tasks += 1
            self.backoff.reset()
        else:
            self.deaths += 1

    def thrives(self) -> bool:
        """Whether a group runs here, and none died since one did well."""
        return self.served and self.process is not None and not (self.deaths or self.deaths_of_tasks)

    def hopeless(self, *, others_thrive: bool) -> bool:
        """Whether every group that is started here dies.

        That groups die of tasks says something about this place only where groups in other places do not: a task that
        kills its workers must not cost anybody a node.
        """
        deaths = self.deaths + self.failed_starts_since_success + (self.deaths_of_tasks if others_thrive else 0)
        return self.failed_starts >= _FAILED_STARTS or deaths >= _DEATHS


def _holds_a_task(spool: Spool, worker: str) -> bool:
    try:
        task_files = map(parse_task_file, files.list_names(spool.layout.claimed))
    except OSError:  # the server is away for a moment: then it is not known
        return False
    return any(task_file is not None and task_file.worker == worker for task_file in task_files)
