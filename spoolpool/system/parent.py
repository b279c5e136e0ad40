"""A parent process that stays until its only child has ended, and reports how it ended.

A program cannot report its own death by a signal, and a launcher of several processes says at most that one of them
died. Their parents can say which, and how.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from spoolpool.system.stop_request import FORWARDED, STOP_SIGNALS

_FORWARDED = {**dict.fromkeys(STOP_SIGNALS, FORWARDED), signal.SIGUSR2: signal.SIGUSR2, signal.SIGHUP: signal.SIGHUP}
_PR_SET_PDEATHSIG = 1  # of sys/prctl.h


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, the process ``parent``."""
    import ctypes  # late, as it is not needed in most processes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before
        os._exit(1)


def continue_in_child(report: Callable[[int], None]) -> None:
    """Return in a child process; this process waits for its end, calls ``report``, and ends in the same way.

    ``report`` gets the exit status, or the negative number of a signal. To be called before threads are started.
    Signals that ask for an end are forwarded. If this process is killed, so is the child.
    """
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(parent)
        return

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # race: it has ended
            os.kill(child, _FORWARDED[signal.Signals(number)])

    for number in _FORWARDED:
        signal.signal(number, forward)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_IGN)  # the child is gone
    try:
        report(status)
    finally:
        if status < 0:
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has written a core, if any is wanted
            if -status not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(-status, signal.SIG_DFL)
            os.kill(parent, -status)
        os._exit(status if status >= 0 else 128 - status)
