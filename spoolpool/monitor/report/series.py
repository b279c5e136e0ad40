"""Figures that take in any number of values and stay small: averages over time, distributions, and bars of time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

_PER_OCTAVE = 4


class Level:
    """How many of something there were over time: intervals go in, averages over equal steps come out.

    There are at most ``most`` steps; when the intervals reach further, each step becomes twice as long.
    """

    def __init__(self, most: int = 1024, step: float = 0.25) -> None:
        self._most = most
        self.step = step
        """Seconds."""
        self._area: Counter[int] = Counter()  # seconds of intervals in a step, but for
        self._change: Counter[int] = Counter()  # those that fill whole steps: how many more there are from here on
        self._first = self._last = 0
        self._empty = True

    def add(self, begin: float, end: float) -> None:
        """One more from ``begin`` to ``end``, seconds since the epoch."""
        if end <= begin:
            return
        first, last = self._reach(begin, end)
        if first == last:
            self._area[first] += end - begin  # type: ignore[assignment]  # seconds, not a count
            return
        self._area[first] += (first + 1) * self.step - begin  # type: ignore[assignment]
        self._area[last] += end - last * self.step  # type: ignore[assignment]
        self._change[first + 1] += 1
        self._change[last] -= 1

    def _reach(self, begin: float, end: float) -> tuple[int, int]:
        while True:
            first, last = math.floor(begin / self.step), math.floor(end / self.step)
            lowest, highest = (first, last) if self._empty else (min(first, self._first), max(last, self._last))
            if highest - lowest < self._most:
                self._first, self._last, self._empty = lowest, highest, False
                return first, last
            self._widen()

    def _widen(self) -> None:
        area: Counter[int] = Counter()
        for at, seconds in self._seconds():
            area[at >> 1] += seconds  # type: ignore[assignment]
        self._area, self._change = area, Counter()
        self._first, self._last, self.step = self._first >> 1, self._last >> 1, self.step * 2

    def _seconds(self) -> Iterator[tuple[int, float]]:
        if self._empty:
            return
        steps = range(self._first, self._last + 1)
        for at, whole in zip(steps, accumulate(self._change[at] for at in steps), strict=True):
            yield at, self._area[at] + whole * self.step

    def values(self) -> tuple[float, list[float]]:
        """When the first step begins, and the averages."""
        return self._first * self.step, [round(seconds / self.step, 3) for _, seconds in self._seconds()]


class Distribution:
    """How long something took: lengths go in, in seconds; four classes per doubling are kept."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        seconds = max(seconds, 1e-6)
        self._classes[math.floor(math.log2(seconds) * _PER_OCTAVE)] += 1
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def join(self, other: Distribution) -> None:
        """All that are in another one too."""
        self._classes.update(other._classes)
        self.count += other.count
        self.total += other.total
        self.longest = max(self.longest, other.longest)

    @property
    def mean(self) -> float:
        """Their average; 0 for none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """A length that this share of them does not exceed, true to a tenth; 0 for none."""
        wanted, seen = share * self.count, 0
        for each in sorted(self._classes):
            seen += self._classes[each]
            if seen >= wanted:
                return min(2 ** ((each + 0.5) / _PER_OCTAVE), self.longest)
        return 0.0

    def classes(self) -> list[tuple[float, int]]:
        """Where each class begins, in seconds, and how many are in it; empty ones in between too."""
        if not self._classes:
            return []
        between = range(min(self._classes), max(self._classes) + 1)
        return [(2 ** (each / _PER_OCTAVE), self._classes[each]) for each in between]


class Bar:
    """A stretch of time in which a group ran one task, or several short ones one after the other."""

    __slots__ = ("begin", "busy", "count", "end", "failed", "longest", "name", "task")

    def __init__(self, begin: float, end: float, name: int, task: str, *, failed: bool) -> None:
        self.begin = begin
        self.end = end
        self.busy = self.longest = end - begin
        self.count = 1
        self.failed = int(failed)
        self.name = name
        self.task = task

    def swallow(self, other: Bar) -> None:
        """Become the stretch of both, under the name of the one with the longest task."""
        self.end = max(self.end, other.end)
        self.busy += other.busy
        self.count += other.count
        self.failed += other.failed
        if other.longest > self.longest:
            self.longest, self.name, self.task = other.longest, other.name, other.task


class Bars:
    """The bars of all groups, at most about ``most``: where there are more, neighbours become one."""

    def __init__(self, most: int = 40_000) -> None:
        self._most = most
        self._count = 0
        self.resolution = 0.0
        """Seconds that a bar of several tasks spans at most."""
        self.rows: dict[str, list[Bar]] = {}

    def add(self, row: str, bar: Bar) -> None:
        """A bar behind those that its row has."""
        bars = self.rows.setdefault(row, [])
        if not self._swallowed(bars, bar):
            bars.append(bar)
            self._count += 1
            if self._count > self._most:
                self._merge()

    def _swallowed(self, bars: list[Bar], bar: Bar) -> bool:
        if bars and bar.end - bars[-1].begin <= self.resolution:
            bars[-1].swallow(bar)
            return True
        return False

    def _merge(self) -> None:
        """Merge until half of the room is free, or rows with a bar each leave nothing to merge."""
        longest = max(bars[-1].end - bars[0].begin for bars in self.rows.values())
        while self._count > self._most // 2 and self.resolution <= longest:
            self.resolution = max(self.resolution * 2, 1e-3)
            for row, bars in self.rows.items():
                merged: list[Bar] = []
                for bar in bars:
                    if not self._swallowed(merged, bar):
                        merged.append(bar)
                self.rows[row] = merged
            self._count = sum(map(len, self.rows.values()))
        if self._count > self._most // 2:
            self._most = self._count * 2
