"""How a group's ranks are started. A launcher builds a command; it knows neither worker nor spool."""

from __future__ import annotations

from spoolpool import settings
from spoolpool.errors import BadRequest, LauncherError
from spoolpool.launch.allocation import find as find_allocation
from spoolpool.launch.allocation import in_step
from spoolpool.launch.base import GroupProcess, Launcher, Options, environment, python_worker
from spoolpool.launch.local import LocalLauncher
from spoolpool.launch.mpiexec import MpiexecLauncher, find_mpiexec
from spoolpool.launch.output_relay import Relay
from spoolpool.launch.srun import SrunLauncher

__all__ = ["NAMES", "GroupProcess", "Launcher", "Options", "Relay", "choose", "environment", "python_worker"]


NAMES = ("auto", "local", "mpiexec", "srun", "flux")


def choose(name: str) -> Launcher:
    """The launcher of that name.

    ``auto`` is Flux or srun in the batch script of a Flux instance or a Slurm job; else, and so within a step, where
    those would wait for what the step itself holds, mpiexec where there is one, or plain processes.
    """
    around = find_allocation()
    if name == "auto":
        name = "mpiexec" if find_mpiexec() else "local"
        if around.kind != "none" and not in_step():
            name = {"flux": "flux", "slurm": "srun"}[around.kind]
    if name == "flux":
        from spoolpool.launch.flux import FluxLauncher  # its bindings are there where Flux is

        return FluxLauncher()
    if name == "srun":
        return SrunLauncher(around)
    if name == "local":
        return LocalLauncher()
    if name == "mpiexec":
        path = find_mpiexec()
        if path is None:
            raise LauncherError(
                "There is no mpiexec beside this Python, nor on PATH. Install an MPI (pip install 'spoolpool[mpi]'), "
                f"or name the command in {settings.ENV_MPIEXEC}."
            )
        return MpiexecLauncher(path)
    raise BadRequest(f"There is no launcher {name!r}; there are {', '.join(NAMES)}.")
