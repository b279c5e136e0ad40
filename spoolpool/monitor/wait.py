"""Waiting for tasks from outside of their session: nothing is collected, and nothing unpickled."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from spoolpool.format.names import is_bucket, parse_task_file
from spoolpool.monitor.calls import CallView, views_at
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import Place, SpoolScanner, TaskLocation
from spoolpool.monitor.states import State, end_after
from spoolpool.protocol import journal, workers
from spoolpool.protocol.heartbeat import Liveness
from spoolpool.protocol.journal import Event
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.remedies import start_group
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import NeededTime, WorkerInfo
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

_PENDING: frozenset[State] = frozenset({"held", "waiting", "running"})
_FIRST_SCAN, _LAST_SCAN = 2.0, 60.0  # seconds between two full scans, which find collected tasks
_WARNINGS_EVERY = 10.0  # seconds between two checks for tasks that no group can run


class Waiter:
    """Polls for the ends of tasks; ``pending`` has the tasks that have not ended as far as is known.

    A task that its submitter collected is gone: it counts as ended after two successive scans without it. The journal
    of its worker may tell how it ended.
    """

    def __init__(self, spool: Spool, views: Iterable[TaskView]) -> None:
        self._spool = spool
        self._ends: dict[str, str] = {}
        self.pending: dict[str, TaskView] = {}
        for view in views:
            if view.state in _PENDING:
                self.pending[view.id] = view
            else:
                self._ends[view.id] = view.state
        self.total = len(self.pending) + len(self._ends)
        self._packs = {view.location.task_file.task for view in self.pending.values() if isinstance(view, CallView)}
        self._sessions = {view.session for view in self.pending.values()} - {""}
        self._lanes = {view.lane for view in self.pending.values()} - {""}
        self._missing: set[str] = set()
        self._backoff = Backoff(_FIRST_SCAN, _LAST_SCAN)
        self._scan_due = time.monotonic() + self._backoff.next()
        self._liveness = Liveness(spool)
        self._presence = Presence(spool, restore=False)
        self._warnings_due = 0.0
        self._warned: set[str] = set()

    def poll(self) -> int:
        """List the directories of ended tasks; return the number of tasks that have ended since the last call.

        Raises :class:`BrokenSpool` if the spool was removed, moved or replaced.
        """
        before = len(self._ends)
        if not self._presence.check_if_due():
            return 0
        for session in self._sessions:
            self._list("done", f"results/{session}")
        self._list("failed", "failed")
        if self.pending and time.monotonic() > self._scan_due:
            self._scan_due = time.monotonic() + self._backoff.next()
            if self._presence.check():  # else all are missing
                self._find_collected()
        return len(self._ends) - before

    def _list(self, place: Place, directory: str) -> None:
        for task_file in map(parse_task_file, files.list_names(f"{self._spool.layout.root}/{directory}")):
            if task_file is None or not (task_file.calls or task_file.task in self.pending):
                continue
            location = TaskLocation(place, directory, task_file)
            views = views_at(self._spool, location) if task_file.task in self._packs else iter(())
            for view in (TaskView(self._spool, location), *views):
                if view.id in self.pending:
                    self._ends[view.id] = view.state
                    del self.pending[view.id]
                    self._packs.discard(task_file.task)  # its calls have all ended, and need not be read again

    def _find_collected(self) -> None:
        scanner = SpoolScanner(self._spool.layout.root)
        present = {location.task_file.task for location in scanner.tasks()}
        missing = {task for task, view in self.pending.items() if view.location.task_file.task not in present}
        if scanner.unlisted:  # the task may be in a directory that this account cannot list
            return
        for task in missing & self._missing:
            self._ends[task] = "collected"
            del self.pending[task]
        self._missing = set(missing)

    def warnings(self) -> list[str]:
        """Return the reasons for which no group can run some of the tasks, each once; checks them now and then."""
        if time.monotonic() < self._warnings_due:
            return []
        self._warnings_due = time.monotonic() + _WARNINGS_EVERY
        alive = [info for info in workers.read_workers(self._spool) if self._liveness.is_alive(info)]
        reasons = {lane: workers.why_unserved(lane, alive) for lane in self._lanes}
        path = self._spool.path
        new = [
            f"Tasks of {lane} wait, and {reason}. {start_group(path, lane)}"
            for lane, reason in reasons.items()
            if reason
        ]
        new = [text for text in new if text not in self._warned]
        self._warned.update(new)
        return [*new, *self._time_shortages(alive)]

    def _time_shortages(self, alive: list[WorkerInfo]) -> Iterator[str]:
        """Yield the lanes with tasks for which no group has enough time, each once, with the reasons."""
        for lane in self._lanes - self._warned:
            end = workers.last_end(lane, alive)
            if end == math.inf:  # then the lane is not listed: it may have a million tasks
                continue
            scanner = SpoolScanner(self._spool.layout.root)
            needed: Counter[NeededTime] = Counter()
            for bucket in scanner.valid_paths(f"ready/{lane}", is_bucket):
                needed.update(
                    NeededTime.of(each.task_file)
                    for each in scanner.task_files("waiting", bucket, claimed=False)
                    if each.task_file.seconds and each.task_file.task in self.pending
                )
            if shortage := workers.why_too_short(needed, end - self._spool.shown_time()):
                self._warned.add(lane)
                remedy = start_group(self._spool.path, lane, shortage.seconds)
                yield f"Tasks of {lane} wait, and {shortage.why}. {remedy}"

    def ends(self) -> dict[str, str]:
        """Return the end of each task, or ``collected`` if it is not known."""
        gone: dict[str, list[Event]] = {task: [] for task, end in self._ends.items() if end == "collected"}
        for event in journal.about(self._spool, gone):
            gone[event.about].append(event)
        for task, events in gone.items():
            self._ends[task] = end_after(events) or "collected"
        return dict(self._ends)
