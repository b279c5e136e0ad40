"""mpi4py.futures: the ranks of one MPI job, a function on one of them each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contender import Contender, Environment, Job
from benchmarks.measures import Submits, of_executor

MPI = ("mpi4py>=4", "mpich")


@contextmanager
def executor(job: Job) -> Iterator[Submits]:
    """The pool of the ranks other than this one."""
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor() as pool:
        yield pool


def launch(python: str, job: Job) -> list[str]:
    """One rank submits, the others work: needs no MPI_Comm_spawn."""
    return ["mpiexec", "-n", str(1 + job.workers), python, "-m", "mpi4py.futures"]


CONTENDER = Contender(
    name="mpi4py.futures",
    module=__name__,
    measures=of_executor(executor, chunks=True),
    environment=Environment(name="mpi4py", requires=MPI),
    launch=launch,
)

if __name__ == "__main__":
    CONTENDER.main()
