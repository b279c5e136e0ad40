"""Functions that tests submit to groups of several ranks."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from spoolpool.system.backoff import Backoff
from spoolpool.system.stop_request import was_requested
from tests.support.tasks import OwnError, PickyError, lock, mark, wait_for


def hold_gil(directory: str | Path, gate: str | Path) -> None:
    """Wait on each rank in C code for the lock of a file, while holding the global interpreter lock."""
    from mpi4py import MPI

    fd = os.open(gate, os.O_RDWR)
    mark(f"{directory}/started-{MPI.COMM_WORLD.Get_rank()}")
    ctypes.PyDLL(None).flock(fd, fcntl.LOCK_SH)


def wait_on_each_rank(directory: str | Path, end: str | Path, *, hold_gil: bool) -> None:
    """Record the run of each rank, then wait until a file exists.

    With ``hold_gil`` and without that file, wait for ever in C code that no signal interrupts, while holding the global
    interpreter lock.
    """
    from mpi4py import MPI

    mark(f"{directory}/started-{MPI.COMM_WORLD.Get_rank()}")
    if hold_gil and not os.path.exists(end):
        _hang(hold_gil=True)
    wait_for(end)


def rank_0_exits(*, hold_gil: bool) -> None:
    """End the process of rank 0 with status 0, while the others wait for ever."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_rank() == 0:
        os._exit(0)
    _hang(hold_gil=hold_gil)


def _hang(*, hold_gil: bool) -> None:
    """Wait for ever: in C code that no signal interrupts and that holds the global interpreter lock, or in Python."""
    mutex = ctypes.create_string_buffer(256)
    while hold_gil:
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)
    wait_for("/nonexistent")


def mark_and_wait_for_stop(started: str | Path, requested: str | Path, end: str | Path) -> str:
    """Record the run, then wait until another file exists; record a request to stop this process meanwhile."""
    mark(started)
    backoff = Backoff(0.002, 0.05)
    while not os.path.exists(end):
        if was_requested() and not os.path.exists(requested):
            mark(requested)
        backoff.sleep()
    return "done"


def where() -> tuple[int, int, int]:
    """Return rank and size of the world of MPI, and the sum of the ranks that it connects."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    return comm.Get_rank(), comm.Get_size(), comm.allreduce(comm.Get_rank())


def where_in_the_group() -> tuple[int, int, int, bool]:
    """Return rank, size and sum of pids of the group's communicator, and whether ``COMM_WORLD`` is the same."""
    from mpi4py import MPI

    from spoolpool import current_task

    comm = current_task().comm
    return comm.Get_rank(), comm.Get_size(), comm.allreduce(os.getpid()), comm is MPI.COMM_WORLD


def meet(mine: str | Path, other: str | Path) -> tuple[int, tuple[int, ...]]:
    """Wait for a task of another group that runs at the same time; return size and pids of the communicator."""
    from spoolpool import current_task

    comm = current_task().comm
    if comm.rank == 0:
        mark(mine)
    wait_for(other)
    return comm.size, tuple(comm.allgather(os.getpid()))


def rank() -> int:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank()


def raises_on(failing: tuple[int, ...], error: str = "") -> int:
    """Raise on some ranks, return on the others."""
    mine = rank()
    if mine in failing:
        if error == "picky":
            raise PickyError(7, f"on {mine}")
        raise OwnError(f"from rank {mine}")
    return mine


def lock_on(failing: tuple[int, ...]) -> Any:
    """Return a value that cannot be pickled on some ranks."""
    return lock() if rank() in failing else rank()


def raises_while_others_wait(failing: int, trace: str | Path) -> None:
    """Raise on one rank while all others wait in a collective that it never joins."""
    from mpi4py import MPI

    mark(trace)
    if rank() == failing:
        raise OwnError(f"from rank {failing}")
    MPI.COMM_WORLD.Barrier()


def leaves_behind(kind: str) -> str:
    """Leave a message in ``COMM_WORLD`` that is never received."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    last = comm.size - 1
    match kind.split():
        case ["gather", "raise"]:  # without a cleaner, the next task gathers the value of the last rank of this one
            if comm.rank == 0:
                raise OwnError("before its gather")
            comm.gather("stale")
        case ["gather"]:
            if comm.rank == last:
                comm.gather("stale")
        case ["bcast"]:
            if comm.rank == 0:
                comm.bcast("stale")
        case ["isend", *more]:
            if comm.rank == last:
                comm.isend("stale", 0, tag=3)
                comm.isend("stale", 0)
            if more:
                raise OwnError("on every rank")
        case ["large", "isend"]:
            if comm.rank == last:
                comm.Isend(bytearray(10_000_000), 0)
        case ["send", "to", "itself"]:
            comm.isend("stale", comm.rank)
        case ["receive"]:
            # kept, like in a library: the memory must outlive the function
            buffer = bytearray(4000)
            sys.modules["kept"] = (buffer, comm.Irecv(buffer, MPI.ANY_SOURCE, MPI.ANY_TAG))  # type: ignore[assignment]
    return "left"


def exchange(value: Any) -> tuple[Any, ...]:
    """Send a value in all ways of :func:`leaves_behind`, with receives that match any message."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    gathered = comm.gather((value, comm.rank))
    told = comm.bcast(value if comm.rank == 0 else None)
    sent = comm.isend((value, comm.rank), (comm.rank + 1) % comm.size)
    received = comm.recv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
    sent.wait()
    return gathered, told, received


def exchanged(value: Any, size: int) -> list[tuple[Any, ...]]:
    """Return the values of :func:`exchange` on all ranks."""
    gathered = [(value, rank) for rank in range(size)]
    return [(gathered if rank == 0 else None, value, (value, (rank - 1) % size)) for rank in range(size)]


def ends(how: str, failing: int, trace: str | Path) -> None:
    """End the process of one rank, while the others wait for it in a collective."""
    from mpi4py import MPI

    if rank() == failing:
        mark(trace)
        if how == "sys.exit":
            sys.exit(3)
        if how == "os._exit":
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, how))
    MPI.COMM_WORLD.Barrier()


def scaled(array: Any, keep: list[Any]) -> Any:
    """Return an array that depends on the rank, after writing to the argument."""
    array += rank()
    return {"array": array, "keep": keep}


def preset(trace: str) -> dict[str, Any]:
    """Initialize a rank, as an ``init_function`` that leaves a trace for each rank."""
    mark(f"{trace}-{rank()}")
    return {"seed": 100 + rank()}


def use_preset(seed: int = 0) -> int:
    return seed


def nested() -> Any:
    """Start a group on a rank."""
    from spoolpool import Executor

    with Executor(max_workers=1, cores_per_worker=2) as executor:
        return executor.submit(where).result()


def group_pid() -> int:
    from spoolpool import current_task

    return os.getpid() if current_task().comm is not None else -1


def echo(value: Any) -> tuple[Any, int]:
    return value, rank()


def only_rank_0_waits(trace: str | Path) -> None:
    """Raise on all ranks but 0, which waits for them."""
    from mpi4py import MPI

    mark(trace)
    if rank():
        raise OwnError(f"from rank {rank()}")
    MPI.COMM_WORLD.Barrier()


def preset_that_fails_first(trace: str, failing: int) -> dict[str, Any]:
    """Initialize a rank, as an ``init_function`` with a first call that fails on one rank."""
    if rank() == failing and not os.path.exists(trace):
        mark(trace)
        raise OwnError("no seed yet")
    return {"seed": 100 + rank()}


def close_fifos() -> None:
    """Close the FIFOs of the group, like a function that becomes a daemon."""
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.islink(path) and "spoolpool-" in os.readlink(path):
            os.close(int(name))


PROGRAM = "from mpi4py import MPI; c = MPI.COMM_WORLD; c.Barrier(); print(c.Get_rank(), c.Get_size(), flush=True)"


def run_own_mpi(mpiexec: str) -> list[str]:
    """Run a program of two ranks with an MPI of its own, and one that starts without a launcher, on rank 0."""
    from spoolpool import current_task

    task = current_task()
    if task.rank:
        return []
    lines = []
    for command in ([mpiexec, "-n", "2", sys.executable, "-c", PROGRAM], [sys.executable, "-c", PROGRAM]):
        ended = subprocess.run(command, env=task.clean_environment(), check=True, capture_output=True, text=True)
        lines += sorted(ended.stdout.splitlines())
    return lines
