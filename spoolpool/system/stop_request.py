"""Requests to stop, made by signal handlers while the main thread runs or waits."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from queue import Empty, SimpleQueue

FORWARDED = signal.SIGRTMIN + 7
"""Signal by which a parent process forwards a request to stop.

A batch system may signal the parent alone, or parent and child. The same signal twice would end the child at once.
"""


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


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that request a stop."""


_handlers: dict[int, tuple[object, ...]] = {}  # ours, by signal
_requested = False


def was_requested() -> bool:
    """Return whether one of the signals has requested the stop of this process: then its handlers have changed."""
    return _requested


def stop_on_signals(stop: Callable[[], None], hurry: Callable[[], None] | None = None) -> None:
    """Call ``stop`` at the first of the signals that end a process, and ``hurry`` at further ones (None: die).

    ``stop`` may be repeated: a forwarded signal is none of the further ones.
    """
    global _requested  # noqa: PLW0603  signals are handled once per process
    names = STOP_SIGNALS

    def again(_number: int, _frame: object) -> None:
        if hurry is not None:
            hurry()

    def first(_number: int, _frame: object) -> None:
        global _requested  # noqa: PLW0603  signals are handled once per process
        _requested = True
        for name in names:
            signal.signal(name, again if hurry is not None else signal.SIG_DFL)
        stop()

    def forwarded(_number: int, _frame: object) -> None:
        stop()

    _requested = False
    for name in names:
        signal.signal(name, first)
    signal.signal(FORWARDED, forwarded)
    _handlers.update(dict.fromkeys(names, (first, again)))
    _handlers[FORWARDED] = (forwarded,)


def ignore_stop_signals() -> None:
    """Ignore these signals in this process, but not in the processes that it starts."""

    def ignore(_number: int, _frame: object) -> None:
        pass

    for name in (*STOP_SIGNALS, FORWARDED):
        signal.signal(name, ignore)
        _handlers[name] = (ignore,)


def _reset() -> None:
    """Let a forked child die by these signals: the request would concern its parent."""
    for name, ours in _handlers.items():
        if signal.getsignal(name) in ours:
            signal.signal(name, signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL)
    _handlers.clear()


os.register_at_fork(after_in_child=_reset)
