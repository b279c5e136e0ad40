"""Launcher of groups of MPI ranks on this host, or on the hosts that mpiexec finds itself."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from spoolpool import settings
from spoolpool.launch.launcher import HostLauncher, LaunchOptions, python_worker
from spoolpool.launch.mpi_implementation import mpi_of_command
from spoolpool.launch.output_relay import location_of
from spoolpool.resources import Shape


def find_mpiexec() -> str | None:
    """Return the mpiexec that the environment names, else the one beside this Python, else that of ``PATH``, or None.

    An MPI installed as a wheel has its mpiexec beside the interpreter. The mpiexec of another MPI would start ranks
    that do not find each other.
    """
    named = os.environ.get(settings.ENV_MPIEXEC)
    if named:
        return shutil.which(named)
    beside = os.path.join(sys.prefix, "bin", "mpiexec")
    return beside if os.access(beside, os.X_OK) else shutil.which("mpiexec")


def why_no_mpiexec() -> str:
    """Return the reason why :func:`find_mpiexec` finds none, with what to do."""
    named = os.environ.get(settings.ENV_MPIEXEC)
    if named:
        path = os.path.abspath(named)
        fault = "is not executable" if "/" in named and os.path.exists(path) else "does not exist"
        where = path if "/" in named else f"{named} on PATH"
        return f"{settings.ENV_MPIEXEC} names {where}, which {fault}. Correct the variable, or unset it."
    return (
        "There is no mpiexec beside this Python, nor on PATH. Install an MPI (pip install 'spoolpool[mpi]'), or name "
        f"the command in {settings.ENV_MPIEXEC}."
    )


_PLACED = (
    "--host",
    "-host",
    "-H",
    "--hostfile",
    "-hostfile",
    "--machinefile",
    "-machinefile",
    "--mca",
    "-mca",
    "--map-",
)
"""Beginnings of options of Open MPI by which a user places ranks on other nodes."""
_THIS_HOST = ("--mca", "ras", "^slurm,tm,lsf,gridengine,alps,pals,flux,pbs,simulator,testrm")
"""Options of Open MPI that hide the allocation of a batch system from it. Otherwise it starts a daemon on each node of
the allocation, by ssh if it was not built for the system, although all ranks run on this host."""


class MpiexecLauncher(HostLauncher):
    """Starts groups by the mpiexec of any MPI implementation."""

    name = "mpiexec"

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        # within a step, mpiexec would start its ranks by srun and wait for cores that the step itself holds;
        # and Open MPI 4.1's crashes on Flux's variables for its tasks
        steps = {"SLURM_STEP_ID": "SLURM_", "FLUX_TASK_RANK": "FLUX_"}
        self.removed_variables = tuple(names for step, names in steps.items() if os.environ.get(step))

    def output(self, shape: Shape, options: LaunchOptions, group: str) -> tuple[list[int], dict[str, str]]:
        """Return pipes for mpiexec and for each rank: mpiexec mixes the lines of its ranks."""
        output, variables = super().output(shape, options, group)
        if options.relay is not None and options.relay.labels and shape.ranks > 1:
            for rank in range(shape.ranks):
                output += options.relay.pipes(group, options.nodes, rank=rank)
            variables[settings.ENV_OUTPUT] = location_of(output[2:])
        return output, variables

    def command(self, shape: Shape, arguments: Sequence[str], options: LaunchOptions) -> list[str]:
        """Return mpiexec with the options of its implementation; a single rank is started without it."""
        if shape.ranks == 1:
            return python_worker(arguments)
        command = [self._path, "-n", str(shape.ranks)]
        if mpi_of_command(self._path) == "openmpi":
            # MPICH's mpiexec starts more ranks than cores anyway, and rejects the option
            if options.oversubscribe:
                command.append("--oversubscribe")
            command += ["--bind-to", "none"]
            if not any(each.startswith(_PLACED) for each in options.extra):
                command += _THIS_HOST
            if os.geteuid() == 0:
                command.append("--allow-run-as-root")
        return [*command, *options.extra, *python_worker(arguments)]
