"""Spinning before a sleep: where a core is free, a short wait ends sooner without the wake-up of a sleeping process."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")

LONGEST = 0.0005
"""Seconds of a spin, at most. A longer wait sleeps from its beginning."""
_LOOK = 0.1  # seconds between two looks at the load
_DELAYED = 0.0003  # seconds; a step that takes longer shows that another thread took the core, or the interpreter
_FIRST_PAUSE, _LAST_PAUSE = 0.02, 10.0  # seconds without a spin after that, growing


class Spin:
    """Decision whether a wait spins, by the waits before it and by the load.

    A wait spins if the last one was shorter than a spin may be. So a wait of unknown length, as of an idle process,
    sleeps at once, and a spin in vain is followed by a sleep. No wait spins with a single core, with more running
    threads than cores, or for a while after another thread took the core.
    """

    __slots__ = ("_delayed_at", "_last_was_short", "_may", "_pause", "_until")

    def __init__(self) -> None:
        self._last_was_short = False
        self._may = False
        self._until = 0.0  # time of the next look at the load
        self._pause = _FIRST_PAUSE
        self._delayed_at = 0.0

    def until(self, ready: Callable[[], T], seconds: float) -> T | None:
        """Call ``ready`` until it returns a true value, which is returned; returns None if the wait is to sleep."""
        if not self._last_was_short or seconds <= 0:
            return None
        now = perf_counter()
        if now >= self._until:
            self._until = now + _LOOK
            self._may = has_free_core()
            now = perf_counter()
        if not self._may:
            return None
        end = now + min(seconds, LONGEST)
        while now < end:
            if found := ready():
                return found
            before, now = now, perf_counter()
            if now - before > _DELAYED:
                self._note_delay(now)
                break
        self._last_was_short = False
        return None

    def _note_delay(self, now: float) -> None:
        again = now - self._delayed_at < 10 * self._pause
        self._pause = min(2 * self._pause, _LAST_PAUSE) if again else _FIRST_PAUSE
        self._delayed_at = now
        self._until, self._may = now + self._pause, False

    def record(self, seconds: float) -> None:
        """Record the length of a wait that slept."""
        self._last_was_short = seconds < LONGEST


def has_free_core() -> bool:
    """Return whether this process may use several cores, and no more threads of this host run than it has cores."""
    if len(os.sched_getaffinity(0)) < 2:
        return False
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            running = int(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running <= (os.cpu_count() or 1)
