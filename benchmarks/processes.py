"""Processes of a contender: their search, CPU time and end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Process:
    """Process as read from ``/proc``."""

    pid: int
    parent: int
    ended_children: float
    """CPU seconds of its ended children."""


def running() -> list[Process]:
    """Return all processes of this machine."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:  # it ended between the two reads
            continue
        if fields[0] != "Z":
            ended = (int(fields[13]) + int(fields[14])) / _TICK
            found.append(Process(pid=int(name), parent=int(fields[1]), ended_children=ended))
    return found


def below(pid: int, spare: Collection[int] = ()) -> list[Process]:
    """Return the descendants of a process, except the ones in ``spare`` and their descendants."""
    children: dict[int, list[Process]] = {}
    for process in running():
        if process.pid not in spare:
            children.setdefault(process.parent, []).append(process)
    found, look = [], [pid]
    while look:
        more = children.get(look.pop(), [])
        found += more
        look += [process.pid for process in more]
    return found


def family(harness: int) -> list[Process]:
    """Return this process and all others of the same contender: ranks, workers, launchers.

    One contender is measured at a time, so they are all the descendants of the harness.
    """
    return below(harness)


def cpu(process: Process) -> float:
    """Return the CPU seconds of all threads of a process so far, and of its ended children; 0 if it has ended."""
    try:
        own = time.clock_gettime((~process.pid << 3) | 2)  # clock_getcpuclockid(3): to the nanosecond
    except OSError:
        return 0.0
    return own + process.ended_children


def is_python(process: Process) -> bool:
    """Return whether it runs Python, and not a launcher."""
    try:
        return os.path.basename(os.readlink(f"/proc/{process.pid}/exe")).startswith("python")
    except OSError:
        return False


def adopt_orphans() -> None:
    """Become the parent of orphans of a child, so that they are found below this process."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def end_descendants(spare: Collection[int]) -> None:
    """Kill all processes below this one, except the ones in ``spare`` and their descendants."""
    for _ in range(200):
        left = below(os.getpid(), spare)
        if not left:
            return
        for process in left:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        time.sleep(0.02)
