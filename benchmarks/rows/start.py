"""Start times: of a program, and of a group until its first call."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence

from benchmarks.contender import OURS, Environment, Samples
from benchmarks.contenders import dask, executorlib, parsl, spoolpool
from benchmarks.harness import environment_of
from benchmarks.imports import VARIABLE, read_imports
from benchmarks.jobs import job_of, run_job
from benchmarks.row import Entry, Failed, Goal, Key, Place, Quantity, Role, Row, Sizes, Take

_OURS = Key("import spoolpool")
_FLOOR = Key("python -c pass")
_GROUP = Key("spool-worker", "2 ranks, to its first call")
_MPI = Key("mpiexec -n 2 of an import of mpi4py.MPI")
_FIRST = Key("spoolpool", "import to first result")
_POOL = Key("ProcessPoolExecutor", _FIRST.case)
_WAITING = 1000
"""Tasks in the spool that is looked at."""

_ROUNDS = 3
"""Turns at most: each starts everything several times."""


def entries(sizes: Sizes) -> list[Entry]:
    """Imports in new interpreters, commands, groups, and programs that make one call."""

    def entry(
        key: Key,
        arguments: Sequence[str],
        role: Role = "ours",
        environment: Environment = OURS,
        *,
        ours: Key = _OURS,
        goal: Goal | None = None,
    ) -> Entry:
        return Entry(
            key=key,
            role=role,
            take=lambda place: _take(place, arguments, sizes.starts),
            environment=environment,
            ours=None if role == "ours" or key == _MPI else ours,
            floor=None if role == "floor" else _FLOOR,
            goals={} if goal is None else {"time": goal},
            rounds=_ROUNDS,
        )

    def imported(what: str) -> Sequence[str]:
        return ("python", "-c", what)

    def first(key: Key, executor: str, role: Role = "peer", environment: Environment = OURS) -> Entry:
        module, _, call = executor.partition(":")
        name = call.partition("(")[0]
        code = f"from {module} import {name}\nwith {call} as exe:\n    assert exe.submit(pow, 2, 3).result() == 8"
        goal = Goal(limit=1 / 1.5, of="peers", peers=(_POOL,), who=_POOL.contender) if key == _FIRST else None
        return entry(key, imported(code), role, environment, ours=_FIRST, goal=goal)

    def group(key: Key, **options: object) -> Entry:
        take = job_of(spoolpool.CONTENDER, "start", tasks=sizes.starts, **options)
        goals = {"time": Goal(limit=1.5, of="floor")} if key == _GROUP else {}
        return Entry(key=key, role="ours", take=take, floor=_MPI, goals=goals, rounds=_ROUNDS)

    executor = "from spoolpool import Executor"
    peer = executorlib.CONTENDER.environment
    return [
        entry(_FLOOR, imported("pass"), "floor"),
        entry(_OURS, imported("import spoolpool"), goal=Goal(limit=0.08)),
        entry(Key(executor), imported(executor), goal=Goal(limit=0.08)),
        entry(Key("spool --help"), ("spool", "--help"), goal=Goal(limit=0.2)),
        Entry(
            key=Key("spool status", f"{_WAITING} tasks wait"),
            role="ours",
            take=_status(sizes.starts),
            floor=_FLOOR,
            rounds=_ROUNDS,
        ),
        entry(Key("spool-worker --help"), ("spool-worker", "--help")),
        entry(Key("import executorlib"), imported("import executorlib"), "peer", peer),
        entry(Key("import distributed"), imported("import distributed"), "peer", dask.CONTENDER.environment),
        entry(Key("import parsl"), imported("import parsl"), "peer", parsl.CONTENDER.environment),
        entry(_MPI, ("mpiexec", "-n", "2", *imported("from mpi4py import MPI")), "floor"),
        group(_GROUP, ranks=2),
        group(Key("spool-worker", "2 ranks, under a supervisor, to its first call"), ranks=2, variant="supervised"),
        group(Key("spool-worker", "1 rank, to its first call")),
        first(_FIRST, "spoolpool:Executor(max_workers=1)", "ours"),
        first(_POOL, "concurrent.futures:ProcessPoolExecutor(1)"),
        first(
            Key("executorlib", f"ZeroMQ, {_FIRST.case}"),
            "executorlib:SingleNodeExecutor(max_workers=1, block_allocation=True)",
            environment=peer,
        ),
    ]


def _status(times: int) -> Take:
    def take(place: Place) -> Samples:
        run_job(spoolpool.CONTENDER, place, "fill", {"tasks": _WAITING})
        return _take(place, ("spool", "status", f"{place.directory}/d/spool"), times)

    return take


def _take(place: Place, arguments: Sequence[str], times: int) -> Samples:
    program = os.path.join(os.path.dirname(place.python), arguments[0])
    taken: Samples = {"time": [], "CPU": []}
    for number in range(times + 1):
        before = time.perf_counter()
        process = subprocess.Popen(
            [program, *arguments[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(place.python),
        )
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - before
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Failed(f"{' '.join(arguments)} ended with status {process.returncode}")
        if number:  # the first one fills caches
            taken["time"].append(took)
            taken["CPU"].append(used.ru_utime + used.ru_stime)
    if arguments[:2] == ("python", "-c"):
        taken |= _imports(program, arguments[1:])
    return taken


def _imports(python: str, arguments: Sequence[str]) -> Samples:
    """Return the modules that a program of Python imports, and the seconds that their code takes."""
    done = subprocess.run(
        [python, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**_environment(python), VARIABLE: "1"},
        check=True,
    )
    return read_imports(done.stderr)


def _environment(python: str) -> dict[str, str]:
    return {name: value for name, value in environment_of(python, "/tmp").items() if name != "PYTHONPATH"}


ROW = Row(
    name="start",
    title="Start: new processes, files in the page cache",
    about="""\
Commands in new processes, with their files in the page cache, until they have ended. The first start is not counted.
The floor is an interpreter that does nothing. Each library is imported in an environment of its own, in which it was
installed with what it requires. A group is started by `spool-worker` for a spool in which a call waits, and the clock
stops when that call has begun on all ranks; its floor is an MPI program of as many ranks that does nothing, until that
has ended. *Under a supervisor* a process is started that starts the group by mpiexec. *Import to first result* is a
program that makes an executor of one worker and one call, until it has ended. Modules and their seconds are those of
one more start: of the program and the processes that it starts, or of the group of one rank until its end.
""",
    quantities=(
        Quantity(name="time", unit="s", title="until it has ended; a group: until its first call begins"),
        Quantity(name="CPU", unit="s", title="CPU time"),
        Quantity(name="import", unit="s", title="imports, by python -X importtime, which slows them down"),
        Quantity(name="modules", unit="", title="imported modules"),
    ),
    entries=entries,
    decision="0035-deferred-imports-of-a-group.md",
)
