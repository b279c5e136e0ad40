"""Program that creates executors in unusual places: in tasks, in job steps, on ranks; see :func:`main`."""

from __future__ import annotations

import sys
from typing import Any

from spoolpool import Executor


def size() -> int:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_size()


def inner() -> Any:
    """Return the results of an executor for a function on two ranks and one on a single rank."""
    with Executor(max_workers=1, cores_per_worker=2) as executor:
        one = executor.submit(pow, 2, 3, resource_dict={"cores": 1})
        return executor.submit(size).result()[1], one.result(), executor._runtime.pool._launcher.name  # type: ignore[union-attr]


def inner_on_first_rank() -> Any:
    from mpi4py import MPI

    return inner() if MPI.COMM_WORLD.Get_rank() == 0 else None


def main(what: str, backend: str = "auto") -> None:
    """Run an executor: ``plain``: in this process; ``rank``: on rank 0 of these ranks; ``task``: in tasks of another.

    Print the results of :func:`inner`, and for ``task`` the launcher of the outer groups.
    """
    if what == "plain":
        print(*inner())
    elif what == "rank":
        found = inner_on_first_rank()
        if found is not None:
            print(*found)
    else:
        with Executor(max_workers=1, backend=backend) as executor:
            print(*executor.submit(inner).result(), "in", executor._runtime.pool._launcher.name)  # type: ignore[union-attr]
            found, _ = executor.submit(inner_on_first_rank, resource_dict={"cores": 2}).result()
            print(*found, "in a group of 2")


if __name__ == "__main__":
    main(*sys.argv[1:])
