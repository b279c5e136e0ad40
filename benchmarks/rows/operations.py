"""Operations on a metadata server, counted by strace."""

from __future__ import annotations

import os
import shutil

from benchmarks import trace
from benchmarks.contender import Contender, Samples
from benchmarks.contenders import dirq, executorlib, huey, jug, kombu, persist_queue, spoolpool
from benchmarks.jobs import run_job
from benchmarks.measures import CHUNK
from benchmarks.row import Entry, Failed, Goal, Key, Place, Quantity, Row, Sizes

_WORKS = {
    "awaited": "each call awaited before the next",
    "batch": "all calls submitted first",
    "map": "by map",
    "chunks": f"by map, {CHUNK} calls a task",
}
_OURS = Key("spoolpool", "1 rank")
_A_FILE_PER_CALL = tuple(Key(name, "files") for name in ("executorlib", "huey", "dirq", "jug", "kombu"))
_FEWEST = Goal(limit=1, of="peers", peers=_A_FILE_PER_CALL, who="every peer with a file per call")


def entries(sizes: Sizes) -> list[Entry]:
    """Return the entries of spoolpool and of all peers that use files."""
    return [
        _entry(_OURS, spoolpool.CONTENDER, sizes),
        _entry(Key("spoolpool", "1 rank, attached"), spoolpool.CONTENDER, sizes, variant="data"),
        _entry(Key("spoolpool", "2 ranks"), spoolpool.CONTENDER, sizes, ranks=2),
        _entry(Key("executorlib", "files"), executorlib.CONTENDER, sizes, variant="file", tasks=5, warm=1),
        _entry(Key("huey", "files"), huey.CONTENDER, sizes),
        _entry(Key("dirq", "files"), dirq.CONTENDER, sizes),
        _entry(Key("jug", "files"), jug.CONTENDER, sizes),
        _entry(Key("kombu", "files"), kombu.CONTENDER, sizes),
        _entry(Key("persist-queue", "SQLite"), persist_queue.CONTENDER, sizes),
    ]


def _entry(key: Key, contender: Contender, sizes: Sizes, **options: object) -> Entry:
    wanted: dict[str, object] = {"tasks": sizes.traced, "seconds": sizes.idle, **options}

    def take(place: Place) -> Samples:
        if shutil.which("strace") is None:
            raise Failed("there is no strace here (on Debian: apt install strace)")
        traces = f"{place.directory}/traces"
        os.mkdir(traces)
        run_job(contender, place, "marked", wanted, trace.strace(f"{traces}/thread"))
        return _counted(traces, f"{place.directory}/d", wanted)

    return Entry(
        key=key,
        role="ours" if contender is spoolpool.CONTENDER else "peer",
        take=take,
        environment=contender.environment,
        ours=None if contender is spoolpool.CONTENDER else _OURS,
        goals=dict.fromkeys(("awaited", "batch"), _FEWEST) if key == _OURS else {},
    )


def _counted(traces: str, directory: str, options: dict[str, object]) -> Samples:
    calls, seconds = int(str(options["tasks"])), float(str(options["seconds"]))
    found = trace.between_marks(traces, directory)
    samples: Samples = {}
    for work in _WORKS:
        if f"{work}.3" not in found:  # not all contenders have it
            continue
        counts = trace.per_call(found, work, calls)
        samples[work] = [sum(counts[kind] for kind in trace.KINDS)]
        samples |= {f"{work}: {kind}": [counts[kind]] for kind in (*trace.KINDS, "descriptor")}
    if "idle.1" in found:
        samples["idle"] = [sum(found["idle.1"][kind] for kind in trace.KINDS) / seconds * 60]
    return samples


ROW = Row(
    name="operations",
    title="Metadata operations per call, submit to collected, and per minute of an idle pool",
    about="""\
System calls that a metadata server would see, counted by strace over all processes of a contender; this figure has no
noise. What begins and ends a batch falls out of the count: each work is done with so many calls and with three times
as many, and the difference is divided. `list` is the opening of a directory; "(by descriptor)" are calls on a file that
is open already (fstat, flock, fsync, byte-range locks), which name nothing and are not in the sum. The last table
is a pool that waits, with its submitter. persist-queue keeps all calls in one SQLite file, in a mode that works on one
host alone: it names nothing, and locks some forty times per call. Of dirq, kombu and persist-queue, which
only queue, half of it is the way of the values back; both sides look every millisecond, which is what their pools
that wait do. jug is a script, run whole. A kind of call that nobody makes has no column.
""",
    quantities=(
        *(
            quantity
            for work, title in _WORKS.items()
            for quantity in (
                Quantity(name=work, unit="", title="all", group=title),
                *(Quantity(name=f"{work}: {kind}", unit="", title=kind, group=title) for kind in trace.KINDS),
                Quantity(name=f"{work}: descriptor", unit="", title="(by descriptor)", group=title),
            )
        ),
        Quantity(name="idle", unit="", title="all", group="idle, per minute"),
    ),
    entries=entries,
    wide=True,
    once=True,
)
