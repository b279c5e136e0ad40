"""Statistics of bounded size for any number of values: averages over time, distributions, and bars of time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

_PER_OCTAVE = 4


class Level:
    """Number of overlapping intervals over time, as averages over equal steps.

    There are at most ``most`` steps; when the intervals extend further, each step becomes twice as long.
    """

    def __init__(self, most: int = 1024, step: float = 0.25) -> None:
        self._most = most
        self.step = step
        """Seconds."""
        self._area: Counter[int] = Counter()  # seconds of the intervals that begin or end in a step
        self._change: Counter[int] = Counter()  # change of the number of intervals that cover whole steps
        self._first = self._last = 0
        self._empty = True

    def add(self, begin: float, end: float) -> None:
        """Add an interval; ``begin`` and ``end`` are seconds since the epoch."""
        if end <= begin:
            return
        first, last = self._extend(begin, end)
        if first == last:
            self._area[first] += end - begin  # type: ignore[assignment]  # seconds, not a count
            return
        self._area[first] += (first + 1) * self.step - begin  # type: ignore[assignment]
        self._area[last] += end - last * self.step  # type: ignore[assignment]
        self._change[first + 1] += 1
        self._change[last] -= 1

    def _extend(self, begin: float, end: float) -> tuple[int, int]:
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
        """Return the begin of the first step, and the averages."""
        return self._first * self.step, [round(seconds / self.step, 3) for _, seconds in self._seconds()]


class Distribution:
    """Distribution of durations in seconds; there are four classes per doubling."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Add a duration."""
        seconds = max(seconds, 1e-6)
        self._classes[math.floor(math.log2(seconds) * _PER_OCTAVE)] += 1
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def update(self, other: Distribution) -> None:
        """Add all durations of another distribution."""
        self._classes.update(other._classes)
        self.count += other.count
        self.total += other.total
        self.longest = max(self.longest, other.longest)

    @property
    def mean(self) -> float:
        """Average duration; 0 without durations."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Return a duration that this share does not exceed, with an error of at most 10 %; 0 without durations."""
        wanted, seen = share * self.count, 0
        for each in sorted(self._classes):
            seen += self._classes[each]
            if seen >= wanted:
                return min(2 ** ((each + 0.5) / _PER_OCTAVE), self.longest)
        return 0.0

    def classes(self) -> list[tuple[float, int]]:
        """Return the begin of each class in seconds and the number of its durations, empty classes in between too."""
        if not self._classes:
            return []
        between = range(min(self._classes), max(self._classes) + 1)
        return [(2 ** (each / _PER_OCTAVE), self._classes[each]) for each in between]


class Bar:
    """Interval in which a group ran one task, or several short tasks in succession."""

    __slots__ = ("begin", "busy", "count", "end", "failed", "longest", "name", "task")

    def __init__(self, begin: float, end: float, name: int, task: str, *, failed: bool) -> None:
        self.begin = begin
        self.end = end
        self.busy = self.longest = end - begin
        self.count = 1
        self.failed = int(failed)
        self.name = name
        self.task = task

    def merge(self, other: Bar) -> None:
        """Extend to another bar, with the name of the longest task of both."""
        self.end = max(self.end, other.end)
        self.busy += other.busy
        self.count += other.count
        self.failed += other.failed
        if other.longest > self.longest:
            self.longest, self.name, self.task = other.longest, other.name, other.task


class Bars:
    """Bars of all groups, at most about ``most``: neighbours are merged if there are more."""

    def __init__(self, most: int = 40_000) -> None:
        self._most = most
        self._count = 0
        self.resolution = 0.0
        """Longest interval of a merged bar, in seconds."""
        self.rows: dict[str, list[Bar]] = {}

    def add(self, row: str, bar: Bar) -> None:
        """Append a bar to its row."""
        bars = self.rows.setdefault(row, [])
        if not self._is_merged(bars, bar):
            bars.append(bar)
            self._count += 1
            if self._count > self._most:
                self._merge()

    def _is_merged(self, bars: list[Bar], bar: Bar) -> bool:
        if bars and bar.end - bars[-1].begin <= self.resolution:
            bars[-1].merge(bar)
            return True
        return False

    def _merge(self) -> None:
        """Merge bars until half of the limit is free, or each row has only one bar."""
        longest = max(bars[-1].end - bars[0].begin for bars in self.rows.values())
        while self._count > self._most // 2 and self.resolution <= longest:
            self.resolution = max(self.resolution * 2, 1e-3)
            for row, bars in self.rows.items():
                merged: list[Bar] = []
                for bar in bars:
                    if not self._is_merged(merged, bar):
                        merged.append(bar)
                self.rows[row] = merged
            self._count = sum(map(len, self.rows.values()))
        if self._count > self._most // 2:
            self._most = self._count * 2
