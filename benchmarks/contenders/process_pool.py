"""The standard library's process pool: pipes within one process tree, on one host, without MPI."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from benchmarks.contender import Contender, Job
from benchmarks.measures import Submits, of_executor


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """A pool of as many processes."""
    with ProcessPoolExecutor(job.workers) as pool:
        yield pool


CONTENDER = Contender(name="ProcessPoolExecutor", module=__name__, measures=of_executor(executor, chunks=True))

if __name__ == "__main__":
    CONTENDER.main()
