"""From ``submit`` to the result, one call at a time."""

from __future__ import annotations

from benchmarks.contender import OURS, Contender
from benchmarks.contenders import (
    dask,
    executorlib,
    floor,
    hyperqueue,
    loky,
    mpi4py_futures,
    parsl,
    process_pool,
    ray,
    spoolpool,
)
from benchmarks.jobs import job_of
from benchmarks.row import Entry, Goal, Key, Quantity, Role, Row, Sizes

_OURS = Key("spoolpool", "1 rank")
_OURS_2 = Key("spoolpool", "2 ranks")
_FLOOR = Key("two renames", "woken by inotify")
_POOL = Key("ProcessPoolExecutor")
_FILES = Key("executorlib", "files")
_FILES_2 = Key("executorlib", "files, 2 ranks")
_SERVED = (Key("dask distributed"), Key("Parsl HTEX"), Key("HyperQueue"), Key("Ray"))

_GOALS = (
    Goal(limit=4, of="floor"),
    Goal(limit=1, of="peers", peers=(_POOL,), who="ProcessPoolExecutor"),
    Goal(limit=1, of="peers", peers=_SERVED, who="every peer with a server"),
    Goal(limit=100, of="peers", peers=(_FILES,), who="executorlib's files"),
)
_GOALS_2 = (Goal(limit=1.5, of="ours"), Goal(limit=100, of="peers", peers=(_FILES_2,), who="executorlib's files"))


def entries(sizes: Sizes) -> list[Entry]:
    """Return the entries."""

    def entry(
        key: Key, contender: Contender, role: Role = "peer", *, goals: tuple[Goal, ...] = (), **options: object
    ) -> Entry:
        options = {"tasks": sizes.calls, "seconds": sizes.seconds, **options}
        return Entry(
            key=key,
            role=role,
            take=job_of(contender, "latency", **options),
            environment=OURS if role != "peer" else contender.environment,
            ours=None if key == _OURS else _OURS if key == _OURS_2 else _OURS_2 if options.get("ranks") == 2 else _OURS,
            floor=None if key == _FLOOR else _FLOOR,
            goals={"at once": goals},
        )

    return [
        entry(_OURS, spoolpool.CONTENDER, "ours", goals=_GOALS),
        entry(_FLOOR, floor.CONTENDER, "floor", variant="inotify"),
        entry(Key("two renames", "woken by watchdog"), floor.CONTENDER, "floor", variant="watchdog"),
        entry(_POOL, process_pool.CONTENDER),
        entry(Key("loky"), loky.CONTENDER),
        entry(Key("mpi4py.futures"), mpi4py_futures.CONTENDER),
        entry(Key("executorlib", "ZeroMQ"), executorlib.CONTENDER, variant="interactive"),
        entry(Key("executorlib", "ZeroMQ, no dependencies"), executorlib.CONTENDER, variant="plain"),
        entry(_FILES, executorlib.CONTENDER, variant="file"),
        entry(Key("dask distributed"), dask.CONTENDER),
        entry(Key("Parsl HTEX"), parsl.CONTENDER),
        entry(Key("Ray"), ray.CONTENDER),
        entry(Key("HyperQueue"), hyperqueue.CONTENDER, tasks=5, warm=1),
        entry(Key("spoolpool", "1 rank, attached"), spoolpool.CONTENDER, "ours", variant="none"),
        entry(_OURS_2, spoolpool.CONTENDER, "ours", goals=_GOALS_2, ranks=2),
        entry(Key("executorlib", "ZeroMQ, 2 ranks"), executorlib.CONTENDER, variant="interactive", ranks=2),
        entry(_FILES_2, executorlib.CONTENDER, variant="file", ranks=2),
    ]


ROW = Row(
    name="latency",
    title="Latency: submit(pow, 2, 3).result(), one call at a time",
    about="""\
The time from `submit(pow, 2, 3)` to its value, with one call on its way at a time: each at once after the last one, and
each 50 ms after it, when everybody has gone to rest. All contenders run the same loop against a pool of one worker,
which is warm; "2 ranks" is one group of two MPI ranks, ours compared with one rank and the peers with ours. The floor
is two processes: each renames one file into a directory that the other one watches with the bare calls of inotify; a
line shows the same with watchdog. It does no work: it neither pickles a call nor records its owner. The peers with
sockets and pipes (`ProcessPoolExecutor`, loky and mpi4py.futures within one tree of processes; executorlib, dask, Parsl
and Ray beside it) need not touch a file. HyperQueue starts an interpreter for every call, which leaves its value in a
file, and its client looks once a second for what has ended. executorlib with files starts a process for every call, and
is given a key for each, since it takes equal calls for one.
""",
    quantities=(
        Quantity(name="at once", unit="s", title="each at once after the last"),
        Quantity(name="after a pause", unit="s", title="each 50 ms after the last"),
        Quantity(name="CPU", unit="s", title="CPU time per call at once, all processes"),
    ),
    entries=entries,
    decision="0038-cost-of-a-call-and-of-a-second-rank.md",
)
