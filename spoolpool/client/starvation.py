"""Measures of a submitter while no outcome comes: a warning if no group serves its tasks, and refreshed listings."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence

from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import parse_task_file
from spoolpool.protocol import heartbeat, workers
from spoolpool.protocol.remedies import start_group
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import NeededTime, TimeShortage, WorkerInfo
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

log = logging.getLogger("spoolpool.session")

_WARNING_SECONDS = 600.0  # between two warnings about one lane
_LOOK_SECONDS = 60.0  # between two looks whether a group was asked to end
_BUCKETS = 16  # of a lane, in which the time that tasks need is looked up
_FIRST_REFRESH, _LAST_REFRESH = 5.0, 600.0  # seconds between two refreshes, growing


class StarvationMonitor:
    """Logger of warnings that no living worker group can run the tasks of a lane, with the reason."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._liveness = heartbeat.Liveness(spool)
        self._warned: dict[str, float] = {}  # by lane: monotonic time of the last warning
        self._serves: dict[str, WorkerInfo] = {}  # by lane: a group that can run its tasks
        self._looked: dict[str, float] = {}  # by lane: monotonic time of the last look whether that group is ending

    def reset(self) -> None:
        """Forget the warnings, after an outcome has come."""
        self._warned.clear()

    def check(self, awaited: Sequence[TaskHeader]) -> None:
        """Warn about each lane of these tasks that no living group serves."""
        now = time.time()  # a warning tolerates the error of this host's clock
        wanted = {header.lane for header in awaited if header.not_before <= now}
        wanted = {lane for lane in wanted if not self._was_warned(lane)}
        unserved = {lane for lane in wanted if not self._is_still_served(lane, awaited)}
        if not unserved:
            return
        infos = workers.read_workers(self._spool)
        self._liveness.keep_only({info.worker for info in (*infos, *self._serves.values())})
        alive = [info for info in infos if self._liveness.is_alive(info)]
        for lane in unserved:
            headers = [header for header in awaited if header.lane == lane]
            reason = workers.why_unserved(lane, alive)
            if reason is None:
                able = (info for info in alive if workers.why_unserved(lane, [info]) is None)
                longest = self._serves[lane] = max(able, key=_end)
                self._looked[lane] = time.monotonic()
                if shortage := self._time_shortage(lane, headers, _end(longest)):
                    self._warn(lane, shortage.tasks, shortage.why, shortage.seconds)
                continue
            if reason == workers.NO_GROUP:
                reason = workers.no_group(self._needed_time(headers))
            self._warn(lane, len(headers), reason)

    def _is_ending(self, lane: str, info: WorkerInfo) -> bool:
        """Return whether the group that serves a lane was asked to end; looks once a minute."""
        if time.monotonic() - self._looked.get(lane, -_LOOK_SECONDS) < _LOOK_SECONDS:
            return False
        self._looked[lane] = time.monotonic()
        return workers.is_ending(self._spool, info.worker)

    def _time_shortage(self, lane: str, awaited: Sequence[TaskHeader], end: float) -> TimeShortage | None:
        """Return the shortage for ready tasks of a lane that need more time than is left until ``end``."""
        if end == math.inf:  # then nothing is listed
            return None
        needed = self._needed_time([header for header in awaited if header.lane == lane])
        return workers.why_too_short(needed, end - self._spool.server_time()) if needed else None

    def _needed_time(self, headers: Sequence[TaskHeader]) -> Counter[NeededTime]:
        """Return the number of these tasks that are ready, by the time that they need.

        Only the oldest buckets are listed: tasks that were given back have been claimed before the others.
        """
        tasks = {header.task for header in headers}
        buckets = sorted({(header.bucket, header.lane) for header in headers})[:_BUCKETS]
        listed = (files.list_names(self._spool.layout.bucket(lane, bucket)) for bucket, lane in buckets)
        found = (task_file for names in listed for task_file in map(parse_task_file, names) if task_file)
        return Counter(NeededTime.of(each) for each in found if each.seconds and each.task in tasks)

    def _was_warned(self, lane: str) -> bool:
        return time.monotonic() - self._warned.get(lane, -_WARNING_SECONDS) < _WARNING_SECONDS

    def _warn(self, lane: str, count: int, reason: str, seconds: int = 0) -> None:
        self._warned[lane] = time.monotonic()
        path = self._spool.path
        log.warning("%d task(s) wait in %s and %s. %s", count, path, reason, start_group(path, lane, seconds))

    def _is_still_served(self, lane: str, awaited: Sequence[TaskHeader]) -> bool:
        """Whether the group found the last time lives, and has enough time for the tasks.

        This saves a look at the entries of thousands of groups.
        """
        info = self._serves.get(lane)
        if info is None or not self._liveness.is_alive(info) or self._is_ending(lane, info):
            return False
        return self._time_shortage(lane, awaited, _end(info)) is None


def _end(info: WorkerInfo) -> float:
    return math.inf if info.ends is None else info.ends


class Refresher:
    """Refreshes, with growing intervals, the directories in which a stale listing may hide a task or its outcome.

    A stale listing may be this host's or another one's: see :func:`spoolpool.system.files.refresh`.
    """

    def __init__(self, spool: Spool, session: str) -> None:
        self._layout = spool.layout
        self._inbox = f"{spool.layout.results}/{session}"
        self._backoff = Backoff(_FIRST_REFRESH, _LAST_REFRESH, 2.0)
        self._due: float | None = None

    def reset(self) -> None:
        """Start anew with short intervals, after an outcome has come."""
        self._backoff.reset()
        self._due = None

    def refresh_if_due(self, awaited: Sequence[TaskHeader]) -> None:
        """Refresh the directories through which these tasks pass, if the interval is over."""
        now = time.monotonic()
        if self._due is not None and now < self._due:
            return
        if self._due is not None:  # None: the wait has just begun
            layout = self._layout
            buckets = {(header.lane, header.bucket) for header in awaited}
            paths = {path for lane, bucket in buckets for path in (layout.lane(lane), layout.bucket(lane, bucket))}
            for directory in (layout.ready, *paths, layout.waiting, layout.claimed, self._inbox):
                files.refresh(directory)
        self._due = now + self._backoff.next()
