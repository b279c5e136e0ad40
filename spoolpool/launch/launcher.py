"""Interface of launchers, and base classes of those that run a command."""

from __future__ import annotations

import functools
import math
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.launch.allocation import Allocation, find_allocation, host_allocation, host_share, in_step, seconds_left
from spoolpool.resources import Shape
from spoolpool.system import gpus
from spoolpool.system.environment import python_module, without_mpi

if TYPE_CHECKING:
    from spoolpool.launch.orphan_guard import OrphanGuard
    from spoolpool.launch.output_relay import Relay

WORKER_MODULE = "spoolpool.cli.worker"
"""Module that each rank runs as ``python -m``."""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Options of the start of groups."""

    oversubscribe: bool = False
    """Start more ranks than there are cores."""
    cwd: str | None = None
    """Working directory of the ranks."""
    extra: tuple[str, ...] = ()
    """Arguments for the launcher's command, unchanged."""
    output: str = ""
    """File for the output of Flux jobs; without it their output is forwarded like that of other groups."""
    urgency: int = 16
    """Urgency of Flux jobs, from 0 to 31."""
    memory: int = 0
    """Bytes of memory per rank, for srun; 0 leaves it to srun."""
    relay: Relay | None = None
    """Process that forwards the output of groups; without it their output is that of this process."""
    nodes: tuple[str, ...] = ()
    """Node of each rank of the group, if they are planned; on one host only its name."""


class GroupProcess(Protocol):
    """Processes of one group that was started."""

    end_seconds: float
    """Time that its ranks may take to end after :meth:`end`."""

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while a rank is running."""

    def end(self, *, kill: bool = False) -> None:
        """Ask all ranks to end at once, or kill them; do not wait."""


def end_margin(system: str) -> float:
    """Return the seconds for the end of all groups after their last task, before the walltime of a batch job ends."""
    return 10.0 if system == "flux" else 5.0  # Flux ends the jobs of an instance one after the other


class Launcher(ABC):
    """Way to start groups."""

    name = ""
    reaches_other_nodes = True
    """Whether it may start ranks on other nodes, which cannot see whether this process lives."""

    @abstractmethod
    def command(self, shape: Shape, arguments: Sequence[str], options: LaunchOptions) -> list[str]:
        """Return the command of one group, whose ranks get ``arguments``.

        Raises :class:`LauncherError` if a group of this shape cannot be started.
        """

    @abstractmethod
    def start(
        self, shape: Shape, arguments: Sequence[str], options: LaunchOptions, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Start one group with ``variables`` in the environment of its ranks. Raises :class:`LauncherError`."""

    def end_margin(self) -> float:
        """Return the seconds for the end of all groups after their last task, before the end of a walltime."""
        return end_margin(self.name)

    def notice(self) -> float:
        """Return the seconds between a request of the batch system to end and its kill of this process.

        Infinite if they are unknown: then they are to be longer than the time for the last tasks.
        """
        return math.inf

    @abstractmethod
    def allocation(self, options: LaunchOptions) -> Allocation:
        """Return the resources that all groups of this launcher share, as groups with these options take them."""

    def starts_ranks_itself(self, shape: Shape) -> bool:
        """Return whether the process of a group is its only rank, so that the status of one is that of the other."""
        return False

    def never_began(self, errors: Sequence[str]) -> bool:
        """Return whether a group waits, or ended while it waited, for resources that other groups hold.

        ``errors`` are the last lines on its standard error.
        """
        return False

    def seconds_left(self) -> float | None:
        """Return the seconds until the allocation ends; None if it does not, or its end cannot be determined."""
        return seconds_left()


class CommandProcess:
    """Command of one group, in a session of its own: a Ctrl-C reaches the supervisor only."""

    end_seconds = 5.0

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: str | None, output: Sequence[int]) -> None:
        """Start the command; raises ``OSError``.

        ``output`` are descriptors, closed here: standard output and standard error of the command (those of this
        process if there are none), and further ones that stay open until the command has ended.
        """
        import subprocess

        stdout, stderr = output[:2] or (None, None)
        self._kept = list(output)
        self._ending = False
        try:
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            self._kept = self._kept[2:]
            _close_all(output[:2])
        except OSError:
            _close_all(self._kept)
            raise
        self.pid = self._process.pid
        """Leader of a process group of its own."""

    def poll(self) -> int | None:
        """Return the exit code of the command; None while it is running."""
        code = self._process.poll()
        if code is not None:
            if self._ending:  # ranks may be left on this host
                self._signal(signal.SIGKILL)
            self._ending = False
            _close_all(self._kept)
            self._kept = []
        return code

    def end(self, *, kill: bool = False) -> None:
        """Send SIGTERM, after which srun and mpiexec end their ranks on all hosts, or SIGKILL."""
        self._ending = True
        self._signal(signal.SIGKILL if kill else signal.SIGTERM)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            self._process.send_signal(number)


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class CommandLauncher(Launcher):
    """Launcher that starts a group by a command."""

    label = ""
    """Regular expression of the label that the command puts before each line of a rank, with the rank as its group."""
    removed_variables: tuple[str, ...] = ()
    """Prefixes of variables that groups do not inherit."""

    @functools.cached_property
    def _orphans(self) -> OrphanGuard:
        from spoolpool.launch.orphan_guard import OrphanGuard

        return OrphanGuard()

    def start(
        self, shape: Shape, arguments: Sequence[str], options: LaunchOptions, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Run the command."""
        return self.run(self.command(shape, arguments, options), shape, options, variables)

    def run(
        self,
        command: Sequence[str],
        shape: Shape,
        options: LaunchOptions,
        variables: Mapping[str, str],
        kept: Sequence[int] = (),
    ) -> GroupProcess:
        """Run a command that starts a group; ``kept`` are descriptors that stay open until it has ended."""
        try:
            output, location = self.output(shape, options, variables[settings.ENV_WORKER])
            if kept:
                output = [*(output or map(os.dup, (1, 2))), *kept]
            env = {**rank_environment(shape, self.removed_variables), **variables, **location}
            process = CommandProcess(command, env, options.cwd, output)
        except OSError as error:
            raise LauncherError(f"Cannot start a worker group with {command[0]}: {error.strerror}.") from error
        if self.reaches_other_nodes:
            self._orphans.add_command(process.pid)
        return process

    def output(self, shape: Shape, options: LaunchOptions, group: str) -> tuple[list[int], dict[str, str]]:
        """Return descriptors for the output of :class:`CommandProcess`, and variables that tell the ranks of them."""
        if options.relay is None or (not options.relay.labels and self.starts_ranks_itself(shape)):
            return [], {}
        return options.relay.pipes(group, options.nodes, self.label), {}


class HostLauncher(CommandLauncher):
    """Launcher on this host without a batch system; it assigns the GPUs itself."""

    reaches_other_nodes = False

    def __init__(self) -> None:
        self._assigned: list[tuple[GroupProcess, tuple[str, ...]]] = []

    def start(
        self, shape: Shape, arguments: Sequence[str], options: LaunchOptions, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Run the command with GPUs that no other group has; each rank then takes its share of them."""
        if not shape.gpus:
            return super().start(shape, arguments, options, variables)
        found = gpus.find_gpus()
        self._assigned = [(process, ids) for process, ids in self._assigned if process.poll() is None]
        taken = {each for _, ids in self._assigned for each in ids}
        free = tuple(each for each in found.ids if each not in taken)
        ids = free[: shape.ranks * shape.gpus]
        if len(ids) < shape.ranks * shape.gpus:
            raise LauncherError(
                f"A group of {shape} cannot be started: {len(free)} of the {len(found.ids)} GPU(s) of this host are "
                f"free. If there are others, list them in {found.variable}."
            )
        devices = {found.variable: ",".join(ids), settings.ENV_DEVICES: found.variable}
        process = super().start(shape, arguments, options, {**variables, **devices})
        self._assigned.append((process, ids))
        return process

    def starts_ranks_itself(self, shape: Shape) -> bool:
        """Return whether the group has one rank: that is started without a launcher's command."""
        return shape.ranks == 1

    def allocation(self, options: LaunchOptions) -> Allocation:
        """Return the resources of this host: in a job of a system that counts cores, those that the job has here."""
        return host_share(find_allocation()) if not in_step() else host_allocation()


def python_worker(arguments: Sequence[str]) -> list[str]:
    """Return the command of one rank."""
    return python_module(WORKER_MODULE, *arguments)


def rank_environment(shape: Shape, removed: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the environment of ranks: that of this process without variables that begin with ``removed``.

    Variables of a surrounding MPI are removed too: a worker started from within a rank would take itself for that rank
    (and Debian's mpiexec 4.1 crashes on some of them).
    """
    kept = {key: value for key, value in without_mpi(os.environ).items() if not key.startswith(removed)}
    return {**kept, **dict.fromkeys(settings.NUMBER_OF_THREADS, str(shape.threads))}
