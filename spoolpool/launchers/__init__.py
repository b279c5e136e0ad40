"""How a group's ranks are started. A launcher builds a command; it knows neither worker nor spool."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from spoolpool import settings
from spoolpool.errors import BadRequest, LauncherError
from spoolpool.resources import Shape

WORKER_MODULE = "spoolpool.cli.worker"
"""What each rank runs: ``python -m`` this."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Further wishes of a user about the start of groups."""

    oversubscribe: bool = False
    """Start more ranks than there are cores."""
    cwd: str | None = None
    """Working directory of the ranks."""
    extra: tuple[str, ...] = ()
    """Arguments that are handed to the launcher's command as they are."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set."""


class Launcher(Protocol):
    """Builds the command that starts one group."""

    name: str

    def command(self, shape: Shape, arguments: Sequence[str], options: Options) -> list[str]:
        """The command for one group; ``arguments`` are the worker's own."""


def python_worker(arguments: Sequence[str]) -> list[str]:
    """The command of one rank."""
    return [sys.executable, "-m", WORKER_MODULE, *arguments]


_INHERITED = ("PMI_", "PMIX_", "OMPI_", "MPI_LOCAL", "MPIR_", "HYDRA_", "HYDI_", "MPICH_INTERFACE", "PALS_", "FLUX_PMI")


def environment(shape: Shape, options: Options) -> dict[str, str]:
    """What the ranks find in their environment.

    What the MPI of a surrounding program left there is taken out: a worker that is started from within a rank
    would take itself for that rank (and Debian's mpiexec 4.1 crashes on some of it).
    """
    keep = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(_INHERITED) or key.startswith(("OMPI_ALLOW", "OMPI_MCA_"))
    }
    for name in settings.NUMBER_OF_THREADS:
        keep[name] = str(shape.threads)
    return {**keep, **options.environment}


def choose(name: str) -> Launcher:
    """The launcher of that name; ``auto`` is mpiexec where there is one, else plain processes."""
    from spoolpool.launchers.local import LocalLauncher
    from spoolpool.launchers.mpiexec import MpiexecLauncher, find_mpiexec

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
