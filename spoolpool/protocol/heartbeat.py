"""Periodic signs of life, and an observer of them."""

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
    """Touch a file for as long as this process lives; ``then`` is the command that takes over once it has died."""
    command = [sys.executable, "-ISc", _BEAT, path, str(interval), str(os.getpid()), *then]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=bool(then),  # what ends the terminal must not end it
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
# A server that is away answers with an error, or not at all: beat on until it is back. A beat that was removed says
# that others took this worker for dead.
# select: standard input ends when the parent does. A child that the parent forked can hold the far end of
# it open; the look at the parent's pid finds that out one interval later. A parent that is done kills this process.


class SessionHeartbeat:
    """A sign of life of a session, for workers on other hosts that run for its sake alone.

    If this process dies without :meth:`close`, the command ``then`` runs in the place of the process that beats.
    """

    def __init__(self, spool: Spool, session: str, then: Sequence[str]) -> None:
        interval = spool.config.lease / settings.BEATS_PER_LEASE
        self._process = start_heartbeat(spool.layout.session(session), interval, then)

    def close(self) -> None:
        """No more beats, and nothing that takes over; harmless when repeated."""
        self._process.kill()
        self._process.communicate()


class Liveness:
    """An observer of signs of life: compares each with what it saw before, by its own monotonic clock.

    Hosts' clocks are never compared with each other: a sign of life that did not change for a lease
    *while we watched* is still, whatever its date. Time in which nobody looked (the server was away, this
    process was stopped, the laptop slept) hardly counts: the worker may have been held up by the same.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._seen: dict[str, tuple[int | None, float, float]] = {}
        self._most = spool.config.lease / 3

    def look(self, worker: str) -> float:
        """Look at the sign of life; returns the seconds for which it has not changed, as far as was watched."""
        return self._still(worker, f"{self._spool.layout.worker(worker)}/beat")

    def session_alive(self, session: str) -> bool:
        """Whether a session that beats is at work: not closed, not provably dead, and not still for a lease."""
        path = self._spool.layout.session(session)
        if files.is_missing(path) or sessions.is_dead(self._spool, session):
            return False
        return self._still(f"session {session}", path) < self._spool.config.lease

    def _still(self, who: str, path: str) -> float:
        try:
            stamp = files.mtime_ns(path)
        except OSError:  # cannot be seen: no sign, but nothing new either
            stamp = None
        now = time.monotonic()
        before = self._seen.get(who)
        still = 0.0
        if before is not None and before[0] == stamp:
            still = before[2] + min(now - before[1], self._most)
        self._seen[who] = (stamp, now, still)
        return still

    def alive(self, info: WorkerInfo) -> bool:
        """Whether a worker should be counted on: not provably dead, and not still for a lease."""
        return not info.process.is_provably_dead() and self.look(info.worker) < self._spool.config.lease

    def knows(self, worker: str) -> bool:
        """Whether a worker was looked at before."""
        return worker in self._seen

    def keep(self, workers: Collection[str]) -> None:
        """Drop what was seen of all others."""
        self._seen = {worker: seen for worker, seen in self._seen.items() if worker in workers}

    def forget(self, worker: str) -> None:
        """Drop what was seen of a worker."""
        self._seen.pop(worker, None)
