"""Measures of a submitter while no outcome comes: a warning if no group serves its tasks, and refreshed listings."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from spoolpool.format.headers import TaskHeader
from spoolpool.protocol import heartbeat, workers
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

log = logging.getLogger("spoolpool.session")

_WARNING_SECONDS = 600.0  # between two warnings about one lane
_FIRST_REFRESH, _LAST_REFRESH = 5.0, 600.0  # seconds between two refreshes, growing


class StarvationMonitor:
    """Logger of warnings that no living worker group can run the tasks of a lane, with the reason."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._liveness = heartbeat.Liveness(spool)
        self._warned: dict[str, float] = {}  # by lane: monotonic time of the last warning
        self._serves: dict[str, WorkerInfo] = {}  # by lane: a group that can run its tasks

    def reset(self) -> None:
        """Forget the warnings, after an outcome has come."""
        self._warned.clear()

    def check(self, awaited: Sequence[TaskHeader]) -> None:
        """Warn about each lane of these tasks that no living group serves."""
        now = time.time()  # a warning tolerates the error of this host's clock
        wanted = {header.lane for header in awaited if header.not_before <= now}
        if all(time.monotonic() - self._warned.get(lane, -_WARNING_SECONDS) < _WARNING_SECONDS for lane in wanted):
            return
        unserved = {lane for lane in wanted if not self._is_still_served(lane)}
        if not unserved:
            return
        infos = workers.read_workers(self._spool)
        self._liveness.keep_only({info.worker for info in (*infos, *self._serves.values())})
        alive = [info for info in infos if self._liveness.is_alive(info)]
        for lane in unserved:
            reason = workers.why_unserved(lane, alive)
            if reason is None:
                self._serves[lane] = next(info for info in alive if workers.why_unserved(lane, [info]) is None)
            elif time.monotonic() - self._warned.get(lane, -_WARNING_SECONDS) >= _WARNING_SECONDS:
                self._warned[lane] = time.monotonic()
                count = sum(1 for header in awaited if header.lane == lane)
                log.warning("%d task(s) wait in %s and %s.", count, self._spool.path, reason)

    def _is_still_served(self, lane: str) -> bool:
        """Whether the group found the last time lives; this saves a look at the entries of thousands of groups."""
        info = self._serves.get(lane)
        return info is not None and self._liveness.is_alive(info)


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
