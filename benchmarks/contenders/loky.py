"""loky: a pool of processes with pipes on one host, which survives the death of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contender import Contender, Environment, Job
from benchmarks.measures import Submits, of_executor


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """A pool of as many processes, which no pause ends."""
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(job.workers, timeout=None) as pool:
        yield pool


CONTENDER = Contender(
    name="loky",
    module=__name__,
    measures=of_executor(executor, chunks=True),
    environment=Environment(name="loky", requires=("loky", "numpy")),
)

if __name__ == "__main__":
    CONTENDER.main()
