"""Launcher of groups by jsrun of IBM's Job Step Manager, on the nodes of a job of LSF."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.job_groups import JobGroups, Placement
from spoolpool.launch.launcher import CommandLauncher, GroupProcess, LaunchOptions, python_worker
from spoolpool.resources import Shape

_SMT = {"ppc64le": 4}
"""Hardware threads of a core, by machine: jsrun numbers them, and not cores."""


def has_jsrun() -> bool:
    """Return whether there is a jsrun."""
    return shutil.which("jsrun") is not None


class JsrunLauncher(CommandLauncher):
    """Starts groups by jsrun with an explicit resource file, which names the host, cpus and GPUs of each rank."""

    name = "jsrun"
    end_seconds = 15.0

    def __init__(self, allocation: Allocation) -> None:
        if not has_jsrun() or allocation.system != "lsf":
            raise LauncherError("jsrun works within a job of LSF on a system with the Job Step Manager.")
        self._allocation = allocation
        self._groups = JobGroups(allocation)

    def command(self, shape: Shape, arguments: Sequence[str], options: LaunchOptions) -> list[str]:
        """Return the command of a group, with the resource file that :meth:`start` makes."""
        if not options.nodes and not options.oversubscribe:
            self._allocation.check(shape)
        return self._command(arguments, options, "resource-file")

    @staticmethod
    def _command(arguments: Sequence[str], options: LaunchOptions, path: str) -> list[str]:
        where = [f"--chdir={options.cwd}"] if options.cwd else []
        return ["jsrun", f"--erf_input={path}", *where, *options.extra, *python_worker(arguments)]

    def start(
        self, shape: Shape, arguments: Sequence[str], options: LaunchOptions, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Run jsrun, which reads the resource file from this process; count the cpus and GPUs until the group ends."""
        placement = self._groups.place(shape, options.nodes, oversubscribe=options.oversubscribe)
        file = os.memfd_create("resources")
        os.write(file, resource_file(shape, placement, shared=options.oversubscribe).encode())
        command = self._command(arguments, options, f"/proc/{os.getpid()}/fd/{file}")
        process = self.run(command, shape, options, variables, kept=[file])
        self._groups.add(process, shape, placement)
        return process

    def allocation(self, options: LaunchOptions) -> Allocation:
        """Return the resources of the job."""
        return self._allocation


def resource_file(shape: Shape, placement: Placement, *, shared: bool = False) -> str:
    """Return an explicit resource file: a line per rank with its host, its cpus and its GPUs."""
    named = os.environ.get(settings.ENV_JSRUN_SMT, "")
    smt = int(named) if named.isdigit() else _SMT.get(os.uname().machine, 1)
    lines = ["overlapping_rs: allow"] if shared else []
    lines.append("cpu_index_using: logical")
    used: dict[str, int] = {}
    for rank, node in enumerate(placement.nodes):
        local = used.get(node, 0)
        used[node] = local + 1
        cores = placement.cores[node][local * shape.threads : (local + 1) * shape.threads]
        cpus = ",".join(f"{core * smt}-{core * smt + smt - 1}" for core in cores)
        gpus = ""
        if shape.gpus:
            ids = placement.gpus[node][local * shape.gpus : (local + 1) * shape.gpus]
            gpus = f"; gpu: {{{','.join(ids)}}}"
        lines.append(f"rank: {rank}: {{ hostname: {node}; cpu: {{{cpus}}}{gpus} }}")
    return "\n".join(lines) + "\n"
