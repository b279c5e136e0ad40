"""Groups of one rank as plain processes: no MPI, no launcher."""

from __future__ import annotations

from collections.abc import Sequence

from spoolpool.errors import LauncherError
from spoolpool.launch.base import HostLauncher, Options, python_worker
from spoolpool.resources import Shape


class LocalLauncher(HostLauncher):
    """Starts a process on this host."""

    name = "local"

    def command(self, shape: Shape, arguments: Sequence[str], options: Options) -> list[str]:
        """The worker itself; a group of several ranks needs another launcher."""
        if shape.ranks != 1:
            raise LauncherError(
                f"A group of {shape.ranks} ranks needs an MPI launcher: install one (pip install 'spoolpool[mpi]') "
                "and use mpiexec."
            )
        return python_worker(arguments)
