"""Many calls of nothing, submitted one by one."""

from __future__ import annotations

from benchmarks.contenders import (
    dask,
    dirq,
    executorlib,
    floor,
    huey,
    jug,
    mpi4py_futures,
    parsl,
    process_pool,
    spoolpool,
)
from benchmarks.jobs import job_of
from benchmarks.row import Entry, Goal, Key, Quantity, Row, Sizes

_FLOOR = Key("the protocol's bare system calls", "1 process")
_PEERS = (
    (Key("ProcessPoolExecutor"), process_pool.CONTENDER, ""),
    (Key("mpi4py.futures"), mpi4py_futures.CONTENDER, ""),
    (Key("executorlib", "ZeroMQ"), executorlib.CONTENDER, "interactive"),
    (Key("dask distributed"), dask.CONTENDER, ""),
    (Key("Parsl HTEX"), parsl.CONTENDER, ""),
    (Key("huey", "files"), huey.CONTENDER, ""),
    (Key("dirq", "files"), dirq.CONTENDER, ""),
    (Key("jug", "files"), jug.CONTENDER, ""),
    (Key("executorlib", "files"), executorlib.CONTENDER, "file"),
)

_FEW: dict[str, object] = {"tasks": 20}
"""Of a contender that starts a process per call."""


def entries(sizes: Sizes) -> list[Entry]:
    """Everybody with one worker, then with two."""
    sized: dict[str, object] = {"tasks": sizes.tasks, "seconds": sizes.seconds}
    found = [Entry(key=_FLOOR, role="floor", take=job_of(floor.CONTENDER, "throughput", **sized))]
    for workers in (1, 2):
        case = f"{workers} worker{'s' if workers > 1 else ''}"
        ours = Key("spoolpool", case)
        found.append(
            Entry(
                key=ours,
                role="ours",
                take=job_of(spoolpool.CONTENDER, "throughput", workers=workers, **sized),
                floor=_FLOOR,
                goals={"rate": Goal(limit=2000)} if workers == 2 and sizes.tasks >= 10_000 else {},
            )
        )
        found += [
            Entry(
                key=Key(key.contender, f"{key.case}, {case}" if key.case else case),
                role="peer",
                take=job_of(
                    contender,
                    "throughput",
                    workers=workers,
                    variant=variant,
                    **(_FEW if variant == "file" else sized),
                ),
                environment=contender.environment,
                ours=ours,
                floor=_FLOOR,
            )
            for key, contender, variant in _PEERS
            if workers == 1 or variant != "file"  # which has no number of workers
        ]
    return found


ROW = Row(
    name="throughput",
    title="Throughput: trivial calls submitted one by one, until the last result is here",
    about="""\
Calls of `pow(2, 3)` submitted one by one without waiting, until the last value is there; each contender with as many
workers as the line says. Everybody runs as many calls as fit into the time that a turn has; those are told below the
tables. The floor is the system calls of one task from submit to collected, in one process that waits for nobody,
does not pickle, and lists nothing. Of the peers that go by files, dirq is only a queue (its worker and its results
are a few lines of the benchmark, which pickle and poll every millisecond and promise nothing after a crash), huey
polls every 10 ms, and of jug neither the start of its processes nor the making of its tasks is counted.
""",
    quantities=(
        Quantity(name="rate", unit="/s", title="calls per second"),
        Quantity(name="CPU", unit="s", title="CPU time per call, all processes"),
    ),
    entries=entries,
)
