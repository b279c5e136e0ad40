"""Heartbeats: periodic signs of life, and an observer of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Collection, Sequence

from spoolpool import settings
from spoolpool.protocol import sessions
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.system import files


def start_heartbeat(path: str, interval: float, then: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a process that touches a file as long as this one lives, and then becomes the command ``then``."""
    command = [sys.executable, "-ISc", _BEAT, files.child_path(path), str(interval), str(os.getpid()), *then]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=bool(then),  # a signal that ends the terminal's processes must not end it
    )


_BEAT = """\
import os, select, sys
path, interval, parent = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
missed = 0
while os.getppid() == parent and missed < 3:
    try:
        os.utime(path)
        missed = 0
    except FileNotFoundError:
        missed += 1
    except OSError:
        pass
    if select.select([0], [], [], interval)[0]:
        missed = 0
        break
if sys.argv[4:] and missed < 3:
    os.execv(sys.argv[4], sys.argv[4:])
"""
# If the server is away, it answers with an error or not at all: go on until it is back. A missing file says that
# a recoverer took this worker for dead.
# select: standard input ends when the parent does. A child that the parent forked can hold the other end open; then
# the check of the parent's pid notices its end one interval later. A parent that is done kills this process.


class SessionHeartbeat:
    """Heartbeat of a session, for workers on other hosts that run for it alone.

    If this process dies without :meth:`close`, the command ``then`` replaces the heartbeat process.
    """

    def __init__(self, spool: Spool, session: str, then: Sequence[str]) -> None:
        interval = spool.config.lease / settings.BEATS_PER_LEASE
        self._process = start_heartbeat(spool.layout.session(session), interval, then)

    def close(self) -> None:
        """Stop the heartbeat, without running the command; harmless when repeated."""
        self._process.kill()
        self._process.communicate()


class Liveness:
    """Observer of heartbeats: compares each with its earlier value, and measures by its own monotonic clock.

    Clocks of hosts are never compared: a heartbeat counts as still if it did not change for a lease *while it was
    watched*, whatever its date. A gap between two checks (the server was away, this process was stopped, the laptop
    slept) counts for a third of a lease at most: the same may have held up the worker.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._seen: dict[str, tuple[int | None, float, float]] = {}  # modification time, when seen, seconds unchanged
        self._longest_gap = spool.config.lease / 3

    def seconds_since_change(self, worker: str) -> float:
        """Check a worker's heartbeat; return for how many seconds it has not changed while it was watched."""
        return self._check(worker, f"{self._spool.layout.worker(worker)}/beat")

    def is_session_alive(self, session: str) -> bool:
        """Return whether a session with a heartbeat is not closed, not provably dead, and not silent for a lease."""
        path = self._spool.layout.session(session)
        if files.is_missing(path) or sessions.is_dead(self._spool, session):
            return False
        return self._check(f"session {session}", path) < self._spool.config.lease

    def _check(self, name: str, path: str) -> float:
        try:
            stamp = files.mtime_ns(path)
        except OSError:  # unknown: counts as unchanged if it was unknown before
            stamp = None
        now = time.monotonic()
        before = self._seen.get(name)
        unchanged = 0.0
        if before is not None and before[0] == stamp:
            unchanged = before[2] + min(now - before[1], self._longest_gap)
        self._seen[name] = (stamp, now, unchanged)
        return unchanged

    def is_alive(self, info: WorkerInfo) -> bool:
        """Return whether a worker is not provably dead, and not silent for a lease."""
        return not info.process.is_provably_dead() and self.seconds_since_change(info.worker) < self._spool.config.lease

    def knows(self, worker: str) -> bool:
        """Return whether a worker was checked before."""
        return worker in self._seen

    def keep_only(self, workers: Collection[str]) -> None:
        """Drop the observations of all other workers."""
        self._seen = {worker: seen for worker, seen in self._seen.items() if worker in workers}

    def forget(self, worker: str) -> None:
        """Drop the observations of a worker."""
        self._seen.pop(worker, None)
