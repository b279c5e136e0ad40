"""Intervals between polls, and the only sleep of the package."""

from __future__ import annotations

import random
import time


class Backoff:
    """Growing interval between polls, in seconds: short after activity, long when idle, with jitter.

    The first interval after :meth:`reset` is ``first`` seconds. Each further interval is ``factor`` times as long, up
    to ``last`` seconds. The jitter shortens an interval by up to a quarter, so that a thousand groups that were started
    together do not poll together.
    """

    __slots__ = ("_next", "factor", "first", "last")

    def __init__(self, first: float, last: float, factor: float = 1.5) -> None:
        self.first = first
        self.last = last
        self.factor = factor
        self._next = first

    def reset(self) -> None:
        """Start again with the shortest interval, after an activity."""
        self._next = self.first

    def next(self) -> float:
        """Return the seconds to wait now, and lengthen the next interval."""
        now = self._next
        self._next = min(now * self.factor, self.last)
        return now * random.uniform(0.75, 1.0)

    @property
    def slow(self) -> bool:
        """Whether the longest interval is reached."""
        return self._next >= self.last

    def sleep(self) -> float:
        """Wait for :meth:`next` seconds; return how many they were to be."""
        seconds = self.next()
        time.sleep(seconds)
        return seconds
