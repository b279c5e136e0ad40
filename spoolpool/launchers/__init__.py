"""How a group's ranks are started. A launcher builds a command; it knows neither worker nor spool."""

from __future__ import annotations

from spoolpool import settings
from spoolpool.errors import BadRequest, LauncherError
from spoolpool.launchers.base import Launcher, Options, environment, python_worker
from spoolpool.launchers.local import LocalLauncher
from spoolpool.launchers.mpiexec import MpiexecLauncher, find_mpiexec

__all__ = ["Launcher", "Options", "choose", "environment", "python_worker"]


def choose(name: str) -> Launcher:
    """The launcher of that name; ``auto`` is mpiexec where there is one, else plain processes."""
    if name == "auto":
        name = "mpiexec" if find_mpiexec() else "local"
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
    raise BadRequest(f"There is no launcher {name!r}; there are auto, local and mpiexec.")
