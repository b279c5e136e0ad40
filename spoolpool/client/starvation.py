"""What a submitter sees to while nothing comes: that somebody serves it, and that no listing hides its tasks."""

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

_TELL_EVERY = 600.0
_FIRST_REFRESH, _LAST_REFRESH = 5.0, 600.0


class StarvationMonitor:
    """Tells a submitter, once in a while, that nobody can run what it waits for, and why."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._liveness = heartbeat.Liveness(spool)
        self._told: dict[str, float] = {}
        self._serves: dict[str, WorkerInfo] = {}  # a group that can run the tasks of a lane

    def served(self) -> None:
        """Something came: forget what was told."""
        self._told.clear()

    def check(self, awaited: Sequence[TaskHeader]) -> None:
        """Look who lives and compare with what is wanted."""
        now = time.time()  # a hint for people: this host's clock will do
        wanted = {header.lane for header in awaited if header.not_before <= now}
        if all(time.monotonic() - self._told.get(lane, -_TELL_EVERY) < _TELL_EVERY for lane in wanted):
            return
        unserved = {lane for lane in wanted if not self._served_still(lane)}
        if not unserved:
            return
        alive = [info for info in workers.read_workers(self._spool) if self._liveness.alive(info)]
        for lane in unserved:
            reason = workers.why_unserved(lane, alive)
            if reason is None:
                self._serves[lane] = next(info for info in alive if workers.why_unserved(lane, [info]) is None)
            elif time.monotonic() - self._told.get(lane, -_TELL_EVERY) >= _TELL_EVERY:
                self._told[lane] = time.monotonic()
                count = sum(1 for header in awaited if header.lane == lane)
                log.warning("%d task(s) wait in %s and %s.", count, self._spool.path, reason)

    def _served_still(self, lane: str) -> bool:
        """Whether the group that was found the last time lives: then nobody looks at thousands of others."""
        info = self._serves.get(lane)
        return info is not None and self._liveness.alive(info)


class Refresher:
    """Lets everybody, this submitter included, list anew where a task that it waits for may be hidden from them.

    Seldom, and the longer nothing comes the more so. :func:`spoolpool.system.files.refresh` says what hides a name.
    """

    def __init__(self, spool: Spool, session: str) -> None:
        self._where = spool.layout
        self._inbox = f"{spool.layout.results}/{session}"
        self._backoff = Backoff(_FIRST_REFRESH, _LAST_REFRESH, 2.0)
        self._due: float | None = None

    def reset(self) -> None:
        """Something came."""
        self._backoff.reset()
        self._due = None

    def look(self, awaited: Sequence[TaskHeader]) -> None:
        """Nothing came: refresh what these tasks pass through, if it is time."""
        now = time.monotonic()
        if self._due is not None and now < self._due:
            return
        if self._due is not None:  # else the wait has only begun
            where = self._where
            buckets = {(header.lane, header.bucket) for header in awaited}
            ways = {path for lane, bucket in buckets for path in (where.lane(lane), where.bucket(lane, bucket))}
            for directory in (where.ready, *ways, where.waiting, where.claimed, self._inbox):
                files.refresh(directory)
        self._due = now + self._backoff.next()
