"""The rhythm of everything that waits."""

from __future__ import annotations

import random
import time


class Backoff:
    """Seconds to wait before the next look: quick right after activity, slow when idle, jittered.

    The first look after :meth:`reset` comes after ``first`` seconds; each further one ``factor``
    times later, never more than ``last`` seconds after the one before. The jitter (up to a quarter
    less) keeps a thousand groups that were started together from looking together.
    """

    __slots__ = ("_next", "factor", "first", "last")

    def __init__(self, first: float, last: float, factor: float = 1.5) -> None:
        self.first = first
        self.last = last
        self.factor = factor
        self._next = first

    def reset(self) -> None:
        """Something happened: be quick again."""
        self._next = self.first

    def next(self) -> float:
        """Return the seconds to wait now, and be slower the next time."""
        now = self._next
        self._next = min(now * self.factor, self.last)
        return now * random.uniform(0.75, 1.0)

    @property
    def slow(self) -> bool:
        """Whether the slowest rhythm is reached."""
        return self._next >= self.last

    def sleep(self) -> None:
        """Wait for :meth:`next` seconds."""
        time.sleep(self.next())
