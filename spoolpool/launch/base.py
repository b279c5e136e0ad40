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
from spoolpool.launch.allocation import Allocation, find, seconds_left, this_host
from spoolpool.launch.output_relay import Relay
from spoolpool.resources import Shape
from spoolpool.system import gpus
from spoolpool.system.environment import without_mpi

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
    """File for what Flux jobs print; without one it goes where that of other groups goes."""
    relay: Relay | None = None
    """Takes what groups print, and marks whose it is; without one it goes to this process's own output."""
    nodes: tuple[str, ...] = ()
    """The node of each rank, where the launcher is to be told; on one host it is only a name."""
    urgency: int = 16
    """Urgency of Flux jobs, from 0 to 31."""
    memory: int = 0
    """Bytes of memory per rank, where the launcher can be told; the launcher's own choice if 0."""
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

    def allocation(self) -> Allocation:
        """What its groups share."""

    def seconds_left(self) -> float | None:
        """Seconds until the allocation ends; None if it does not, or nobody knows."""


class CommandProcess:
    """A group that was started by a command, in a session of its own: a Ctrl-C is for its supervisor."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: str | None, output: Sequence[int]) -> None:
        """Run it; raises ``OSError``.

        ``output``: descriptors for standard output and error, where they are not to be this process's own; and more,
        which are kept open for as long as the command runs.
        """
        stdout, stderr = output[:2] or (None, None)
        self._kept = list(output[2:])
        self._process = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )

    def _close(self) -> None:
        while self._kept:
            os.close(self._kept.pop())

    def poll(self) -> int | None:
        """The exit code of the command."""
        code = self._process.poll()
        if code is not None:
            self._close()
        return code

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
    label = ""
    """A regular expression for what the command puts before each line of a rank, with its number; or nothing."""
    drops: tuple[str, ...] = ()
    """Beginnings of names of variables that its groups must not inherit."""

    @abstractmethod
    def command(self, shape: Shape, arguments: Sequence[str], options: Options) -> list[str]:
        """The command for one group; ``arguments`` are the worker's own. Raises where it cannot be started."""

    def start(
        self, shape: Shape, arguments: Sequence[str], options: Options, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Run the command."""
        command = self.command(shape, arguments, options)
        try:
            output, told = self.output(shape, options, variables[settings.ENV_WORKER])
            env = {**environment(shape, options, self.drops), **variables, **told}
            try:
                return CommandProcess(command, env, options.cwd, output)
            finally:
                for descriptor in output[:2]:  # the command's own now
                    os.close(descriptor)
        except OSError as error:
            raise LauncherError(f"Cannot start a worker group with {command[0]}: {error.strerror}.") from error

    def output(self, shape: Shape, options: Options, group: str) -> tuple[list[int], dict[str, str]]:
        """Where the command prints, as :class:`CommandProcess` wants it, and what to tell the ranks about it."""
        if options.relay is None:
            return [], {}
        return list(options.relay.pipes(group, options.nodes, self.label)), {}

    @abstractmethod
    def allocation(self) -> Allocation:
        """What its groups share."""

    def seconds_left(self) -> float | None:
        """Until the walltime of the job around ends, if there is one."""
        return seconds_left(find())


class HostLauncher(CommandLauncher):
    """A command that starts groups on this host, where nobody else deals out the GPUs."""

    def __init__(self) -> None:
        self._dealt: list[tuple[GroupProcess, tuple[str, ...]]] = []

    def start(
        self, shape: Shape, arguments: Sequence[str], options: Options, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Run the command, with GPUs that no other group has; each rank then takes its share of them."""
        if not shape.gpus:
            return super().start(shape, arguments, options, variables)
        known = gpus.find_gpus()
        self._dealt = [(process, ids) for process, ids in self._dealt if process.poll() is None]
        taken = {each for _, ids in self._dealt for each in ids}
        free = tuple(each for each in known.ids if each not in taken)
        mine = free[: shape.ranks * shape.gpus]
        if len(mine) < shape.ranks * shape.gpus:
            raise LauncherError(
                f"A group of {shape} cannot be started: {len(free)} of the {len(known.ids)} GPU(s) of this host are "
                f"free. If there are others, list them in {known.variable}."
            )
        told = {known.variable: ",".join(mine), settings.ENV_DEVICES: known.variable}
        process = super().start(shape, arguments, options, {**variables, **told})
        self._dealt.append((process, mine))
        return process

    def allocation(self) -> Allocation:
        """This host."""
        return this_host()


def python_worker(arguments: Sequence[str]) -> list[str]:
    """The command of one rank."""
    return [sys.executable, "-m", WORKER_MODULE, *arguments]


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
