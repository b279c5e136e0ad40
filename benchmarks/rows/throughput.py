"""Many calls of nothing: submitted one by one, by ``map``, and by ``map`` with many to a task."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks import machine
from benchmarks.contender import Contender, Samples
from benchmarks.contenders import (
    dask,
    dirq,
    executorlib,
    floor,
    huey,
    hyperqueue,
    jug,
    kombu,
    loky,
    mpi4py_futures,
    parsl,
    persist_queue,
    process_pool,
    ray,
    spoolpool,
)
from benchmarks.harness import ROOT
from benchmarks.jobs import job_of, run_job
from benchmarks.measures import LARGE_CHUNK
from benchmarks.row import Entry, Failed, Goal, Key, Place, Quantity, Row, Sizes

_FLOOR = Key("the protocol's bare system calls", "1 process")
_BY_FILES = (
    (Key("huey", "files"), huey.CONTENDER),
    (Key("dirq", "files"), dirq.CONTENDER),
    (Key("jug", "files"), jug.CONTENDER),
    (Key("kombu", "files"), kombu.CONTENDER),
    (Key("persist-queue", "SQLite"), persist_queue.CONTENDER),
)
_QUICK = (
    (Key("ProcessPoolExecutor"), process_pool.CONTENDER),
    (Key("loky"), loky.CONTENDER),
    (Key("mpi4py.futures"), mpi4py_futures.CONTENDER),
    (Key("executorlib", "ZeroMQ"), executorlib.CONTENDER),
)
_OTHERS = (
    (Key("dask distributed"), dask.CONTENDER),
    (Key("Parsl HTEX"), parsl.CONTENDER),
    (Key("Ray"), ray.CONTENDER),
    (Key("HyperQueue"), hyperqueue.CONTENDER),
)
_PROCESS_PER_CALL = Key("executorlib", "files")
"""It starts one for each call at once, so there is no number of workers."""

_FEW = 10
"""Calls of contenders that start an interpreter for each."""

_ONE = Key("spoolpool", "1 worker")
_MANY = 10_000
"""Calls from which on a rate is compared with its goals."""
_IN_MEMORY = ("tmpfs", "ramfs")

_ROUNDS = 3
"""There are forty entries."""


def entries(sizes: Sizes) -> list[Entry]:
    """Entries of all contenders with one worker, then with two; with four, only of the ones that can gain by them."""
    bare = job_of(floor.CONTENDER, "throughput", tasks=sizes.tasks)
    found = [Entry(key=_FLOOR, role="floor", take=bare, rounds=_ROUNDS), _on_disk(sizes)]
    peers: dict[int, tuple[tuple[Key, Contender], ...]]
    peers = {1: (*_QUICK, *_OTHERS, *_BY_FILES, (_PROCESS_PER_CALL, executorlib.CONTENDER))}
    peers |= {2: (*_QUICK, *_OTHERS, *_BY_FILES), 4: _QUICK, 16: ()}
    for workers, present in peers.items():
        case = f"{workers} worker{'s' if workers > 1 else ''}"
        ours = Key("spoolpool", case)
        keys = {key: Key(key.contender, f"{key.case}, {case}" if key.case else case) for key, _ in present}
        options: dict[str, object] = {"workers": workers, "tasks": sizes.tasks, "seconds": sizes.seconds / 4}
        found.append(
            Entry(
                key=ours,
                role="ours",
                take=job_of(spoolpool.CONTENDER, "throughput", **options),
                ours=None if ours == _ONE else _ONE,
                floor=_FLOOR,
                goals=_goals(tuple(keys.values()), one=ours == _ONE) if sizes.tasks >= _MANY else {},
                rounds=_ROUNDS,
            )
        )
        packed = Key("spoolpool", f"pack=True, {case}")
        found.append(
            Entry(
                key=packed,
                role="ours",
                take=job_of(spoolpool.CONTENDER, "throughput", variant=spoolpool.PACKED, **options),
                ours=ours,
                floor=_FLOOR,
                goals={"rate": (Goal(limit=5000),)} if sizes.tasks >= _MANY else {},
                rounds=_ROUNDS,
            )
        )
        for key, contender in present:
            few = {"tasks": _FEW} if contender is hyperqueue.CONTENDER or key == _PROCESS_PER_CALL else {}
            variant = "file" if key == _PROCESS_PER_CALL else ""
            found.append(
                Entry(
                    key=keys[key],
                    role="peer",
                    take=job_of(contender, "throughput", variant=variant, **{**options, **few}),
                    environment=contender.environment,
                    ours=ours,
                    floor=_FLOOR,
                    rounds=_ROUNDS,
                )
            )
    return found


def _on_disk(sizes: Sizes) -> Entry:
    """Entry of one worker whose temporary spool is on a disk's filesystem."""

    def take(place: Place) -> Samples:
        directory = tempfile.mkdtemp(prefix="spb-", dir=_disk_directory())
        try:
            options = {"tasks": sizes.tasks, "seconds": sizes.seconds / 4, "variant": spoolpool.ON_DISK}
            return run_job(spoolpool.CONTENDER, place, "throughput", {**options, "directory": directory})
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    goals = {"rate": Goal(limit=1 / 0.7, of="ours")} if sizes.tasks >= _MANY else {}
    key = Key("spoolpool", "1 worker, on disk")
    return Entry(key=key, role="ours", take=take, ours=_ONE, floor=_FLOOR, goals=goals, rounds=_ROUNDS)


def _disk_directory() -> Path:
    """Return a directory that is not in memory: the checkout, or else the large temporary directory."""
    for directory in (ROOT, Path("/var/tmp")):
        if machine.filesystem(str(directory)) not in _IN_MEMORY:
            return directory
    raise Failed(f"{ROOT} and /var/tmp are both in memory")


def _goals(peers: tuple[Key, ...], *, one: bool) -> dict[str, tuple[Goal, ...]]:
    rate = [Goal(limit=1 / 1.3, of="floor")]
    if peers:
        rate.append(Goal(limit=1.3, of="peers", peers=peers, who="every peer"))
    if not one:
        rate.append(Goal(limit=1 / 0.9, of="ours"))
    return {"rate": tuple(rate), "chunks": (Goal(limit=100_000),)}


ROW = Row(
    name="throughput",
    title="Throughput: trivial calls, until the last result is here",
    about=f"""\
Calls of `pow(2, 3)` without waiting, until the last value is there: submitted one by one; by `map`; and by `map` with
{LARGE_CHUNK} calls to a task, where a contender has these, and then ten times as many calls. Everybody has as many
workers as the line says (with `pack=True` ours may let calls that wait share a task; each has its own future), and
makes as many calls as fit into the time that a turn has; those one by one are told below the tables. *On disk* is the
same executor with its temporary spool on a disk's filesystem in place of memory. The floor is the
system calls of one task from submit to collected, in one process that waits for nobody, does not pickle, and lists
nothing. Of the peers that go by files, dirq, kombu and persist-queue are only queues: their workers and their results
are a few lines of the benchmark, which poll every millisecond and promise nothing after a crash. persist-queue is one
SQLite file per worker and direction, on one host. kombu's transport loses messages that are looked for while they are
written, so the benchmark puts a lock around it. huey polls every 10 ms, and of jug neither the start of its processes
nor the making of its tasks is counted. HyperQueue and executorlib's file mode start an interpreter per call, and make
{_FEW} calls.
""",
    quantities=(
        Quantity(name="rate", unit="/s", title="calls per second, one by one"),
        Quantity(name="map", unit="/s", title="calls per second, by map"),
        Quantity(name="chunks", unit="/s", title=f"calls per second, by map, {LARGE_CHUNK} calls a task"),
        Quantity(name="CPU", unit="s", title="CPU time per call one by one, all processes"),
    ),
    entries=entries,
    decision="0037-one-task-per-call-unless-packed.md",
)
