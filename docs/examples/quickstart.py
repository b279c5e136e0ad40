"""One function on two MPI ranks: python quickstart.py SPOOL, while a worker group serves SPOOL."""

import sys

from spoolpool import Executor


def calc(i):
    from mpi4py import MPI

    return i, MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()


with Executor(spool=sys.argv[1]) as exe:
    future = exe.submit(calc, 0, resource_dict={"cores": 2})
    print(future.result())
