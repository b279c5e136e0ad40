"""executorlib: warm workers behind ZeroMQ sockets, and one process per call with files between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contender import Contender, Environment, Job
from benchmarks.contenders.mpi4py_futures import MPI
from benchmarks.measures import Submits, of_executor


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """Variants: ``interactive``; ``plain``, which is the same without its thread for dependencies; ``file``."""
    from executorlib import SingleNodeExecutor
    from executorlib.api import TestClusterExecutor

    resources = {"cores": job.ranks}
    if job.variant == "file":
        with TestClusterExecutor(cache_directory=f"{job.directory}/cache", resource_dict=resources) as files:
            yield files
    else:
        with SingleNodeExecutor(
            max_workers=job.workers,
            resource_dict=resources,
            block_allocation=True,
            disable_dependencies=job.variant == "plain",
        ) as interactive:
            yield interactive


CONTENDER = Contender(
    name="executorlib",
    module=__name__,
    measures=of_executor(executor),
    environment=Environment(name="executorlib", requires=("executorlib", "h5py", "numpy", *MPI)),
)

if __name__ == "__main__":
    CONTENDER.main()
