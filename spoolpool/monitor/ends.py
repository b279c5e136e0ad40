"""Counts of the ends of tasks, from the events of the journals and from the spool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from spoolpool.format.names import MOST_CALLS, is_task_id, submitted_at
from spoolpool.monitor.calls import PackView
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.monitor.states import STATE_OF_OUTCOME, End, end_of_event, next_end
from spoolpool.protocol.journal import DROPPED, Event
from spoolpool.protocol.spool import Spool

_TASKS = 100_000  # whose ends are known one by one: bounds the memory
_RETRIED = 10_000  # tasks whose retries are known
_READ = 10_000  # outcomes that are read from the spool at most
_PENDING = frozenset(("held", "waiting", "running"))


def _ends_of_kinds(kinds: Mapping[str, int]) -> Counter[End]:
    found: Counter[End] = Counter()
    for kind, end in STATE_OF_OUTCOME.items():
        found[end] = kinds.get(kind, 0)  # type: ignore[index]  # a finished call has one of these states
    return found


class EndCounter:
    """Counter of tasks by their ends. Events are read in the order of their times.

    Counts are exact for up to 100 000 tasks, if no piece of a journal was dropped. Of more, those that ended first are
    counted with the end that they had by then. Of a dropped piece the numbers of its ends are left.
    """

    def __init__(self) -> None:
        self._ends: dict[str, End | None] = {}  # by task; None if no end is known
        self._calls: dict[str, int] = {}  # of packs: number of calls
        self._kinds: dict[str, Counter[End]] = {}  # of packs that have ended: ends of their calls
        self._of_open_packs: Counter[End] = Counter()  # of the calls that have ended in packs that wait or run
        self._retried: dict[str, float] = {}  # by task: time of the latest retry
        self._untimed: set[str] = set()  # tasks with a delivered outcome of which no worker has an event
        self._settled: Counter[End] = Counter()  # of tasks that are in the dictionary no more
        self._settled_any = False
        self._dropped: set[tuple[str, str, str]] = set()  # counts of dropped pieces that were read
        self._horizon = 0.0  # time of the last event that was dropped
        self._delivered: set[str] = set()  # tasks of which no event but the delivery tells the end
        self._lost_track = 0  # tasks without an end that are in the dictionary no more
        self.pending: Counter[str] = Counter()
        """Tasks in the spool without an end, by state; after :meth:`compare`."""
        self.unknown = 0
        """Submitted tasks that are not in the spool, and whose ends no journal tells; after :meth:`compare`."""

    def read(self, event: Event) -> None:
        """Count an event."""
        if event.event == DROPPED:
            self._read_dropped(event)
        else:
            self._read(event.about, event)

    def _read(self, task: str, event: Event) -> None:
        self._note_calls(task, event)
        if event.event == "submitted":
            self._ends.setdefault(task, None)
        elif event.event in ("retried", "removed") or end_of_event(event) is not None:
            # writers that share a file each have a buffer, so that an earlier event may come later
            if event.t < self._retried.get(task, 0.0):
                return
            if event.event == "retried" and len(self._retried) < _RETRIED:
                self._retried[task] = event.t
            if self._settled_any and event.event == "collected" and task not in self._ends:
                return  # its end was counted before
            if event.event != "collected":
                self._untimed.discard(task)
                self._delivered.discard(task)
            elif self._ends.get(task) is None:
                self._delivered.add(task)
                if len(self._untimed) < _READ:
                    self._untimed.add(task)
            if event.event not in ("retried", "removed"):
                self._find_lost(task)
            self._ends[task] = next_end(self._ends.get(task), event)
        if len(self._ends) > _TASKS:
            self._settle()

    def _note_calls(self, task: str, event: Event) -> None:
        """Note the number of the calls of a pack, and their ends."""
        if 0 < event.calls <= MOST_CALLS:
            self._calls[task] = event.calls
            if event.ends and event.published:
                self._kinds[task] = _ends_of_kinds(event.ends)

    def _read_dropped(self, event: Event) -> None:
        """Count the ends of tasks in a dropped piece of a journal."""
        key = event.name, event.type, event.kind
        if key not in self._dropped and len(self._dropped) < _READ:
            self._dropped.add(key)
            self._horizon = max(self._horizon, event.ended)
            end = end_of_event(msgspec.structs.replace(event, event=event.type, published=True))
            if end is not None:
                self._settled[end] += event.calls

    def _forget_dropped(self) -> None:
        """Forget tasks whose ends were dropped, and counted: their submission or delivery is in another journal."""
        for task, end in list(self._ends.items()):
            was_dropped = is_task_id(task) and submitted_at(task) < self._horizon
            if was_dropped and (end is None or task in self._delivered):
                del self._ends[task]
                self._untimed.discard(task)

    def _settle(self) -> None:
        """Count half of the tasks, and forget them: those that ended first, then those without an end.

        It looks at all of them, so it must make room for as many events as that costs.
        """
        self._settled_any = True
        ended_first = sorted(self._ends, key=lambda task: self._ends[task] is None)
        for task in ended_first[: len(ended_first) // 2]:
            end = self._ends.pop(task)
            self._delivered.discard(task)
            if end is None:
                self._lost_track += self._calls.get(task, 1)
            else:
                self._settled.update(self._ends_of(task, end))
            self._calls.pop(task, None)
            self._kinds.pop(task, None)

    def _ends_of(self, task: str, end: End) -> Mapping[End, int]:
        """Return the number of calls of a task by their ends, given that of the task."""
        calls = self._calls.get(task, 1)
        kinds = self._kinds.get(task)
        if kinds is not None and end in STATE_OF_OUTCOME.values() and kinds.total() == calls:
            return kinds
        return {end: calls}

    def _find_lost(self, task: str) -> None:
        """Count a task no more as one without an end, if it was forgotten as such."""
        if self._lost_track and task not in self._ends:
            self._lost_track -= self._calls.get(task, 1)

    @property
    def horizon(self) -> float:
        """Time until which journals may have been dropped, with their ends in numbers alone; 0 if none were."""
        return self._horizon

    @property
    def without_end(self) -> int:
        """Number of submitted tasks of which no event tells the end."""
        return self._lost_track + sum(self._calls.get(task, 1) for task, end in self._ends.items() if end is None)

    def compare(self, spool: Spool) -> list[TaskView]:
        """Compare with the tasks in the spool: those that wait or run have no end, and the journals may lack others.

        Returns tasks of which the journals lack the end, or its time.
        """
        lacking: list[TaskView] = []
        self._of_open_packs.clear()
        seen = set()
        if self._horizon:
            self._forget_dropped()
        for location in SpoolScanner(spool.layout.root).tasks():
            task = location.task_file.task
            if task in seen:  # it moved meanwhile
                continue
            calls = PackView(TaskView(spool, location)) if location.task_file.calls else None
            if location.place in _PENDING:
                for state, number in calls.states().items() if calls else ((location.place, 1),):
                    if state in _PENDING:
                        self.pending[state] += number
                    else:
                        self._of_open_packs[state] += number  # type: ignore[index]  # of an ended call
                self._find_lost(task)
                self._ends.pop(task, None)
                seen.add(task)
            elif len(lacking) < _READ and (self._lacks(task) or task in self._untimed):
                view = TaskView(spool, location)
                lacking.append(view)
                if self._lacks(task):
                    if calls:
                        self._calls[task] = location.task_file.calls
                        self._kinds[task] = calls.states()  # type: ignore[assignment]  # of ended calls
                    self._ends[task] = view.state  # type: ignore[assignment]  # of an ended task
        self.unknown = self.without_end
        return lacking

    def _lacks(self, task: str) -> bool:
        """Return whether no event tells the end of an ended task; False if that was forgotten."""
        if submitted_at(task) < self._horizon:
            return False
        return self._ends.get(task) is None and (task in self._ends or not self._settled_any)

    def counts(self) -> Counter[End]:
        """Return the number of tasks by end."""
        found = self._settled + self._of_open_packs
        for task, end in self._ends.items():
            if end is not None:
                found.update(self._ends_of(task, end))
        return found
