"""Launcher of groups on the nodes of a job of PBS, LSF or Grid Engine by the mpiexec of the MPI."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from spoolpool import settings
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.job_groups import JobGroups, Placement
from spoolpool.launch.launcher import CommandLauncher, GroupProcess, LaunchOptions, python_worker
from spoolpool.launch.mpiexec_placement import blocks_of, dialect_of, placed_command, remote_start, warning_of_ssh
from spoolpool.resources import Shape

log = logging.getLogger(__name__)


class JobMpiexecLauncher(CommandLauncher):
    """Starts groups of any size by mpiexec, on nodes that it names.

    mpiexec reaches the other nodes as it was built to, or by the batch system's own agent, or by ssh. Lines that the
    ranks of a group print are labelled with the group alone.
    """

    name = "mpiexec"
    end_seconds = 15.0

    def __init__(self, path: str, allocation: Allocation) -> None:
        self._path = path
        self._dialect = dialect_of(path)
        if self._dialect == "openmpi" and (
            warning := warning_of_ssh(path, allocation.system, remote_start(allocation.system))
        ):
            log.warning("%s", warning)
        self._allocation = allocation
        self._groups = JobGroups(allocation)

    def command(self, shape: Shape, arguments: Sequence[str], options: LaunchOptions) -> list[str]:
        """Return the command of a group on the planned nodes, or on nodes that are free now."""
        if not options.nodes and not options.oversubscribe:
            self._allocation.check(shape)
        return self._command(arguments, options, self._place(shape, options))

    def _place(self, shape: Shape, options: LaunchOptions) -> Placement:
        return self._groups.place(shape, options.nodes, oversubscribe=options.oversubscribe)

    def _command(
        self, arguments: Sequence[str], options: LaunchOptions, placement: Placement, variables: Iterable[str] = ()
    ) -> list[str]:
        blocks = blocks_of(placement.nodes)
        workers = []
        for block in blocks:
            devices: list[str] = []
            if ids := placement.gpus.get(block.node):
                variable = self._groups.devices.variable
                devices = ["env", f"{variable}={','.join(ids)}", f"{settings.ENV_DEVICES}={variable}"]
            workers.append([*devices, *python_worker(arguments)])
        return placed_command(
            self._path,
            self._dialect,
            blocks,
            workers,
            options=options.extra,
            variables=variables,
            oversubscribe=options.oversubscribe,
        )

    def start(
        self, shape: Shape, arguments: Sequence[str], options: LaunchOptions, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Run mpiexec, and count the nodes and GPUs of the group until it ends."""
        placement = self._place(shape, options)
        command = self._command(arguments, options, placement, variables)
        process = self.run(command, shape, options, {**remote_start(self._allocation.system), **variables})
        self._groups.add(process, shape, placement)
        return process

    def allocation(self, options: LaunchOptions) -> Allocation:
        """Return the resources of the job."""
        return self._allocation
