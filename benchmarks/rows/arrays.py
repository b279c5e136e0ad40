"""Bytes: a large NumPy array as argument, and as result."""

from __future__ import annotations

from benchmarks.contenders import executorlib, floor, process_pool, spoolpool
from benchmarks.jobs import job_of
from benchmarks.row import Entry, Goal, Key, Quantity, Row, Sizes

_FLOORS = {"argument": Key("plain file", "tofile, memmap, sum"), "result": Key("plain file", "tofile, fromfile")}
_PEERS = (
    (Key("ProcessPoolExecutor"), process_pool.CONTENDER, ""),
    (Key("executorlib", "ZeroMQ"), executorlib.CONTENDER, "interactive"),
    (Key("executorlib", "files"), executorlib.CONTENDER, "file"),
)

_GOALS = {"time": Goal(limit=3.0, of="floor"), "submitter": Goal(limit=1.3), "worker": Goal(limit=1.3)}
"""Of 1 GiB: beside a small array the interpreter itself weighs."""


def entries(sizes: Sizes) -> list[Entry]:
    """The array there, then the array back."""
    found: list[Entry] = []
    size = sizes.mib << 20
    for way, plain in _FLOORS.items():
        ours = Key("spoolpool", way)
        found.append(
            Entry(
                key=ours,
                role="ours",
                take=job_of(spoolpool.CONTENDER, way, bytes=size),
                floor=plain,
                goals=_GOALS if sizes.mib >= 1024 else {},
            )
        )
        variant = "memmap" if way == "argument" else "fromfile"
        take = job_of(floor.CONTENDER, "plain file", bytes=size, variant=variant)
        found.append(Entry(key=plain, role="floor", take=take))
        for key, contender, kind in _PEERS:
            if kind == "file" and way == "result":
                continue  # a process per call keeps no array until the next one asks for it
            found.append(
                Entry(
                    key=Key(key.contender, f"{key.case}, {way}" if key.case else way),
                    role="peer",
                    take=job_of(contender, way, bytes=size, variant=kind),
                    environment=contender.environment,
                    ours=ours,
                    floor=plain,
                )
            )
    return found


ROW = Row(
    name="arrays",
    title="Arrays: one array of float64 there, or back (--mib says how large), durability none",
    about="""\
One NumPy array of float64 goes to a worker, which sums it, or comes back from one. The floor does the same with a
plain file in one process: `tofile`, then `memmap` and the sum, or `tofile`, then `fromfile`. The time counts from
`submit` to the result; memory is the peak of a process as a multiple of the array, the array itself included.
`ProcessPoolExecutor` and executorlib with ZeroMQ send the bytes through pipes and sockets, and executorlib with files
writes them as HDF5; its peak of the worker is not known, since it ends with the call.
""",
    quantities=(
        Quantity(name="time", unit="s", title="time"),
        Quantity(name="submitter", unit="x", title="submitter's peak memory, of the array's size"),
        Quantity(name="worker", unit="x", title="worker's peak memory, of the array's size"),
    ),
    entries=entries,
)
