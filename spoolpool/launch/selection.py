"""Selection of a launcher by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spoolpool import settings
from spoolpool.errors import BadRequest, LauncherError
from spoolpool.launch.allocation import Allocation, find_allocation, in_step
from spoolpool.system import defaults

if TYPE_CHECKING:
    from spoolpool.launch.launcher import Launcher

NAMES = settings.LAUNCHERS

_SYSTEMS = {"srun": "slurm", "flux": "flux", "jsrun": "lsf"}
"""Batch systems of the launchers that need the allocation of one."""


def default_launcher() -> str:
    """Return the name of the launcher that is used if none is given: that of the environment, user or site, or auto.

    srun, Flux and jsrun give way to ``auto`` outside a batch script of their system. Raises :class:`BadRequest` if the
    default is unknown because of a mistake in a file.
    """
    name = str(defaults.find("launcher").value)
    if (system := _SYSTEMS.get(name)) and (find_allocation().system != system or in_step()):
        return "auto"
    return name


def select_launcher(name: str) -> Launcher:
    """Return the launcher of a name. Raises :class:`LauncherError` if it cannot be used here.

    ``auto`` is Flux or srun in the batch script of a Flux instance or a Slurm job, and jsrun in that of an LSF job that
    has it. Elsewhere, also within a step, where those would wait for resources that the step itself holds, it is
    mpiexec if there is one, else plain processes. In a job of PBS, LSF or Grid Engine mpiexec uses all nodes.
    """
    allocation = find_allocation()
    if name == "auto":
        name = _find_best(allocation)
    # each is imported when it is chosen: a process uses one of them
    if name == "flux":
        from spoolpool.launch.flux import FluxLauncher

        return FluxLauncher()
    if name == "srun":
        from spoolpool.launch.srun import SrunLauncher

        return SrunLauncher(allocation)
    if name == "jsrun":
        from spoolpool.launch.jsrun import JsrunLauncher

        return JsrunLauncher(allocation)
    if name == "local":
        from spoolpool.launch.local import LocalLauncher

        return LocalLauncher()
    if name == "mpiexec":
        return _mpiexec_launcher(allocation)
    raise BadRequest(f"There is no launcher {name!r}; there are {', '.join(NAMES)}.")


def _find_best(allocation: Allocation) -> str:
    if allocation.system in ("flux", "slurm") and not in_step():
        return {"flux": "flux", "slurm": "srun"}[allocation.system]
    if allocation.system == "lsf" and not in_step():
        from spoolpool.launch.jsrun import has_jsrun

        if has_jsrun():
            return "jsrun"
    from spoolpool.launch.mpiexec import find_mpiexec

    return "mpiexec" if find_mpiexec() else "local"


def _mpiexec_launcher(allocation: Allocation) -> Launcher:
    from spoolpool.launch.mpiexec import MpiexecLauncher, find_mpiexec, why_no_mpiexec

    path = find_mpiexec()
    if path is None:
        raise LauncherError(why_no_mpiexec())
    if len(allocation.nodes) > 1 and allocation.system in ("pbs", "lsf", "sge") and not in_step():
        from spoolpool.launch.mpiexec_job import JobMpiexecLauncher

        return JobMpiexecLauncher(path, allocation)
    return MpiexecLauncher(path)
