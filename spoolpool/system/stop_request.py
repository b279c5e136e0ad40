"""Requests to stop, made by signal handlers while the main thread runs or waits."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

FORWARDED = signal.SIGRTMIN + 7
"""Signal by which a parent process forwards a request to stop.

A batch system may signal the parent alone, or parent and child. The same signal twice would hurry the child.
"""

_ONE_REQUEST = 1.0  # seconds within which different signals belong to one request

HURRY = signal.SIGRTMIN + 8
"""Signal that requests a stop without any wait for the running task."""


class StopRequest:
    """Flag that a signal handler may set at any moment, and that ends a wait.

    ``threading.Event`` cannot do that: its lock is not reentrant. A handler that interrupts the main thread inside
    ``Event.wait`` would wait in ``Event.set`` for the lock that the interrupted frame holds, for ever.
    ``SimpleQueue.put`` is documented as reentrant.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._queue: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Request the stop; harmless when repeated."""
        self._is_set = True
        self._queue.put(None)

    def is_set(self) -> bool:
        """Return whether the stop was requested."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait until the stop is requested, at most ``seconds``; return whether it was."""
        if not self._is_set:  # a request after this check leaves an item in the queue, which ends the wait
            with contextlib.suppress(Empty):
                self._queue.get(timeout=seconds)
        return self._is_set


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGALRM)
"""Signals that request a stop.

Flux sends ``SIGHUP`` to the script of an instance that ends, and ``SIGALRM`` to the processes of a job at the end of
its walltime.
"""

GROUP_SIGNALS = frozenset((*STOP_SIGNALS, FORWARDED, HURRY, signal.SIGQUIT))
"""Signals that may reach all processes of a job or of a terminal, and must not end the programs that serve a worker or
a supervisor beside its Python.
"""


@contextlib.contextmanager
def blocked_group_signals() -> Iterator[None]:
    """Block these signals in this thread. A process that is started meanwhile inherits this, and keeps it.

    A program that ignored them itself would still end at one that comes while it starts.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class RequestCounter:
    """Tells a further request to stop from the several signals of one request.

    Flux sends a script two different signals at once, one to its process group and one to the script.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def is_further(self, number: int) -> bool:
        """Count a signal; return whether it repeats the request before: the same one again, or one that comes later."""
        now = time.monotonic()
        if self._first is None:
            self._first = number, now
            return False
        return number == self._first[0] or now - self._first[1] > _ONE_REQUEST


def stop_signals() -> list[signal.Signals]:
    """Return the signals that request a stop of this process; not ``SIGHUP`` under ``nohup``, which ignores it."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [name for name in STOP_SIGNALS if name != signal.SIGHUP or not is_ignored]


_handlers: dict[int, tuple[object, ...]] = {}  # ours, by signal
_requested = False


def was_requested() -> bool:
    """Return whether one of the signals has requested the stop of this process."""
    return _requested


def stop_on_signals(stop: Callable[[], None], hurry: Callable[[], None] | None = None) -> None:
    """Call ``stop`` at the first of the signals that end a process, and ``hurry`` at further ones (None: ``stop``).

    Both may be repeated: a forwarded signal is none of the further ones. The signals are no longer blocked afterwards:
    a process that executes itself again leaves them blocked meanwhile, so that none is lost.
    """
    global _requested  # noqa: PLW0603  signals are handled once per process
    names = stop_signals()

    counter = RequestCounter()

    def handle(number: int, _frame: object) -> None:
        global _requested  # noqa: PLW0603  signals are handled once per process
        _requested = True
        if hurry is not None and (number == HURRY or (number != FORWARDED and counter.is_further(number))):
            hurry()
        else:
            stop()

    _requested = False
    for name in (*names, FORWARDED, HURRY):
        signal.signal(name, handle)
        _handlers[name] = (handle,)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*names, FORWARDED, HURRY))


def block_stop_signals() -> None:
    """Block these signals in this thread: those that arrive from now on wait for :func:`stop_on_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*stop_signals(), FORWARDED, HURRY))


def ignore_stop_signals() -> None:
    """Ignore these signals in this process, but not in the processes that it starts."""

    def ignore(_number: int, _frame: object) -> None:
        pass

    for name in (*stop_signals(), FORWARDED, HURRY):
        signal.signal(name, ignore)
        _handlers[name] = (ignore,)


def _reset() -> None:
    """Let a forked child die by these signals: the request would concern its parent."""
    for name, ours in _handlers.items():
        if signal.getsignal(name) in ours:
            signal.signal(name, signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL)
    _handlers.clear()


def _ignore_at_exit() -> None:
    """Ignore these signals from now on: a request to stop concerns a process that ends no more.

    The interpreter removes all handlers later in its shutdown, but not this setting. Without it, a signal that arrives
    after that would end the process with an error.
    """
    for name, ours in _handlers.items():
        if signal.getsignal(name) in ours:
            signal.signal(name, signal.SIG_IGN)


atexit.register(_ignore_at_exit)
os.register_at_fork(after_in_child=_reset)
