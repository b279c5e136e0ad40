"""Durations of the last tasks of one function. No I/O."""

from __future__ import annotations

from collections import deque

_LAST = 8  # tasks that are taken into account
_DECAY = 0.95  # of the size of the largest task, for each later one


class Durations:
    """Durations of the last tasks, and of the calls in them."""

    def __init__(self) -> None:
        self._last: deque[tuple[int, float]] = deque(maxlen=_LAST)
        self.mean: float | None = None
        """Mean seconds per call; None before the first task."""
        self.shortest: float | None = None
        """Seconds per call of the task in which they were fewest. On a busy host some tasks wait for a core, and a task
        of one call takes longer than its share of a larger one."""
        self.largest = 0.0
        """Calls in the largest task, with a slow decay: tasks of one call between larger ones do not hide it."""

    def add(self, calls: int, seconds: float) -> None:
        """Add a task of this number of calls."""
        if calls < 1:
            return
        self._last.append((calls, seconds))
        last = list(self._last)  # a copy: another thread may append
        self.mean = sum(each for _, each in last) / sum(count for count, _ in last)
        self.shortest = min(each / count for count, each in last)
        self.largest = max(calls, self.largest * _DECAY)
