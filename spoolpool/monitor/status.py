"""How a spool is doing, for people: what blocks, what waits and runs, who works on what, and when it may be done."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field

from spoolpool.format.names import is_worker_id, parse_lane, writer_of
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import Place, SpoolScanner, TaskLocation
from spoolpool.protocol import journal, workers
from spoolpool.protocol.progress import TaskProgress, progress_of
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.system import accounts, files

_HEADERS = 500  # that one look opens; those of earlier looks are remembered
_TAIL = 1 << 14  # bytes at the end of each live group's journal from which the rate is taken
_WINDOW = 300.0  # seconds that count for it


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """Tasks that nobody will run as things are."""

    what: str
    """A lane, or which tasks else."""
    count: int
    why: str


@dataclass(kw_only=True)
class Counts:
    """Tasks of one lane and user. ``lane`` is empty for those of which only names were looked at."""

    lane: str
    user: str
    held: int = 0
    waiting: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class Group:
    """A live worker group, and what it does."""

    info: WorkerInfo
    task: str = ""
    """Id of the task that it runs; empty if it is idle."""
    name: str = ""
    """What that calls."""
    seconds: float = 0.0
    """For how long it has been running, by the server's clock."""
    progress: TaskProgress | None = None
    """How far the task says it is."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """One look at a spool; it changes while it is looked at, so that the numbers are of slightly different moments."""

    spool: str
    time: float
    """Of the look: seconds since the epoch, by the clock that dates the spool's files."""
    blocked: tuple[Blocked, ...]
    counts: tuple[Counts, ...]
    groups: tuple[Group, ...]
    """By host, job and id."""
    last_seen: float | None
    """Seconds since a group was heard of, where none is alive; None also where there never was one."""
    rate: float | None
    """Tasks per second that the live groups ended in the last minutes; None where they ended none."""
    seconds_left: float | None
    """Until what waits and can be run is done, at that rate; None where nothing can be said."""
    unseen: dict[str, str]
    """Directories that could not be listed, with the reasons."""

    def total(self, place: Place) -> int:
        """Tasks in one place."""
        return sum(getattr(each, place) for each in self.counts)


@dataclass
class StatusCollector:
    """Looks at a spool, once or again and again; what never changes is read once.

    Directories are listed, and some headers read of tasks that run, are done or failed: none of those that wait.
    """

    spool: Spool
    _seen: dict[str, TaskView] = field(default_factory=dict)
    _lanes: dict[str, tuple[str, str]] = field(default_factory=dict)
    _opened: int = 0

    def collect(self) -> Status:
        """Count everything."""
        walk = SpoolScanner(self.spool.path)
        now = self._now()
        infos = self._alive(now)
        counts: dict[tuple[str, str], Counts] = {}
        runs: dict[str, TaskView] = {}
        before, self._seen = self._seen, {}
        self._opened, self._lanes = 0, {}
        for standing in walk.tasks():
            found = self._whose(standing, before)
            if found is None:
                continue
            lane, user = found
            row = counts.setdefault((lane, user), Counts(lane=lane, user=user))
            setattr(row, standing.place, getattr(row, standing.place) + 1)
            if standing.place == "running" and standing.task_file.name in self._seen:
                runs[standing.task_file.worker] = self._seen[standing.task_file.name]
        rows = tuple(sorted(counts.values(), key=lambda row: (row.lane, row.user)))
        blocked = _blocked(rows, infos)
        rates = self._rates(infos, now)
        groups = [self._group(info, runs.get(info.worker), now) for info in infos]
        return Status(
            spool=self.spool.path,
            time=now,
            blocked=blocked,
            counts=rows,
            groups=tuple(sorted(groups, key=lambda each: (each.info.process.host, each.info.job, each.info.worker))),
            last_seen=None if infos else self._last_seen(now),
            rate=sum(rates.values()) or None,
            seconds_left=_seconds_left(rows, rates, {each.what for each in blocked}),
            unseen=walk.unlisted,
        )

    def _now(self) -> float:
        try:
            return self.spool.server_time()
        except OSError:  # one may look and not write: this host's clock has to do
            return time.time()

    def _alive(self, now: float) -> list[WorkerInfo]:
        """Groups that are not provably dead, and were heard of within a lease."""
        lease = self.spool.config.lease
        return [
            info
            for info in workers.read_workers(self.spool)
            if not info.process.is_provably_dead()
            and (workers.seconds_since_heartbeat(self.spool, info.worker, now) or 0.0) <= lease
        ]

    def _whose(self, standing: TaskLocation, before: dict[str, TaskView]) -> tuple[str, str] | None:
        """Lane and user of a task, by its lane's name if it waits, else by its header; None if it has moved on."""
        if standing.place == "waiting":
            if standing.directory not in self._lanes:
                lane = parse_lane(standing.lane)
                user = lane.user if lane and lane.user is not None else os.lstat(self.spool.path).st_uid
                self._lanes[standing.directory] = (standing.lane, accounts.account_name(user))
            return self._lanes[standing.directory]
        name = standing.task_file.name
        sight = before.get(name)
        if sight is None and self._opened < _HEADERS:
            self._opened += 1
            sight = TaskView(self.spool, standing)
        if sight is None:
            return "", ""
        if sight.gone:
            return None
        self._seen[name] = sight
        return sight.lane, sight.owner

    def _last_seen(self, now: float) -> float | None:
        """Seconds since a group was heard of: since the last line of a journal, or the last sign of life."""
        where = self.spool.layout
        paths = [f"{where.journal}/{name}" for name in files.list_names(where.journal) if writer_of(name)]
        paths += [f"{where.worker(name)}/beat" for name in files.list_names(where.workers) if is_worker_id(name)]
        stamps = []
        for path in paths:
            with contextlib.suppress(OSError):  # not ours to see
                stamps.append((files.mtime_ns(path) or 0) / 1e9)
        return now - max(stamps) if stamps else None

    def _group(self, info: WorkerInfo, sight: TaskView | None, now: float) -> Group:
        if sight is None:
            return Group(info=info)
        told = progress_of(self.spool, info.worker)
        return Group(
            info=info,
            task=sight.id,
            name=sight.name,
            seconds=max(0.0, now - sight.since),
            progress=told if told and told.task == sight.id else None,
        )

    def _rates(self, infos: list[WorkerInfo], now: float) -> dict[str, float]:
        """Tasks per second and lane.

        Each group's events are dated by its own clock, so the window ends where that stood when the journal was written
        last, and goes on by the server's clock.
        """
        rates: dict[str, float] = {}
        for info in infos:
            events, written = journal.recent(self.spool, info.worker, _TAIL)
            if not events:
                continue
            end = events[-1].t + max(0.0, now - written)
            begin = max(end - _WINDOW, events[0].t)
            for event in events:
                if event.event == "task" and event.t > begin:
                    rates[event.lane] = rates.get(event.lane, 0.0) + 1.0 / max(end - begin, 1.0)
        return rates


def _blocked(rows: tuple[Counts, ...], infos: list[WorkerInfo]) -> tuple[Blocked, ...]:
    waiting: dict[str, int] = {}
    for row in rows:
        if row.waiting:
            waiting[row.lane] = waiting.get(row.lane, 0) + row.waiting
    found = [(lane, count, workers.why_unserved(lane, infos)) for lane, count in waiting.items()]
    if not infos:
        found.append(("held back", sum(row.held for row in rows), workers.NO_GROUP))
        found.append(("claimed by groups that died", sum(row.running for row in rows), workers.NO_GROUP))
    return tuple(Blocked(what=what, count=count, why=why) for what, count, why in found if count and why)


def _seconds_left(rows: tuple[Counts, ...], rates: dict[str, float], blocked: set[str]) -> float | None:
    left: dict[str, int] = {}
    for row in rows:
        if row.lane not in blocked:
            left[row.lane] = left.get(row.lane, 0) + row.waiting + row.running
    times = [count / rates[lane] for lane, count in left.items() if count and rates.get(lane)]
    return max(times, default=None)
