"""Launcher of groups of one rank as plain processes on this host, without MPI."""

from __future__ import annotations

from collections.abc import Sequence

from spoolpool.errors import LauncherError
from spoolpool.launch.launcher import HostLauncher, LaunchOptions, python_worker
from spoolpool.resources import Shape


class LocalLauncher(HostLauncher):
    """Starts a process on this host."""

    name = "local"

    def command(self, shape: Shape, arguments: Sequence[str], options: LaunchOptions) -> list[str]:
        """Return the command of the worker; a group of several ranks needs another launcher."""
        if shape.ranks != 1:
            raise LauncherError(
                f"A group of {shape.ranks} ranks needs an MPI launcher: install one (pip install 'spoolpool[mpi]') "
                "and use mpiexec."
            )
        return python_worker(arguments)
