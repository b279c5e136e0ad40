"""Child processes of this process, as ``/proc`` shows them."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable

from spoolpool.system.processes import read_proc

_COMMAND = 120  # characters of a command line


def any_exist() -> bool:
    """Return whether this process has a child, also one that has ended and that nothing has waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def pids() -> set[int]:
    """Return the ids of all children, of each thread of this process."""
    if not any_exist():
        return set()
    found: set[int] = set()
    with contextlib.suppress(OSError):  # not Linux
        for thread in os.listdir("/proc/self/task"):
            found.update(map(int, read_proc(f"/proc/self/task/{thread}/children").split()))
    return found or _by_parent()


def _by_parent() -> set[int]:
    """Return the children where the kernel does not list them by their parent."""
    me = str(os.getpid())
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir("/proc") if name.isdigit() and _stat(int(name))[1:2] == [me]}
    return set()


def _stat(pid: int) -> list[str]:
    """Return the state of a process, its parent, its process group and its session; empty if there is none."""
    return read_proc(f"/proc/{pid}/stat").rpartition(")")[2].split()


def wait_for_one(pids: Iterable[int], seconds: float) -> None:
    """Wait until one of these children has ended, at most ``seconds``; where the kernel cannot tell, that long."""
    poll = select.poll()
    with contextlib.ExitStack() as opened:
        # AttributeError: Python was compiled with older headers of the kernel, as that of some distributions is.
        # OSError: before Linux 5.3; or there are too many descriptors, or it was waited for
        with contextlib.suppress(AttributeError, OSError):
            for pid in pids:
                fd = os.pidfd_open(pid)
                opened.callback(os.close, fd)
                poll.register(fd, select.POLLIN)
        poll.poll(seconds * 1000)


def has_ended(pid: int) -> bool:
    """Return whether a child is a zombie, or does not exist any more."""
    return _stat(pid)[:1] in ([], ["Z"], ["X"])


def leads_session(pid: int) -> bool:
    """Return whether a child is in a session of its own: it was meant to outlive this process."""
    return _stat(pid)[3:4] == [str(pid)]


def command(pid: int) -> str:
    """Return the command line of a process, cut to a readable length."""
    words = read_proc(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    return words if len(words) <= _COMMAND else words[: _COMMAND - 1] + "…"
