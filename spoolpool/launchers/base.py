"""What all launchers share: the wishes of a user, the command of one rank, and its environment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.resources import Shape

_END_SECONDS = 5.0

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
    output: str = ""
    """File for what Flux jobs print; other launchers hand on the supervisor's own output."""
    urgency: int = 16
    """Urgency of Flux jobs, from 0 to 31."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set."""


class GroupProcess(Protocol):
    """What was started for one group."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""

    def end(self) -> None:
        """End all of its ranks, and wait until they are gone."""


class Launcher(Protocol):
    """Starts groups."""

    name: str

    def command(self, shape: Shape, arguments: Sequence[str], options: Options) -> list[str]:
        """The command for one group; ``arguments`` are the worker's own. Raises where it cannot be started."""

    def start(
        self, shape: Shape, arguments: Sequence[str], options: Options, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Start one group; ``variables`` are for its workers."""

    def fits(self, shape: Shape) -> int | None:
        """How many groups of a shape run side by side in the allocation; None where there is none."""

    def seconds_left(self) -> float | None:
        """Seconds until the allocation ends; None if it does not, or nobody knows."""


class CommandProcess:
    """A group that was started by a command, in a session of its own: a Ctrl-C is for its supervisor."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: str | None) -> None:
        try:
            self._process = subprocess.Popen(
                command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise LauncherError(f"Cannot start a worker group with {command[0]}: {error.strerror}.") from error

    def poll(self) -> int | None:
        """The exit code of the command."""
        return self._process.poll()

    def end(self) -> None:
        """SIGTERM, at which srun and mpiexec end their ranks on all hosts; then kill what is left on this one."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except (ProcessLookupError, PermissionError):
                self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)


class CommandLauncher(ABC):
    """A launcher that is a command."""

    name = ""
    drops: tuple[str, ...] = ()
    """Beginnings of names of variables that its groups must not inherit."""

    @abstractmethod
    def command(self, shape: Shape, arguments: Sequence[str], options: Options) -> list[str]:
        """The command for one group; ``arguments`` are the worker's own. Raises where it cannot be started."""

    def start(
        self, shape: Shape, arguments: Sequence[str], options: Options, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Run the command."""
        env = {**environment(shape, options, self.drops), **variables}
        return CommandProcess(self.command(shape, arguments, options), env, options.cwd)

    def fits(self, shape: Shape) -> int | None:
        """Nothing is allocated."""
        return None

    def seconds_left(self) -> float | None:
        """There is no end."""
        return None


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
