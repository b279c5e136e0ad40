"""The next of few, and of many."""

from __future__ import annotations

from benchmarks.contenders import dirq, spoolpool
from benchmarks.jobs import job_of
from benchmarks.row import Entry, Key, Quantity, Row, Sizes

_FEW = Key("spoolpool", "1 000 wait")


def entries(sizes: Sizes) -> list[Entry]:
    """From a thousand to ``--waiting``, ten times as many each time; a peer up to a hundred thousand."""
    found = []
    waiting = 1000
    while waiting <= max(1000, sizes.waiting):
        key = Key("spoolpool", f"{waiting:,} wait".replace(",", " "))
        for contender, role in ((spoolpool.CONTENDER, "ours"), (dirq.CONTENDER, "peer")):
            if role == "ours" or waiting <= 100_000:
                found.append(
                    Entry(
                        key=Key(contender.name, key.case),
                        role="ours" if role == "ours" else "peer",
                        take=job_of(contender, "backlog", tasks=waiting, seconds=sizes.seconds),
                        environment=contender.environment,
                        ours=_FEW if role == "ours" and key != _FEW else key if role == "peer" else None,
                        limit=600.0,
                    )
                )
        waiting *= 10
    return found


ROW = Row(
    name="backlog",
    title="Backlog: the next task, by how many wait (ours: times the first line; a peer: times ours)",
    about="""\
The time that a worker needs to claim the next task while so many wait. Ours opens, locks and renames the task's file;
dirq makes a lock, reads the file and removes it. Nothing is run, and the first claims, for which a worker lists the
queue for the first time, are left out. The tasks beyond those that are claimed are names without a content, since a
million submitted ones would only take longer to make. A figure that rises from line to line is a queue that slows
down while work piles up.
""",
    quantities=(Quantity(name="claim", unit="s", title="time per claim, without a run"),),
    entries=entries,
)
"""Made without ``submit``: of ours only those have a content that are claimed."""
