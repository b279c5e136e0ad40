"""How long a program takes to start."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence

from benchmarks.contender import OURS, Environment, Samples
from benchmarks.contenders import dask, executorlib, parsl
from benchmarks.harness import environment_of
from benchmarks.row import Entry, Failed, Goal, Key, Place, Quantity, Role, Row, Sizes

_OURS = Key("import spoolpool")
_FLOOR = Key("python -c pass")


def entries(sizes: Sizes) -> list[Entry]:
    """Imports in new interpreters, and commands."""

    def entry(
        key: Key,
        arguments: Sequence[str],
        role: Role = "ours",
        environment: Environment = OURS,
        goal: float | None = None,
    ) -> Entry:
        return Entry(
            key=key,
            role=role,
            take=lambda place: _take(place, arguments, sizes.starts),
            environment=environment,
            ours=None if role == "ours" else _OURS,
            floor=None if key == _FLOOR else _FLOOR,
            goals={} if goal is None else {"time": Goal(limit=goal)},
        )

    def imported(what: str) -> Sequence[str]:
        return ("python", "-c", what)

    executor = "from spoolpool import Executor"
    return [
        entry(_FLOOR, imported("pass"), "floor"),
        entry(_OURS, imported("import spoolpool"), goal=0.15),
        entry(Key(executor), imported(executor), goal=0.15),
        entry(Key("spool --help"), ("spool", "--help"), goal=0.2),
        entry(Key("spool-worker --help"), ("spool-worker", "--help")),
        entry(Key("import executorlib"), imported("import executorlib"), "peer", executorlib.CONTENDER.environment),
        entry(Key("import distributed"), imported("import distributed"), "peer", dask.CONTENDER.environment),
        entry(Key("import parsl"), imported("import parsl"), "peer", parsl.CONTENDER.environment),
    ]


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
            env={name: value for name, value in environment_of(place.python, "/tmp").items() if name != "PYTHONPATH"},
        )
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - before
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Failed(f"{' '.join(arguments)} ended with status {process.returncode}")
        if number:  # the first one fills caches
            taken["time"].append(took)
            taken["CPU"].append(used.ru_utime + used.ru_stime)
    return taken


ROW = Row(
    name="start",
    title="Start: new processes, files in the page cache",
    about="""\
Commands in new processes, with their files in the page cache, until they have ended. The first start is not counted.
The floor is an interpreter that does nothing. Each library is imported in an environment of its own, in which it was
installed with what it requires.
""",
    quantities=(
        Quantity(name="time", unit="s", title="until it has ended"),
        Quantity(name="CPU", unit="s", title="CPU time"),
    ),
    entries=entries,
)
