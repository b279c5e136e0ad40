"""joblib's processes (loky): an array in an argument is written to a file once, and mapped by the workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contender import Contender, Environment, Job
from benchmarks.measures import Submits, of_executor


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """Executor of ``Parallel``; arrays from 1 MB on are mapped, as there."""
    from joblib.executor import get_memmapping_executor

    pool = get_memmapping_executor(job.workers, temp_folder=job.directory)
    try:
        yield pool
    finally:
        pool.terminate(kill_workers=True)


CONTENDER = Contender(
    name="joblib",
    module=__name__,
    measures=of_executor(executor),
    environment=Environment(name="joblib", requires=("joblib", "numpy")),
)

if __name__ == "__main__":
    CONTENDER.main()
