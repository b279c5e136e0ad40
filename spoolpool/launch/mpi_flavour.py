"""Which MPI do the ranks load?"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

from spoolpool.errors import LauncherError
from spoolpool.system.environment import without_mpi

_ASK = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"


@functools.cache
def mpi_in_use() -> str:
    """Which MPI mpi4py loads: ``mpich`` (also Intel's and Cray's), ``openmpi``, or ``unknown``."""
    said = subprocess.run(
        [sys.executable, "-c", _ASK],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=without_mpi(os.environ),
        check=False,
    )
    if said.returncode:
        raise LauncherError(
            f"mpi4py cannot be loaded by {sys.executable}: {said.stderr.strip().splitlines()[-1:] or said.returncode}. "
            "Groups of several ranks need it: install it with the site's MPI."
        )
    words = said.stdout.lower()
    if "open mpi" in words:
        return "openmpi"
    return "mpich" if any(word in words for word in ("mpich", "intel", "cray", "mvapich")) else "unknown"
