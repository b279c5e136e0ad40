"""Summary of the journals of a spool, of bounded size for any number of tasks."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import get_args

from spoolpool.format.headers import Kind
from spoolpool.format.names import submitted_at
from spoolpool.monitor.report.series import Bar, Bars, Distribution, Level
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.protocol import journal
from spoolpool.protocol.journal import Event
from spoolpool.protocol.spool import Spool

_GROUPS = 20_000  # worker groups with an entry of their own
_ENDS = frozenset(get_args(Kind))
_NAMES = 500  # functions with an entry of their own
_KINDS = 500  # kinds of failures with an entry of their own, besides one for each function
_LAST = 50  # failures and recoveries that are listed
_OTHERS = "(others)"


@dataclass
class GroupSummary:
    """Work of one worker group."""

    host: str
    job: str = ""
    ranks: int = 1
    begin: float = 0.0
    """Seconds since the epoch, like all times here."""
    end: float = 0.0
    tasks: int = 0
    busy: float = 0.0
    """Seconds with a task."""
    last_end: float = 0.0
    """End of its last task so far."""


@dataclass
class Summary:
    """Past work of a spool."""

    spool: str
    created: float
    """Time of the summary."""
    begin: float = 0.0
    """Time of the first event; 0 without events."""
    end: float = 0.0
    tasks: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Number of tasks by the kind of the outcome."""
    dropped: int = 0
    """Outcomes of workers that were taken for dead."""
    retried: int = 0
    """Failed attempts that another attempt followed."""
    waiting_now: int = 0
    names: list[str] = field(default_factory=list)
    """Names of functions; the other fields have indices of this list."""
    durations: dict[int, Distribution] = field(default_factory=dict)
    """Durations of attempts by function."""
    waits: Distribution = field(default_factory=Distribution)
    """Times between submission and claim, which compare the clocks of two hosts."""
    overhead: Distribution = field(default_factory=Distribution)
    """Times between claim and publication of a task without the call itself."""
    pauses: Distribution = field(default_factory=Distribution)
    """Times between two tasks of a group, if the second was already waiting."""
    failures: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Number of failures by function and class of the exception."""
    last_failures: list[Event] = field(default_factory=list)
    recoveries: int = 0
    last_recoveries: list[Event] = field(default_factory=list)
    waiting: Level = field(default_factory=Level)
    running: Level = field(default_factory=Level)
    groups: dict[str, GroupSummary] = field(default_factory=dict)
    bars: Bars = field(default_factory=Bars)

    def hosts(self) -> dict[str, tuple[int, int, float, float]]:
        """Return for each host: groups, tasks, seconds of its groups with a task, and seconds of their lifetimes."""
        found: dict[str, tuple[int, int, float, float]] = {}
        for group in self.groups.values():
            groups, tasks, busy, lifetime = found.get(group.host, (0, 0, 0.0, 0.0))
            lifetime += group.end - group.begin
            found[group.host] = groups + 1, tasks + group.tasks, busy + group.busy, lifetime
        return dict(sorted(found.items()))


def summarize(spool: Spool) -> Summary:
    """Read all journals of a spool once, and count the waiting tasks. Memory does not grow with the number of tasks."""
    summary = Summary(spool.path, time.time())
    reader = _Reader(summary)
    for line in journal.lines(spool):
        reader.read(line.event)
    for location in SpoolScanner(spool.layout.root).tasks({"waiting"}):
        summary.waiting_now += 1
        summary.waiting.add(submitted_at(location.task_file.task), max(summary.created, summary.end))
    summary.last_failures = reader.failures.latest()
    summary.last_recoveries = reader.recoveries.latest()
    return summary


class _Reader:
    """Reads events in the order of their times."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._ids: dict[str, int] = {}
        self.failures = _Latest()
        self.recoveries = _Latest()

    def read(self, event: Event) -> None:
        found = self._summary
        found.begin = min(found.begin or event.t, event.started or event.t)
        found.end = max(found.end, event.t)
        if event.event == "recovered":
            found.recoveries += 1
            self.recoveries.add(event)
        if event.event == "cancelled":
            found.kinds["cancelled"] += 1
        if event.event in ("worker started", "worker ended", "task", "raised"):
            self._read_group(event)

    def _read_group(self, event: Event) -> None:
        by = event.by if event.by in self._summary.groups or len(self._summary.groups) < _GROUPS else _OTHERS
        group = self._summary.groups.get(by)
        if group is None:
            group = self._summary.groups[by] = GroupSummary(event.host, begin=event.started or event.t)
        group.end = max(group.end, event.t)
        if event.event == "worker started":
            group.job, group.ranks = event.job, max(1, event.ranks)
        elif event.started and event.event in ("task", "raised"):
            self._read_attempt(event, group, by)

    def _read_attempt(self, event: Event, group: GroupSummary, row: str) -> None:
        found = self._summary
        ended = event.ended or event.t
        seconds = max(0.0, ended - event.started)
        name = self._id(event.name)
        raised = event.event == "raised"
        failed = raised or event.kind in ("error", "lost")
        group.tasks += 1
        group.busy += seconds
        found.running.add(event.started, ended)
        found.bars.add(row, Bar(event.started, ended, name, event.task[-10:], failed=failed))
        found.durations.setdefault(name, Distribution()).add(event.ran or seconds)
        if event.ran:
            found.overhead.add(seconds - event.ran)
        if event.submitted:
            found.waits.add(event.started - event.submitted)
            found.waiting.add(event.submitted, event.started)
            if 0 < event.submitted < group.last_end <= event.started:
                found.pauses.add(event.started - group.last_end)
        group.last_end = ended
        if failed:
            kind = (name, event.type)
            found.failures[kind if kind in found.failures or len(found.failures) < _KINDS else (name, _OTHERS)] += 1
            self.failures.add(event)
        if raised:
            found.retried += 1
        else:
            found.tasks += 1
            kind_of_end = event.kind or "result"
            found.kinds[kind_of_end if kind_of_end in _ENDS else _OTHERS] += 1
            found.dropped += not event.published

    def _id(self, name: str) -> int:
        """Return the index of a function's name; all names beyond the limit share one."""
        if name not in self._ids:
            if len(self._ids) >= _NAMES:
                name = _OTHERS
            if name not in self._ids:
                self._ids[name] = len(self._summary.names)
                self._summary.names.append(name)
        return self._ids[name]


class _Latest:
    """The latest of some unsorted events."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Event]] = []
        self._number = 0

    def add(self, event: Event) -> None:
        self._number += 1
        entry = event.t, self._number, event
        if len(self._heap) < _LAST:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def latest(self) -> list[Event]:
        return [event for *_, event in sorted(self._heap)]
