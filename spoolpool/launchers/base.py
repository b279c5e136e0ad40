"""What all launchers share: the wishes of a user, the command of one rank, and its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from spoolpool import settings
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
    drops: tuple[str, ...]
    """Beginnings of names of variables that its groups must not inherit."""

    def command(self, shape: Shape, arguments: Sequence[str], options: Options) -> list[str]:
        """The command for one group; ``arguments`` are the worker's own."""


def python_worker(arguments: Sequence[str]) -> list[str]:
    """The command of one rank."""
    return [sys.executable, "-m", WORKER_MODULE, *arguments]


_INHERITED = ("PMI_", "PMIX_", "OMPI_", "MPI_LOCAL", "MPIR_", "HYDRA_", "HYDI_", "MPICH_INTERFACE", "PALS_", "FLUX_PMI")


def without_mpi(variables: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a surrounding MPI left in it for its own ranks."""
    return {
        key: value
        for key, value in variables.items()
        if not key.startswith(_INHERITED) or key.startswith(("OMPI_ALLOW", "OMPI_MCA_"))
    }


def environment(shape: Shape, options: Options, drops: tuple[str, ...] = ()) -> dict[str, str]:
    """What the ranks find in their environment.

    What the MPI of a surrounding program left there is taken out: a worker that is started from within a rank
    would take itself for that rank (and Debian's mpiexec 4.1 crashes on some of it).
    """
    keep = without_mpi(os.environ)
    for name in settings.NUMBER_OF_THREADS:
        keep[name] = str(shape.threads)
    if drops:
        keep = {key: value for key, value in keep.items() if not key.startswith(drops)}
    return {**keep, **options.environment}
