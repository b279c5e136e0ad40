"""Many processes that claim from one spool at the same time."""

from __future__ import annotations

from benchmarks.contenders import dirq, spoolpool
from benchmarks.jobs import job_of
from benchmarks.row import Entry, Goal, Key, Quantity, Row, Sizes

_ROUNDS = 3
"""There are twenty entries."""


def entries(sizes: Sizes) -> list[Entry]:
    """From one process to ``--crowd``, four times as many each time; tasks of nothing and of 10 ms."""
    found = []
    workers = 1
    while workers <= max(1, sizes.crowd):
        for seconds in (0.0, 0.01):
            ours = Key("spoolpool", f"{workers} process{'es' if workers > 1 else ''}, {seconds * 1000:g} ms")
            count = sizes.tasks // 2
            if seconds:  # as many tasks as take a quarter of a turn
                count = min(count, int(workers * sizes.seconds / 4 / seconds))
            for contender in (spoolpool.CONTENDER, dirq.CONTENDER):
                mine = contender is spoolpool.CONTENDER
                found.append(
                    Entry(
                        key=Key(contender.name, ours.case),
                        role="ours" if mine else "peer",
                        take=job_of(contender, "crowd", tasks=count, workers=workers, variant=str(seconds)),
                        environment=contender.environment,
                        ours=None if mine else ours,
                        goals={"wasted": Goal(limit=0.5)} if mine else {},
                        rounds=_ROUNDS,
                    )
                )
        workers *= 4 if workers < 64 else 2
    return found


ROW = Row(
    name="crowd",
    title="Crowd: processes that take tasks from one spool until none is left",
    about="""\
Processes that have the same spool before them, begin at the same moment (each after one task that is not counted), and
take tasks until none is left. Each task is kept for 0 or 10 ms, which is all that is done with it. An operation is
counted as wasted if somebody else was first. There are many more processes than cores here, so the rate with many is
one of a busy machine; in a cluster each has a core of its own, and the filesystem is the part that they share.
""",
    quantities=(
        Quantity(name="rate", unit="/s", title="tasks per second"),
        Quantity(name="wasted", unit="", title="operations per task that came to nothing"),
    ),
    entries=entries,
    decision="0034-contention-filter.md",
)
