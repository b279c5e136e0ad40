"""Claims among few and among many queued tasks."""

from __future__ import annotations

from benchmarks.contenders import dirq, huey, jug, spoolpool
from benchmarks.jobs import job_of
from benchmarks.row import Entry, Goal, Key, Quantity, Row, Sizes

_OURS = "spoolpool"
_PEERS = ((dirq.CONTENDER, 100_000), (jug.CONTENDER, 100_000), (huey.CONTENDER, 10_000))
"""And how many tasks wait with them at most: more take long to make, or (huey) to look through for each claim."""

_ROUNDS = 3
"""Where many wait, which takes longer to make and to remove than to measure."""


def entries(sizes: Sizes) -> list[Entry]:
    """From a thousand to ``--waiting``, ten times as many each time."""
    found: list[Entry] = []
    few = Key(_OURS, _case(1000))
    waiting = 1000
    while waiting <= max(1000, sizes.waiting):
        ours = Key(_OURS, _case(waiting))
        options: dict[str, object] = {"tasks": waiting, "seconds": sizes.seconds}
        rounds = _ROUNDS if waiting >= 100_000 else None
        found.append(
            Entry(
                key=ours,
                role="ours",
                take=job_of(spoolpool.CONTENDER, "backlog", **options),
                ours=None if ours == few else few,
                goals={} if ours == few else {"claim": Goal(limit=1.3, of="ours")},
                limit=600.0,
                rounds=rounds,
            )
        )
        found += [
            Entry(
                key=Key(contender.name, ours.case),
                role="peer",
                take=job_of(contender, "backlog", **options),
                environment=contender.environment,
                ours=ours,
                limit=600.0,
                rounds=rounds,
            )
            for contender, most in _PEERS
            if waiting <= most
        ]
        waiting *= 10
    return found


def _case(waiting: int) -> str:
    return f"{waiting:,} wait".replace(",", " ")


ROW = Row(
    name="backlog",
    title="Backlog: the next task, by how many wait (ours: times the first line; a peer: times ours)",
    about="""\
The time that a worker needs to claim the next task while so many wait. Ours opens, locks and renames the task's file;
dirq makes a lock, reads the file and removes it; huey renames, reads and removes it under one lock of the whole
queue; jug, whose script says what waits, makes a lock, and stores the value. Nothing else is run, and the first claims,
for which a worker lists the queue for the first time, are left out. Of ours, the tasks beyond those that are claimed
are names without a content, since a million submitted ones would only take longer to make. A figure that rises from
line to line is a queue that slows down while work piles up.
""",
    quantities=(Quantity(name="claim", unit="s", title="time per claim, without a run"),),
    entries=entries,
)
"""Queue tasks without ``submit``: in spoolpool, only the claimed ones have a content."""
