"""Status of a spool: task counts, blocked tasks, live worker groups, and the expected end of the work."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from dataclasses import dataclass, field

from spoolpool.format.journal_names import writer_of
from spoolpool.format.names import is_worker_id, parse_lane
from spoolpool.monitor.scan import SpoolScanner, TaskDirectory, count_calls
from spoolpool.monitor.states import STATES, UNREAD
from spoolpool.monitor.task_reader import SeenTask, TaskReader
from spoolpool.protocol import journal, workers
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.progress import TaskProgress, progress_of
from spoolpool.protocol.remedies import start_group
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import GroupState, NeededTime, WorkerInfo, group_state
from spoolpool.system import accounts, files

_TAIL = 1 << 14  # bytes at the end of each live group's journal that give the rate
_CLOCK_SECONDS = 60.0  # until the server's clock is read again
_WINDOW = 300.0  # seconds over which the rate is averaged


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """Tasks that no live group can run."""

    what: str
    """Name of a lane, or a description of the tasks."""
    count: int
    why: str
    remedy: str = ""
    """Sentence with the command that starts a group for them; empty if they are of no lane."""


@dataclass(kw_only=True)
class LaneCounts:
    """Number of tasks of one lane and user; both names are empty if the headers were not read."""

    lane: str
    user: str
    states: Counter[str] = field(default_factory=Counter)
    """Number of tasks by state, or by :data:`UNREAD`."""
    needed: Counter[NeededTime] = field(default_factory=Counter)
    """Number of waiting tasks by the time that they need, without those that need none in particular."""


@dataclass(frozen=True, kw_only=True)
class GroupStatus:
    """A worker group that is not known to be dead, and its task."""

    info: WorkerInfo
    life: GroupState
    """Whether it is alive, or silent and for how long."""
    task: str = ""
    """Id of the running task; empty if the group is idle."""
    name: str = ""
    """Name of its function."""
    label: str = ""
    """Its label, or a preview of its arguments."""
    seconds: float = 0.0
    """Its run time so far, by the server's clock."""
    progress: TaskProgress | None = None
    """Progress that the task reported."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Status of a spool. The spool changes meanwhile, so the numbers belong to slightly different moments."""

    spool: str
    time: float
    """Seconds since the epoch, by the clock of the file server."""
    blocked: tuple[Blocked, ...]
    counts: tuple[LaneCounts, ...]
    groups: tuple[GroupStatus, ...]
    """Live and silent ones, sorted by host, job and id."""
    last_seen: float | None
    """Seconds since the last sign of life of any group, if none is alive; None also if there never was a group."""
    rate: float | None
    """Tasks per second that the live groups finished in the last minutes; None if they finished none."""
    seconds_left: float | None
    """Estimated seconds until all runnable tasks are finished; None if that is unknown."""
    unseen: dict[str, str]
    """Directories that could not be listed, with the reasons."""
    missing: dict[str, int]
    """Texts of supervisors on groups that are missing, with the numbers of groups."""

    def totals(self) -> Counter[str]:
        """Return the number of tasks by state, with zeros; those with unread outcomes are counted as :data:`UNREAD`."""
        found = Counter(dict.fromkeys((*STATES, UNREAD), 0))
        for each in self.counts:
            found.update(each.states)
        return found


@dataclass
class StatusCollector:
    """Collects the status of a spool, once or repeatedly; headers are read once.

    Headers are read of running, finished and failed tasks, as many as a second allows, and of no waiting ones.
    """

    spool: Spool
    _users: dict[str, str] = field(default_factory=dict)
    """Users by lane."""
    _clock: tuple[float, float] | None = None
    """Monotonic time of this host and time of the server, at the same moment."""

    def __post_init__(self) -> None:
        """Begin to observe the spool."""
        self._presence = Presence(self.spool, restore=False)
        self._reader = TaskReader(self.spool)

    def collect(self) -> Status:
        """Return the present status. Raises :class:`BrokenSpool` if the spool was removed, moved or replaced."""
        self._presence.check()
        scanner = SpoolScanner(self.spool.layout.root)
        now = self._now()
        states = self._states(now)
        infos = [info for info, life in states if life.state == "alive"]
        counts: dict[tuple[str, str], LaneCounts] = {}
        running: dict[str, SeenTask] = {}
        self._reader.begin()
        self._users = {}
        for directory in scanner.directories():
            names = scanner.names(directory.path)
            if directory.place == "waiting":
                if names:
                    lane, user = self._lane_and_user(directory)
                    row = counts.setdefault((lane, user), LaneCounts(lane=lane, user=user))
                    for task_file, number in scanner.group(directory, names).items():
                        row.states["waiting"] += number * count_calls("waiting", task_file)
                        if task_file.first:  # calls that have ended in a pack that waits again
                            row.states[UNREAD] += number * task_file.first
                        if task_file.seconds:
                            row.needed[NeededTime.of(task_file)] += number
                continue
            for seen, calls in self._reader.read_directory(scanner, directory, names):
                if seen.state == "running" and seen.lane:
                    running[seen.worker] = seen
                row = counts.setdefault((seen.lane, seen.owner), LaneCounts(lane=seen.lane, user=seen.owner))
                row.states[seen.state] += calls
        rows = tuple(sorted(counts.values(), key=lambda row: (row.lane, row.user)))
        blocked = _blocked(self.spool.path, rows, states, now)
        rates = self._rates([info for info, _ in states], now)
        groups = [self._group(info, life, running.get(info.worker), now) for info, life in states]
        return Status(
            spool=self.spool.path,
            time=now,
            blocked=blocked,
            counts=rows,
            groups=tuple(sorted(groups, key=lambda each: (each.info.process.host, each.info.job, each.info.worker))),
            last_seen=None if infos else self._last_seen(now),
            rate=sum(rates.values()) or None,
            seconds_left=_seconds_left(rows, rates, {each.what: each.count for each in blocked}),
            unseen=scanner.unlisted,
            missing=Counter(workers.read_start_errors(self.spool, {info.worker for info, _ in states}).values()),
        )

    def _now(self) -> float:
        """Return the time by the clock of the file server: heartbeats are dated by it.

        Only a change on the server tells that time, so ``tmp/`` is touched: once a minute, however often the status is
        collected. In between this host measures the difference.
        """
        now = time.monotonic()
        if self._clock is None or now - self._clock[0] > _CLOCK_SECONDS:
            self._clock = now, self.spool.shown_time()
        return self._clock[1] + now - self._clock[0]

    def _states(self, now: float) -> list[tuple[WorkerInfo, GroupState]]:
        """Return the groups that are not provably dead."""
        found = [(info, group_state(self.spool, info, now)) for info in workers.read_workers(self.spool)]
        return [(info, life) for info, life in found if life.state != "dead"]

    def _lane_and_user(self, bucket: TaskDirectory) -> tuple[str, str]:
        """Return lane and user of the waiting tasks in a bucket, by the name of the lane."""
        name = bucket.path.split("/")[1]
        if name not in self._users:
            lane = parse_lane(name)
            user = lane.user if lane and lane.user is not None else self.spool.owner
            self._users[name] = accounts.account_name(user)
        return name, self._users[name]

    def _last_seen(self, now: float) -> float | None:
        """Return the seconds since the last journal entry or heartbeat of any group."""
        where = self.spool.layout
        paths = [f"{where.journal}/{name}" for name in files.list_names(where.journal) if writer_of(name)]
        paths += [f"{where.worker(name)}/beat" for name in files.list_names(where.workers) if is_worker_id(name)]
        stamps = []
        for path in paths:
            with contextlib.suppress(OSError):  # of another account
                stamps.append((files.mtime_ns(path) or 0) / 1e9)
        return now - max(stamps) if stamps else None

    def _group(self, info: WorkerInfo, life: GroupState, view: SeenTask | None, now: float) -> GroupStatus:
        if view is None:
            return GroupStatus(info=info, life=life)
        progress = progress_of(self.spool, info.worker)
        return GroupStatus(
            info=info,
            life=life,
            task=view.id,
            name=view.name,
            label=view.label,
            seconds=max(0.0, now - view.since),
            progress=progress if progress and progress.task == view.id else None,
        )

    def _rates(self, infos: list[WorkerInfo], now: float) -> dict[str, float]:
        """Return the finished tasks per second, by lane.

        A group dates its events by its own clock. So the end of the window is the time of its last event, plus the time
        since the journal was written by the server's clock.
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
                    rates[event.lane] = rates.get(event.lane, 0.0) + max(1, event.calls) / max(end - begin, 1.0)
        return rates


_Groups = list[tuple[WorkerInfo, GroupState]]


def _blocked(path: str, rows: tuple[LaneCounts, ...], states: _Groups, now: float) -> tuple[Blocked, ...]:
    infos = [info for info, life in states if life.state == "alive"]
    silent = [(info, life) for info, life in states if life.state == "silent"]
    waiting: dict[str, int] = {}
    needed: dict[str, Counter[NeededTime]] = {}
    for row in rows:
        if row.states["waiting"]:
            waiting[row.lane] = waiting.get(row.lane, 0) + row.states["waiting"]
            needed.setdefault(row.lane, Counter()).update(row.needed)
    found: list[tuple[str, int, str | None]] = []
    seconds: dict[str, int] = {}
    for lane, count in waiting.items():
        why = _why_blocked(lane, infos, silent)
        if why is not None:
            found.append((lane, count, workers.no_group(needed[lane]) if why == workers.NO_GROUP else why))
        elif shortage := workers.why_too_short(needed[lane], workers.last_end(lane, infos) - now):
            found.append((lane, shortage.tasks, shortage.why))
            seconds[lane] = shortage.seconds
    if not infos:
        # only a worker or 'spool autoscale' moves them to ready/
        held, running = (sum(row.states[state] for row in rows) for state in ("held", "running"))
        found.append(("held back", held, _why_none(silent, "which releases them when they may start")))
        found.append(("claimed by dead groups", running, _why_none(silent, "which releases them")))
    return tuple(
        Blocked(what=what, count=count, why=why, remedy=start_group(path, what, seconds.get(what, 0)))
        for what, count, why in found
        if count and why
    )


def _why_blocked(lane: str, alive: list[WorkerInfo], silent: _Groups) -> str | None:
    """Return the reason why no live group can run the tasks of a lane; None if one can."""
    reason = workers.why_unserved(lane, alive)
    able = [life for info, life in silent if workers.why_unserved(lane, [info]) is None]
    return reason if reason is None or not able else f"{_latest(able)} of the {len(able)} group(s) that could run them"


def _why_none(silent: _Groups, remedy: str) -> str:
    """Return the reason why delayed and claimed tasks do not move while no group is alive."""
    if silent:
        return f"{_latest([life for _, life in silent])} of any group"
    return f"{workers.NO_GROUP}, {remedy}"


def _latest(silent: list[GroupState]) -> str:
    return min(silent, key=lambda life: math.inf if life.silence is None else life.silence).text


def _seconds_left(rows: tuple[LaneCounts, ...], rates: dict[str, float], blocked: dict[str, int]) -> float | None:
    waiting: dict[str, int] = {}
    running: dict[str, int] = {}
    for row in rows:
        waiting[row.lane] = waiting.get(row.lane, 0) + row.states["waiting"]
        running[row.lane] = running.get(row.lane, 0) + row.states["running"]
    left = {
        lane: count - blocked.get(lane, 0) + running[lane]
        for lane, count in waiting.items()
        if lane not in blocked or count > blocked[lane]
    }
    times = [count / rates[lane] for lane, count in left.items() if count and rates.get(lane)]
    return max(times, default=None)
