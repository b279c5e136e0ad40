"""The same by a count of the system calls of real groups on this machine, to compare the closed forms with.

The groups are processes of one rank each, with a submitter that waits beside them: first with calls that take no time,
then with long ones, then idle. Nothing wakes them, as on a network filesystem. Their number, their age and their rate
are those of the run; all else in the closed form is what it says of any pool.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from benchmarks import processes, trace
from benchmarks.contenders import spoolpool_sizes
from benchmarks.harness import runner
from benchmarks.jobs import run_job
from benchmarks.row import Place
from benchmarks.scaling import model
from benchmarks.scaling.model import Pool


class Counted(NamedTuple):
    """Operations per second of a pool in one state, by the closed form and by count."""

    state: str
    pool: Pool
    counts: dict[str, float]

    def lines(self) -> Iterator[tuple[str, float, float]]:
        """Yield each kind of operation, and their sum: its name, by the closed form, by count."""
        form = model.by_kind(self.pool)
        for kind in sorted(form.keys() | self.counts.keys()):
            yield kind, form.get(kind, 0.0), self.counts.get(kind, 0.0)
        yield "all", sum(form.values()), sum(self.counts.values())


def count(python: str, *, groups: int, tasks: int, seconds: float, directory: str | None = None) -> Sequence[Counted]:
    """Count the operations of so many groups: with so many calls of nothing, with a fifth of them of 1 s, and idle.

    Raises :class:`benchmarks.row.Failed` with the reason, and ``FileNotFoundError`` without strace.
    """
    here = tempfile.mkdtemp(prefix="spb-", dir=directory)
    others = {process.pid for process in processes.below(os.getpid())}
    try:
        place = Place(python=python, directory=here, run=runner(python, here, 3600.0, others))
        traces = f"{here}/traces"
        os.mkdir(traces)
        options = {"workers": groups, "tasks": tasks, "seconds": seconds}
        samples = run_job(spoolpool_sizes.CONTENDER, place, "pool", options, trace.strace(f"{traces}/thread"))
        counted = trace.between_marks(traces, f"{here}/d")
    finally:
        processes.end_descendants(others)
        shutil.rmtree(here, ignore_errors=True)
    idle = Pool(groups=groups, age=samples["age"][0])
    states = {"calls of nothing": ("tiny", 1e-3, tasks), "calls of 1 s": ("long", spoolpool_sizes.LONG, tasks // 5)}
    found = []
    for state, (mark, length, calls) in {**states, "idle": ("idle", 0.0, 0)}.items():
        took = samples[f"{mark} seconds"][0]
        pool = replace(idle, seconds=length, begun=calls / took)
        counts = {kind: counted[mark][kind] / took for kind in trace.KINDS if counted[mark][kind]}
        found.append(Counted(state, pool, counts))
    return found
