"""Identity of processes, and proof that a process is dead.

A pid alone identifies no process: it is reused, and two containers may have the same host name and the same pid.
Together with the start time, the boot id and the pid namespace it identifies one process for ever (proc(5)).
"""

from __future__ import annotations

import functools
import os

import msgspec

from spoolpool.errors import signal_name
from spoolpool.system.bounds import Positive, Word

_KILL, _SHELL = 9, 128


def describe_status(status: int) -> str:
    """Return how a process ended, in words: with an exit status, or killed by a signal (a negative number)."""
    if status >= 0:
        return f"exit status {status}"
    cause = ", often sent by the kernel's out-of-memory killer" if -status == _KILL else ""
    return f"killed by {signal_name(-status)}{cause}"


def describe_command_status(status: int) -> str:
    """Return how a command that starts other processes ended: such commands report a signal N of theirs as 128 + N."""
    if _SHELL < status < _SHELL + 65:
        return f"exit status {status}, which can stand for {signal_name(status - _SHELL)}"
    return describe_status(status)


@functools.cache
def hostname() -> str:
    """Return the name of this host from ``uname``, without a resolver."""
    return os.uname().nodename


def read_proc(path: str) -> str:
    """Return the text of a file of ``/proc`` or ``/sys``; empty where there is none, or where it is hidden."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:  # not Linux, or hidden, as in a container: then no process can be proven dead
        return ""


def _start_time(pid: int) -> str | None:
    """Return the start time of a process, "" for a zombie, and None where ``/proc`` shows no such process."""
    text = read_proc(f"/proc/{pid}/stat")
    if not text:
        return None
    # the second field, the program's name, may contain spaces and parentheses: count from the last parenthesis
    fields = text[text.rfind(")") + 1 :].split()
    if len(fields) < 20 or fields[0] in "ZX":  # a zombie no longer runs
        return ""
    return fields[19]


def _is_hidden(pid: int) -> bool:
    """Return whether a process exists that ``/proc`` does not show, as with ``hidepid`` for another account's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # EPERM: it belongs to another account
        pass
    return True


@functools.lru_cache(maxsize=1)
def _here(pid: int) -> ProcessId:
    """Return the identity of this process. ``pid`` is its own pid, which a fork changes."""
    return ProcessId.of(pid)


class ProcessId(msgspec.Struct, frozen=True, kw_only=True):
    """Identity of one process on one boot of one host."""

    host: Word
    """Host name, for display."""
    pid: Positive
    """Process id within its namespace."""
    start: Word
    """Start time in clock ticks since boot, field 22 of ``/proc/PID/stat``."""
    boot: Word
    """``/proc/sys/kernel/random/boot_id``, which identifies one boot of one kernel."""
    namespace: Word
    """Inode of the pid namespace."""

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Return the identity of process ``pid`` in this pid namespace."""
        try:
            # in a pid namespace of its own, a process that sees the /proc of another one reads of other processes there
            sees_itself = os.readlink("/proc/self") == str(os.getpid())
            namespace = os.readlink("/proc/self/ns/pid") if sees_itself else ""
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
        """Return whether this process can always tell if that one is alive: same boot, same pid namespace."""
        here = _here(os.getpid())
        same = self.boot == here.boot and self.namespace == here.namespace
        return bool(same and self.boot and self.namespace and self.start)

    def is_alive_here(self) -> bool:
        """Return True only where a signal to the pid certainly reaches this process."""
        return self.is_near() and _start_time(self.pid) == self.start

    def is_provably_dead(self) -> bool:
        """Return True only where it is certain: same boot, same pid namespace, and no process of this identity."""
        if not (self.is_near() and _here(os.getpid()).start):
            return False
        start = _start_time(self.pid)
        return not _is_hidden(self.pid) if start is None else start != self.start


def encode_own_id() -> str:
    """Return the identity of this process as JSON, for the processes that it starts."""
    return msgspec.json.encode(ProcessId.of(os.getpid())).decode()
