"""Waiting for tasks from outside of their session: nothing is collected, and nothing unpickled."""

from __future__ import annotations

import time
from collections.abc import Iterable

from spoolpool.format.names import parse_task_file
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import Place, SpoolScanner, TaskLocation
from spoolpool.protocol import journal, workers
from spoolpool.protocol.heartbeat import Liveness
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

_ENDED: frozenset[Place] = frozenset({"done", "failed"})
_FIRST_WALK, _LAST_WALK = 2.0, 60.0  # seconds between two looks at all names, for tasks that were collected
_SERVICE_EVERY = 10.0  # seconds between two looks whether somebody can run what is awaited

_KINDS = {"result": "done", "error": "raised", "cancelled": "cancelled", "lost": "lost"}


class Waiter:
    """Looks for the ends of tasks; ``pending`` are those that have not ended as far as was seen.

    A task that its submitter collects is gone. It has ended once two looks in succession saw it nowhere; how, its
    worker's journal may tell.
    """

    def __init__(self, spool: Spool, sights: Iterable[TaskView]) -> None:
        self._spool = spool
        self._ends: dict[str, str] = {}
        self.pending: dict[str, TaskView] = {}
        for sight in sights:
            if sight.location.place in _ENDED:
                self._ends[sight.id] = sight.state
            else:
                self.pending[sight.id] = sight
        self.total = len(self.pending) + len(self._ends)
        self._sessions = {sight.session for sight in self.pending.values()} - {""}
        self._lanes = {sight.lane for sight in self.pending.values()} - {""}
        self._unseen: set[str] = set()
        self._backoff = Backoff(_FIRST_WALK, _LAST_WALK)
        self._walk_due = time.monotonic() + self._backoff.next()
        self._liveness = Liveness(spool)
        self._service_due = 0.0
        self._told: set[str] = set()

    def poll(self) -> int:
        """Look once; returns how many have ended since the last look."""
        before = len(self._ends)
        for session in self._sessions:
            self._note("done", f"results/{session}")
        self._note("failed", "failed")
        if self.pending and time.monotonic() > self._walk_due:
            self._walk_due = time.monotonic() + self._backoff.next()
            self._look_for_collected()
        return len(self._ends) - before

    def _note(self, place: Place, directory: str) -> None:
        for task_file in map(parse_task_file, files.list_names(f"{self._spool.path}/{directory}")):
            if task_file is not None and task_file.task in self.pending:
                self._ends[task_file.task] = TaskView(self._spool, TaskLocation(place, directory, task_file)).state
                del self.pending[task_file.task]

    def _look_for_collected(self) -> None:
        walk = SpoolScanner(self._spool.path)
        seen = {standing.task_file.task for standing in walk.tasks()}
        unseen = self.pending.keys() - seen
        if walk.unlisted:  # it may stand where one may not look
            return
        for task in unseen & self._unseen:
            self._ends[task] = "collected"
            del self.pending[task]
        self._unseen = set(unseen)

    def warnings(self) -> list[str]:
        """What keeps tasks from being run, each reason once; looks now and then."""
        if time.monotonic() < self._service_due:
            return []
        self._service_due = time.monotonic() + _SERVICE_EVERY
        alive = [info for info in workers.read_workers(self._spool) if self._liveness.alive(info)]
        reasons = {lane: workers.why_unserved(lane, alive) for lane in self._lanes}
        new = [f"Tasks of {lane} wait, and {reason}." for lane, reason in reasons.items() if reason]
        new = [text for text in new if text not in self._told]
        self._told.update(new)
        return new

    def ends(self) -> dict[str, str]:
        """How each task ended: a state, or ``collected`` where that is not known."""
        gone = [task for task, end in self._ends.items() if end == "collected"]
        known = {
            event.task: _KINDS.get(event.kind, "") for event in journal.about(self._spool, gone) if event.published
        }
        return {task: (known.get(task) or end if end == "collected" else end) for task, end in self._ends.items()}
