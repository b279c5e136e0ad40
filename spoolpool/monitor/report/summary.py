"""Summary of the journals of a spool, of bounded size for any number of tasks."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from dataclasses import dataclass, field

from spoolpool.format.headers import OutcomeHeader
from spoolpool.format.names import submitted_at
from spoolpool.monitor.ends import EndCounter
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.report.resource_use import ResourceUse
from spoolpool.monitor.report.series import Bar, Bars, Distribution, Level
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.monitor.states import STATE_OF_OUTCOME, End
from spoolpool.protocol import journal
from spoolpool.protocol.journal import Event
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import group_state, read_workers

_GROUPS = 20_000  # worker groups with an entry of their own
_CALLS = 100  # calls of a group that are followed at a time
_NAMES = 500  # functions with an entry of their own
_KINDS = 500  # kinds of failures with an entry of their own, besides one for each function
_LAST = 50  # failures and recoveries that are listed
_LABEL = 60  # characters of a label
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
    ended: bool = False
    """Whether it has recorded its end, or a recoverer its death."""
    tasks: int = 0
    busy: float = 0.0
    """Seconds with a task."""
    last_end: float = 0.0
    """End of its last task so far."""
    calls: dict[str, Event] = field(default_factory=dict)
    """Calls without an end so far, by task."""


@dataclass
class Summary:
    """Past work of a spool."""

    spool: str
    created: float
    """Time of the summary."""
    begin: float = 0.0
    """Time of the first event; 0 without events."""
    end: float = 0.0
    ends: Counter[End] = field(default_factory=Counter)
    """Number of tasks by their ends."""
    pending: Counter[str] = field(default_factory=Counter)
    """Number of the tasks in the spool that have not ended, by state."""
    timed: Counter[str] = field(default_factory=Counter)
    """Number of published outcomes by kind whose times are recorded."""
    unknown: int = 0
    """Submitted tasks that are not in the spool any more, and whose ends no journal tells."""
    horizon: float = 0.0
    """Time until which journals may have been dropped: the numbers of their ends are counted, and nothing else."""
    dropped: int = 0
    """Outcomes of workers that were taken for dead."""
    retried: int = 0
    """Failed attempts that another attempt followed."""
    names: list[str] = field(default_factory=list)
    """Names of functions; the other fields have indices of this list."""
    durations: dict[int, Distribution] = field(default_factory=dict)
    """Durations of attempts by function."""
    resources: dict[int, ResourceUse] = field(default_factory=dict)
    """Resources used by function."""
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

    @property
    def tasks(self) -> int:
        """Number of tasks that have ended."""
        return sum(self.ends.values()) + self.unknown

    @property
    def untimed(self) -> int:
        """Number of tasks that a function ended, at times that are not recorded."""
        return max(0, self.ends["done"] + self.ends["raised"] - self.timed["result"] - self.timed["error"])

    def hosts(self) -> dict[str, tuple[int, int, float, float]]:
        """Return for each host: groups, tasks, seconds of its groups with a task, and seconds of their lifetimes."""
        found: dict[str, tuple[int, int, float, float]] = {}
        for group in self.groups.values():
            groups, tasks, busy, lifetime = found.get(group.host or "unknown", (0, 0, 0.0, 0.0))
            lifetime += group.end - group.begin
            found[group.host or "unknown"] = groups + 1, tasks + group.tasks, busy + group.busy, lifetime
        return dict(sorted(found.items()))


def summarize(spool: Spool) -> Summary:
    """Read all journals of a spool once, and list its tasks. Memory does not grow with the number of tasks."""
    summary = Summary(spool.path, time.time())
    reader = _Reader(summary)
    ends = EndCounter()
    for line in journal.lines(spool):
        reader.read(line.event)
        ends.read(line.event)
    for location in SpoolScanner(spool.layout.root).tasks({"waiting"}):
        summary.waiting.add(submitted_at(location.task_file.task), max(summary.created, summary.end))
    reader.read_outcomes(ends.compare(spool))
    reader.extend_live(spool)
    summary.ends, summary.pending, summary.unknown = ends.counts(), ends.pending, ends.unknown
    summary.horizon = ends.horizon
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
            self._read_death(event)
        elif event.event == "given back":
            self._read_death(event)
        elif event.event in ("worker started", "worker ended", "claimed", "task", "raised"):
            self._read_group(event)

    def _read_group(self, event: Event) -> None:
        by = event.by if event.by in self._summary.groups or len(self._summary.groups) < _GROUPS else _OTHERS
        group = self._summary.groups.get(by)
        if group is None:
            group = self._summary.groups[by] = GroupSummary(event.host, begin=event.started or event.t)
        group.end = max(group.end, event.t)
        if event.event == "worker started":
            group.job, group.ranks = event.job, max(1, event.ranks)
        elif event.event == "worker ended":
            group.ended = True
        elif event.event == "claimed":
            if len(group.calls) < _CALLS:
                group.calls[event.task] = event
        else:
            group.calls.pop(event.task, None)
            self._read_attempt(event, group, by)

    def _read_death(self, event: Event) -> None:
        """Count an attempt that its group did not end, if its begin is known, and the task if it was lost."""
        if event.kind == "lost":
            self._count_failure(self._id(event.name), f"lost: {event.reason}", event)
        group = self._summary.groups.get(event.worker)
        if group is None:
            return
        group.ended = group.ended or event.event == "recovered"
        call = group.calls.pop(event.task, None)
        if call is not None and event.t > call.started:
            group.end = max(group.end, event.t)
            self._add_run(
                call,
                event.t,
                group,
                event.worker,
                failed=event.event == "recovered" and event.kind not in ("result", "cancelled"),
            )
            self._summary.durations.setdefault(self._id(call.name), Distribution()).add(event.t - call.started)

    def read_outcomes(self, views: list[TaskView]) -> None:
        """Read the outcomes of tasks whose ends are in no journal: their workers were killed within a second."""
        found = [(view, view.outcome) for view in views]
        read = sorted(
            ((outcome, view) for view, outcome in found if outcome is not None and outcome.started), key=_ended
        )
        for outcome, view in read:
            event = Event(
                t=outcome.ended,
                event="task",
                by=outcome.worker,
                host=outcome.host,
                task=view.id,
                name=view.name,
                label=view.label,
                submitted=view.header.submitted if view.header is not None else 0.0,
                started=outcome.started,
                ended=outcome.ended,
                kind=outcome.kind,
                type=outcome.failure.type if outcome.failure else "",
            )
            self._read_group(event)
        for worker in {outcome.worker for outcome, _ in read}:
            if (bars := self._summary.bars.rows.get(worker)) is not None:
                bars.sort(key=lambda bar: bar.begin)

    def extend_live(self, spool: Spool) -> None:
        """Extend the groups that live to the present: their lifetimes, and the calls that they run."""
        now = max(self._summary.created, self._summary.end)
        for info in read_workers(spool):
            group = self._summary.groups.get(info.worker)
            if group is None or group.ended or group_state(spool, info, now).state != "alive":
                continue
            group.end = now
            self._summary.end = now
            for call in group.calls.values():
                self._add_run(call, now, group, info.worker, failed=False)

    def _add_run(self, event: Event, ended: float, group: GroupSummary, row: str, *, failed: bool) -> None:
        """Add the time in which a group had a task."""
        group.tasks += 1
        group.busy += max(0.0, ended - event.started)
        self._summary.running.add(event.started, ended)
        task = f"{event.task[-10:]} {event.label[:_LABEL]}".rstrip()
        bar = Bar(event.started, ended, self._id(event.name), task, failed=failed)
        self._summary.bars.add(row, bar)

    def _read_attempt(self, event: Event, group: GroupSummary, row: str) -> None:
        found = self._summary
        ended = event.ended or event.t
        seconds = max(0.0, ended - event.started)
        raised = event.event == "raised"
        failed = raised or event.kind in ("error", "lost")
        if event.started:
            if event.event == "task" and event.published:
                kind = event.kind or "result"  # any text that another account has written
                found.timed[kind if kind in STATE_OF_OUTCOME else _OTHERS] += 1
            self._add_run(event, ended, group, row, failed=failed)
            self._add_durations(event, ended, seconds, group)
        if failed:
            self._count_failure(self._id(event.name), event.type or event.kind, event)
        found.retried += raised
        found.dropped += not (raised or event.published)

    def _count_failure(self, name: int, what: str, event: Event) -> None:
        kind, failures = (name, what), self._summary.failures
        failures[kind if kind in failures or len(failures) < _KINDS else (name, _OTHERS)] += 1
        self.failures.add(event)

    def _add_durations(self, event: Event, ended: float, seconds: float, group: GroupSummary) -> None:
        found, name = self._summary, self._id(event.name)
        found.durations.setdefault(name, Distribution()).add(event.ran or seconds)
        if event.ran:
            found.overhead.add(seconds - event.ran)
        if event.ran and event.memory:
            found.resources.setdefault(name, ResourceUse()).add(event)
        if event.submitted:
            found.waits.add(event.started - event.submitted)
            found.waiting.add(event.submitted, event.started)
            if 0 < event.submitted < group.last_end <= event.started:
                found.pauses.add(event.started - group.last_end)
        group.last_end = ended

    def _id(self, name: str) -> int:
        """Return the index of a function's name; all names beyond the limit share one."""
        if name not in self._ids:
            if len(self._ids) >= _NAMES:
                name = _OTHERS
            if name not in self._ids:
                self._ids[name] = len(self._summary.names)
                self._summary.names.append(name)
        return self._ids[name]


def _ended(read: tuple[OutcomeHeader, TaskView]) -> float:
    return read[0].ended


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
