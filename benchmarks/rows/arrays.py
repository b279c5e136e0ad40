"""Bytes: NumPy arrays as arguments, as results, and as shared argument of many calls."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.contenders import executorlib, floor, joblib, process_pool, spoolpool
from benchmarks.jobs import job_of
from benchmarks.row import Entry, Goal, Key, Quantity, Row, Sizes

_PEERS = (
    (Key("joblib", "memmap"), joblib.CONTENDER, ""),
    (Key("ProcessPoolExecutor"), process_pool.CONTENDER, ""),
    (Key("executorlib", "ZeroMQ"), executorlib.CONTENDER, "interactive"),
    (Key("executorlib", "files"), executorlib.CONTENDER, "file"),
)

_CALLS = 100
"""Calls with the same array."""

_LARGE = 1024
"""MiB from which on a turn takes seconds, and an array needs more memory than the interpreter."""

_ROUNDS = 3
"""Greatest number of turns; the slower peers have one less, and only one for a large array."""


def entries(sizes: Sizes) -> list[Entry]:
    """Arrays of 1 MiB, 100 MiB and ``--mib``, there and back; then one of 100 MiB for many calls."""
    found: list[Entry] = []
    for mib in sorted({min(each, sizes.mib) for each in (1, 100, sizes.mib)}):
        for way in ("argument", "result"):
            found += _entries(way, f"{way}, {mib} MiB", "passed file", mib, sizes)
        found.append(_floor("plain file", f"{mib} MiB", {"bytes": mib << 20}))
    mib = min(100, sizes.mib)
    return found + _entries("reused", f"{mib} MiB for {_CALLS} calls", "mapped file", mib, sizes)


def _floor(name: str, case: str, options: Mapping[str, object]) -> Entry:
    return Entry(key=Key(name, case), role="floor", take=job_of(floor.CONTENDER, name, **options), rounds=_ROUNDS)


def _entries(measure: str, case: str, plain: str, mib: int, sizes: Sizes) -> list[Entry]:
    ours, bare = Key("spoolpool", case), Key(plain, case)
    options: dict[str, object] = {"bytes": mib << 20, "tasks": _CALLS, "seconds": sizes.seconds / 2}
    large = mib >= _LARGE
    goals = {"time": Goal(limit=1.5, of="floor")}
    if large:
        goals |= {"submitter": Goal(limit=1.1), "worker": Goal(limit=1.1)}
    return [
        Entry(
            key=ours,
            role="ours",
            take=job_of(spoolpool.CONTENDER, measure, **options),
            floor=bare,
            goals=goals,
            rounds=_ROUNDS,
        ),
        _floor(plain, case, {**options, "variant": measure}),
        *(
            Entry(
                key=Key(key.contender, f"{key.case}, {case}" if key.case else case),
                role="peer",
                take=job_of(contender, measure, variant=variant, **options),
                environment=contender.environment,
                ours=ours,
                floor=bare,
                rounds=1 if large else _ROUNDS - 1,
            )
            for key, contender, variant in _PEERS
        ),
    ]


ROW = Row(
    name="arrays",
    title="Arrays: float64 there, or back, or one for many calls (--mib: the largest), durability none",
    about="""\
A NumPy array of float64 goes to a worker, which sums it, or comes back from one and is summed here. The time counts
from `submit` to the sum; none of the arrays is like another. The floor does the same with plain files between two
processes, which renames wake by inotify: `tofile`, then `memmap` and the sum. The plain file below is written and
summed by one process, which waits for nobody. Then one array is the argument of 100 calls, one at a time: ours is
`put` once, and joblib writes it once by itself; the others send it with every call, in as many calls as fit into a
turn. There the time is that of a call, with its share of the `put`, or of the `tofile`. Memory is the peak of a
process as a multiple of the array, the array itself included; of small arrays it is the interpreter's.
`ProcessPoolExecutor` and executorlib with ZeroMQ send the bytes through pipes and sockets, as joblib does with
results. Executorlib with files writes them as HDF5; its worker ends with the call, so that the peak of that is not
known, and the result is made in the call that is timed.
""",
    quantities=(
        Quantity(name="time", unit="s", title="time until the sum is known"),
        Quantity(name="submitter", unit="x", title="submitter's peak memory, of the array's size"),
        Quantity(name="worker", unit="x", title="worker's peak memory, of the array's size"),
    ),
    entries=entries,
    decision="0038-cost-of-a-call-and-of-a-second-rank.md",
)
