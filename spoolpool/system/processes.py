"""Which process is that, and is it provably dead?

A pid alone says nothing: it is used again after a while, and two containers may share a host name and
a pid. With the start time, the boot id and the pid namespace it names one process for ever (proc(5)).
"""

from __future__ import annotations

import functools
import os

import msgspec


@functools.cache
def hostname() -> str:
    """This host's name, as ``uname`` has it; no resolver is asked."""
    return os.uname().nodename


def read_proc(path: str) -> str:
    """Return the text of a file of ``/proc`` or ``/sys``; empty where there is none, or where it is hidden."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:  # not Linux, or hidden, as in a container: then no process can be proven dead
        return ""


def _start_time(pid: int) -> str | None:
    """Start time of a process, "" if it is a zombie; None where none is seen."""
    text = read_proc(f"/proc/{pid}/stat")
    if not text:
        return None
    # the second field, the program's name, may hold spaces and parentheses: count from the last one
    fields = text[text.rfind(")") + 1 :].split()
    if len(fields) < 20 or fields[0] in "ZX":  # a zombie runs no more
        return ""
    return fields[19]


def _is_hidden(pid: int) -> bool:
    """Whether a process that ``/proc`` does not show is there all the same, as others' are with ``hidepid``."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # EPERM: it is somebody else's
        pass
    return True


@functools.lru_cache(maxsize=1)
def _here(pid: int) -> ProcessId:
    """This process; ``pid`` is its own, which a fork changes."""
    return ProcessId.of(pid)


class ProcessId(msgspec.Struct, frozen=True, kw_only=True):
    """One process on one boot of one host."""

    host: str
    """Host name, for people."""
    pid: int
    """Process id within its namespace."""
    start: str
    """Start time in clock ticks since boot, field 22 of ``/proc/PID/stat``."""
    boot: str
    """``/proc/sys/kernel/random/boot_id``: one boot of one kernel."""
    namespace: str
    """Inode of the pid namespace."""

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process ``pid`` of this host and pid namespace."""
        try:
            namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            namespace = ""
        return cls(
            host=hostname(),
            pid=pid,
            start=_start_time(pid) or "",
            boot=read_proc("/proc/sys/kernel/random/boot_id"),
            namespace=namespace,
        )

    def is_near(self) -> bool:
        """Whether this process can tell at any time whether that one lives: same boot, same pid namespace."""
        here = _here(os.getpid())
        same = self.boot == here.boot and self.namespace == here.namespace
        return bool(same and self.boot and self.namespace and self.start)

    def is_alive_here(self) -> bool:
        """True only where it is certain that a signal to the pid reaches this very process."""
        return self.is_near() and _start_time(self.pid) == self.start

    def is_provably_dead(self) -> bool:
        """True only where it is certain: same boot, same pid namespace, and no such process."""
        if not (self.is_near() and _here(os.getpid()).start):
            return False
        start = _start_time(self.pid)
        return not _is_hidden(self.pid) if start is None else start != self.start
