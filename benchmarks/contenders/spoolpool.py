"""spoolpool itself: embedded, or attached to a spool whose one group is started by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contender import Contender, Job
from benchmarks.measures import Submits, of_executor

DURABILITIES: tuple[Any, ...] = ("none", "data", "full")
"""Variants of the attached executor; without a variant it is embedded, which is durability none."""


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """As a user has it."""
    from spoolpool import Executor

    if job.variant:
        with _attached(job) as attached:
            yield attached
    else:
        with Executor(max_workers=job.workers, cores_per_worker=job.ranks, oversubscribe=job.ranks > 1) as embedded:
            yield embedded


@contextmanager
def _attached(job: Job) -> Iterator[Submits]:
    from spoolpool import Executor, Spool

    path = f"{job.directory}/spool"
    Spool.create(path, durability=DURABILITIES[DURABILITIES.index(job.variant)])
    command = [sys.executable, "-m", "spoolpool.cli.worker", path]
    if job.workers > 1 or job.ranks > 1:
        command += ["--groups", str(job.workers), "--ranks", str(job.ranks)]
        command += ["--launcher", "mpiexec", "--oversubscribe"] if job.ranks > 1 else ["--launcher", "local"]
    worker = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        with Executor(cores_per_worker=job.ranks, spool=path) as attached:
            yield attached
    finally:
        worker.terminate()
        worker.wait(30)


CONTENDER = Contender(name="spoolpool", module=__name__, measures=of_executor(executor))

if __name__ == "__main__":
    CONTENDER.main()
