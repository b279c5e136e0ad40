"""Environment of this process, and environment and search path of child processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

_INHERITED = (
    "PMI_",
    "PMIX_",
    "OMPI_",
    "MPI_LOCAL",
    "MPIR_",
    "HYDRA_",
    "HYDI_",
    "MPICH_INTERFACE",
    "PALS_",
    "JSM_",
    "FLUX_PMI",
)


def working_directory() -> str:
    """Return the working directory of this process; empty if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def without_mpi(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that a surrounding MPI sets for its own ranks."""
    return {
        key: value
        for key, value in variables.items()
        if not key.startswith(_INHERITED) or key.startswith(("OMPI_ALLOW", "OMPI_MCA_"))
    }


def config_directory() -> str:
    """Return the directory of the user's keys and records. It does not exist for an account without a home."""
    return _own_directory("XDG_CONFIG_HOME", ".config")


def state_directory() -> str:
    """Return the directory of the user's files that are neither settings nor a cache, such as the output of jobs."""
    return _own_directory("XDG_STATE_HOME", ".local/state")


def _own_directory(variable: str, default: str) -> str:
    base = os.environ.get(variable, "")
    if not os.path.isabs(base):
        home = os.path.expanduser("~")  # relative: neither HOME nor an entry in the account database
        # a home is never made, not even by root
        base = os.path.join(home if os.path.isabs(home) and os.path.isdir(home) else os.devnull, default)
    return os.path.join(base, "spoolpool")


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of an installed package.

    The working directory is not on its search path: files of a user there may have the names of modules of the standard
    library.
    """
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-m", module, *arguments]
    start = f"import sys; sys.path.remove(''); import runpy; runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-c", start, *arguments]
