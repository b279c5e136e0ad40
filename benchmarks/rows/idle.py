"""Load of an idle pool."""

from __future__ import annotations

from benchmarks.contenders import executorlib, mpi4py_futures, process_pool, spoolpool
from benchmarks.jobs import job_of
from benchmarks.row import Entry, Goal, Key, Quantity, Row, Sizes

_OURS = Key("spoolpool", "1 group of 4 ranks")

_ROUNDS = 2
"""Turns at most: each watches for long."""


def entries(sizes: Sizes) -> list[Entry]:
    """Four processes each."""
    watch: dict[str, object] = {"seconds": sizes.idle}
    peers = (
        (Key("mpi4py.futures", "4 workers"), mpi4py_futures.CONTENDER, {"workers": 4}),
        (Key("executorlib", "ZeroMQ, 4 ranks"), executorlib.CONTENDER, {"variant": "interactive", "ranks": 4}),
        (Key("ProcessPoolExecutor", "4 workers"), process_pool.CONTENDER, {"workers": 4}),
    )
    return [
        Entry(
            key=_OURS,
            role="ours",
            take=job_of(spoolpool.CONTENDER, "idle", ranks=4, **watch),
            goals={"workers": Goal(limit=1.0)},
            rounds=_ROUNDS,
        ),
        Entry(
            key=Key("spoolpool", "4 groups of 1 rank"),
            role="ours",
            take=job_of(spoolpool.CONTENDER, "idle", workers=4, **watch),
            ours=_OURS,
            rounds=_ROUNDS,
        ),
        *(
            Entry(
                key=key,
                role="peer",
                take=job_of(contender, "idle", **options, **watch),
                environment=contender.environment,
                ours=_OURS,
                rounds=_ROUNDS,
            )
            for key, contender, options in peers
        ),
    ]


ROW = Row(
    name="idle",
    title="Idle: CPU time of a pool without work, per cent of one core",
    about="""\
CPU time of pools that have nothing to do, in per cent of one core, when every rhythm is at its slowest. The ranks are
counted together with what helps them (the process that sends signs of life); launcher and submitter are columns of
their own, since the one belongs to the MPI library and the other is the program of the user. The ranks of
mpi4py.futures wait in a receiving call of MPI. What an idle pool asks of the filesystem is counted in the row
*operations*.
""",
    quantities=(
        Quantity(name="workers", unit="%", title="all ranks, and what helps them"),
        Quantity(name="launcher", unit="%", title="launcher"),
        Quantity(name="submitter", unit="%", title="submitter"),
    ),
    entries=entries,
)
