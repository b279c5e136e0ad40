"""Curves over the number of things in one session or spool, each with a bound on its slope."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.contenders import spoolpool_sizes
from benchmarks.jobs import job_of
from benchmarks.row import Entry, Goal, Key, Quantity, Row, Sizes
from benchmarks.table import value

_OURS = "spoolpool"
_FIRST, _TIMES = 10_000, 10
"""Pending futures of the first point of the curve, and the factor from point to point."""

_SLOPE = Goal(limit=1.5, of="ours")
"""Cost of one thing among the most, to that among the fewest: a quadratic curve would have ten or a hundred."""
_FUTURE = {"memory": Goal(limit=1000), "last": Goal(limit=1 / 0.8)}
"""Bounds of pending futures: a kilobyte each, and the last submissions at least 0.8 times as fast as the first."""
_MEMORY = {"command memory": Goal(limit=150 << 20)}


class _Curve(NamedTuple):
    """Measure with its things."""

    measure: str
    what: str
    share: float = 0.1
    """Things for each pending future."""
    variant: str = ""
    slopes: tuple[str, ...] = ("time", "end")
    """Quantities with a bound on their slope."""


_CURVES = (
    _Curve("futures", "pending futures", 1.0, slopes=("time", "completed", "end")),
    _Curve("resumed", "outcomes, session resumed"),
    *(_Curve("graph", f"dependencies, {kind}", variant=kind) for kind in ("chain", "fan-in", "fan-out")),
    _Curve("objects", "objects"),
    _Curve("journal", "finished calls in the journal", 10.0, slopes=("time",)),
    _Curve("registered", "workers", 0.001, slopes=("time",)),
)


def entries(sizes: Sizes) -> list[Entry]:
    """Three points of each curve, the last one of ``--size``."""
    most = max(1, sizes.size)
    points = sorted({max(1, most // _TIMES**power) for power in range(3)} - {0})
    points = [point for point in points if point >= min(_FIRST, most // _TIMES)]
    return [entry for curve in _CURVES for entry in _entries(curve, points)]


def _entries(curve: _Curve, points: list[int]) -> list[Entry]:
    counts = sorted({max(1, round(point * curve.share)) for point in points})
    keys = [Key(_OURS, f"{value(count, '') if count >= 100 else count} {curve.what}") for count in counts]
    fixed = {**(_FUTURE if curve.measure == "futures" else {}), **(_MEMORY if curve.measure == "journal" else {})}
    return [
        Entry(
            key=key,
            role="ours",
            take=job_of(spoolpool_sizes.CONTENDER, curve.measure, tasks=count, variant=curve.variant),
            ours=None if key is keys[0] else keys[0],
            goals={**fixed, **({} if key is keys[0] else dict.fromkeys(curve.slopes, _SLOPE))},
            limit=3600.0,
            rounds=1 if count >= _FIRST else None,
        )
        for key, count in zip(keys, counts, strict=True)
    ]


ROW = Row(
    name="size",
    title="Size: costs per thing, by how many there are (times the fewest)",
    about="""\
CPU time and memory of one submitter, or of one command, with many of one thing, divided by their number: a figure that
rises from line to line is a program that slows down, or needs more memory for each, while they become more. The group
that runs calls is a process of its own, and its time does not count.

*Pending futures* are submitted and run by nobody. The first and the last ten thousand submissions (fewer of few) are
compared with those of another process with few pending futures, in turn. Then all are cancelled, while a thread yields
them from `as_completed`. *Outcomes* of a named session are delivered to the same script, which makes all calls again
and takes `futures()`. *Dependencies* are those of calls of which each needs the one before (chain), of one call that
needs all others (fan-in), or of calls that all need the first (fan-out): submitted, and run. *Objects* are put one by
one, and removed at the end of the session. *Finished calls in the journal* are read by `spool report`, and *workers*,
which seem to be on another host, by a round of recovery; both stand in a spool of which `spool status` is asked.
""",
    quantities=(
        Quantity(name="time", unit="s", title="CPU time of a submission, a delivery, or a read"),
        Quantity(name="last", unit="x", title="time of the last submissions, to the first"),
        Quantity(name="completed", unit="s", title="CPU time of `as_completed`"),
        Quantity(name="end", unit="s", title="CPU time of the end: cancelled, delivered, or removed"),
        Quantity(name="memory", unit="", title="memory in bytes"),
        Quantity(name="peak", unit="", title="memory in bytes, with `as_completed` and all cancelled"),
        Quantity(name="command", unit="s", title="CPU time of `spool status`, for all"),
        Quantity(name="command memory", unit="", title="memory of the command in bytes, for all"),
    ),
    entries=entries,
    once=True,
)
