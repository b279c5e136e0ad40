"""A parent process that stays until its only child has ended, and reports how it ended.

A program cannot report its own death by a signal, and a launcher of several processes says at most that one of them
died. Their parents can say which, and how. A parent can also end a child that holds Python's global lock.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import Protocol

from spoolpool.system.stop_request import FORWARDED, HURRY, RequestCounter, stop_signals

_PR_SET_PDEATHSIG = 1  # of sys/prctl.h


class Guard(Protocol):
    """Observer in the parent process, which may end the child."""

    def record_request(self, *, hurry: bool) -> None:
        """Record a signal that requests a stop, or by ``hurry`` an immediate one; called by a signal handler."""

    def watch(self, send: Callable[[int], None]) -> None:
        """Watch in a thread until this process ends; ``send`` sends a signal to the child, if it has not ended."""

    def start_again(self, status: int) -> int:
        """Execute the command of this process again, if the child ended with this status for that.

        Otherwise return the status with which this process is to end. Signals that request a stop are blocked.
        """


class _Child:
    """Child that keeps its pid until :meth:`reap`, so that no signal can reach another process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._lock = threading.Lock()
        self._reaped = False

    def send(self, number: int) -> None:
        """Send a signal, unless the child was reaped."""
        with self._lock:
            if not self._reaped:
                os.kill(self._pid, number)

    def wait(self) -> None:
        """Wait until it has ended."""
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> int:
        """Return how the ended child ended."""
        with self._lock:
            self._reaped = True
            return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, the process ``parent``."""
    import ctypes  # late, as it is not needed in most processes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before
        os._exit(1)


def continue_in_child(report: Callable[[int], None], guard: Guard | None = None) -> None:
    """Return in a child process; this process waits for its end, calls ``report``, and ends in the same way.

    ``report`` gets the exit status, or the negative number of a signal. To be called before threads are started.
    Signals that ask for an end are forwarded. If this process is killed, so is the child.
    """
    parent = os.getpid()
    forwarded = (*stop_signals(), FORWARDED, HURRY)
    # until the handlers are set; and in the thread of the guard for ever: a signal that a thread has taken is lost in
    # a process that executes another program
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    gc.freeze()  # no collection visits what both processes share: that would copy its pages, and take time at the end
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        die_with_parent(parent)
        return
    child = _Child(pid)
    counter = RequestCounter()

    def forward(number: int, _: object) -> None:
        hurry = number == HURRY or (number != FORWARDED and counter.is_further(number))
        if guard is not None:
            guard.record_request(hurry=hurry)
        with contextlib.suppress(ProcessLookupError):  # race: it has ended
            os.kill(pid, HURRY if hurry else FORWARDED)

    for name in forwarded:
        signal.signal(name, forward)
    if guard is not None:
        threading.Thread(target=guard.watch, args=(child.send,), name="spoolpool-guard", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    child.wait()
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    status = child.reap()
    if guard is not None:
        status = guard.start_again(status)
    for name in forwarded:
        signal.signal(name, signal.SIG_IGN)  # the child is gone
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
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
