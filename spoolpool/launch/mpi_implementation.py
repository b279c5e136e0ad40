"""MPI implementation of the library that ranks load, or of an mpiexec."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

from spoolpool.errors import LauncherError
from spoolpool.system.command_output import output_of
from spoolpool.system.environment import without_mpi

_WORDS = {
    "openmpi": ("open mpi", "open-mpi", "prte"),
    "mpich": ("mpich", "hydra", "intel", "cray", "mvapich"),
}
"""Words in the version of each implementation; ``mpich`` includes those derived from it."""
# without the working directory on the search path: it may have a file mpi4py.py
_VERSION = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
)
_SECONDS = 120.0  # for loading the library from a slow filesystem


def _implementation(version: str) -> str:
    version = version.lower()
    return next((name for name, words in _WORDS.items() if any(word in version for word in words)), "unknown")


@functools.cache
def mpi_of_library() -> str:
    """Return the implementation that mpi4py loads: ``openmpi``, ``mpich`` or ``unknown``.

    Raises :class:`LauncherError` if mpi4py cannot be loaded.
    """
    try:
        version = subprocess.run(
            [sys.executable, "-c", _VERSION],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            env=without_mpi(os.environ),
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
        raise LauncherError(
            f"mpi4py cannot be loaded by {sys.executable}: {reason}. Groups of several ranks need it: install it for "
            "this Python, with the site's MPI, or with one of its own (pip install 'spoolpool[mpi]')."
        ) from error
    return _implementation(version.stdout)


def mpi_of_command(mpiexec: str) -> str:
    """Return the implementation of an mpiexec: ``openmpi``, ``mpich``, or ``unknown`` also if it cannot be run."""
    return _implementation(version_of_command(mpiexec))


@functools.cache
def version_of_command(mpiexec: str) -> str:
    """Return the version that an mpiexec prints; empty if it cannot be run."""
    return output_of([mpiexec, "--version"], seconds=30.0, errors=True)
