"""Launcher of groups as steps of the surrounding Slurm job."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Sequence

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.launcher import CommandLauncher, LaunchOptions, python_worker
from spoolpool.launch.mpi_implementation import mpi_of_library
from spoolpool.launch.slurm_resources import NodeShare, StepOptions, ask_controller, step_resources
from spoolpool.resources import Shape, per_core
from spoolpool.system import defaults

_PMI = {"mpich": "pmi2", "openmpi": "pmix"}
"""Process manager interface by which the ranks of an MPI implementation find each other under srun. With another one
they are worlds of one rank each, without an error (measured with Slurm 22.05, MPICH 5, Open MPI 4.1 and 5)."""

_BEGIN_SECONDS = 120
"""Seconds after which srun gives up a step that waits for other steps; after the end of a step, its node is cleaned up,
which takes some of them."""
_BUSY = re.compile(r"srun: .*(Unable to create step|step creation (temporarily|still) disabled).*(busy|retrying)")
_BEGUN = "srun: Step created"


class SrunLauncher(CommandLauncher):
    """Starts groups by srun: several on one node, or one on several nodes."""

    name = "srun"
    label = r" *(\d+): "
    removed_variables = (
        "SLURM_GPUS",
        "SLURM_GPU_BIND",
        "SLURM_CPUS_PER_TASK",
        "SLURM_TRES_PER_TASK",
        "SLURM_CPU_BIND",
        "SLURM_MEM_PER",
        "SLURM_NTASKS_PER",
        "SLURM_HOSTFILE",
    )
    """Variables of the job that srun would take for options of a step."""

    def __init__(self, allocation: Allocation) -> None:
        if shutil.which("srun") is None or allocation.system != "slurm":
            raise LauncherError(
                "There is no srun here, or no Slurm job around this process: use sbatch or salloc first."
            )
        self._allocation = allocation
        self._named_mpi: str | None = defaults.find("mpi").value

    def command(self, shape: Shape, arguments: Sequence[str], options: LaunchOptions) -> list[str]:
        """Return srun with the options of concurrent steps: exact cores, and no memory or GPUs of other steps."""
        command = [
            "srun",
            *self._placement(shape, options),
            f"--ntasks={shape.ranks}",
            f"--cpus-per-task={shape.threads}",
            *(["--overlap", "--overcommit"] if options.oversubscribe else ["--exact"]),
            *self._memory(shape, options),
            f"--gpus-per-task={shape.gpus}" if shape.gpus else "--gres=none",
            f"--mpi={self._mpi(shape)}",
            *([] if _is_given(options.extra, "--immediate", "-I") else [f"--immediate={_BEGIN_SECONDS}"]),
            "--kill-on-bad-exit=1",  # under pmi2 the other ranks would wait for a dead one without end
            "--export=ALL",  # after sbatch --export=NONE a step has no PATH
            "--job-name=spool-worker",
        ]
        if options.relay is not None and options.relay.labels:
            command.append("--label")
        if options.cwd:
            command.append(f"--chdir={options.cwd}")
        return [*command, *options.extra, *python_worker(arguments)]

    def _placement(self, shape: Shape, options: LaunchOptions) -> list[str]:
        """Return the options that place the ranks on the planned nodes, or on as many as the group needs."""
        if options.nodes:
            if len(set(options.nodes)) == 1:  # named once: otherwise srun warns that there are too many
                return ["--nodes=1", f"--nodelist={options.nodes[0]}"]
            nodelist = f"--nodelist={','.join(options.nodes)}"
            return [f"--nodes={len(set(options.nodes))}", nodelist, "--distribution=arbitrary"]
        allocation = self.allocation(options)
        nodes = allocation.capacity(shape.cores if options.oversubscribe else 0).reserve(shape)
        if nodes is None:
            allocation.check(shape)
        return [f"--nodes={len(set(nodes or ()))}"]

    @staticmethod
    def _memory(shape: Shape, options: LaunchOptions) -> list[str]:
        if _is_given(options.extra, "--mem"):  # srun accepts only one of its options for memory
            return []
        return [f"--mem-per-cpu={per_core(options.memory, shape.threads)}" if options.memory else "--mem=0"]

    def allocation(self, options: LaunchOptions) -> Allocation:
        """Return the resources of the job. Its controller is asked once."""
        return step_resources(self._allocation, self._shares, StepOptions.read(options.extra), options.memory)

    def never_began(self, errors: Sequence[str]) -> bool:
        """Return whether srun says that the step waits for resources that other steps hold."""
        own = [line for line in errors if _BUSY.match(line) or line.startswith(_BEGUN)]
        return bool(own) and not own[-1].startswith(_BEGUN)

    @functools.cached_property
    def _shares(self) -> dict[str, NodeShare]:
        return ask_controller(self._allocation)

    def _mpi(self, shape: Shape) -> str:
        if self._named_mpi:
            return self._named_mpi
        if shape.ranks == 1:
            return "none"
        implementation = mpi_of_library()
        if implementation not in _PMI:
            raise LauncherError(
                f"The srun option --mpi= for the MPI of mpi4py is unknown: set {settings.ENV_SRUN_MPI}, or mpi in a "
                "file of defaults ('spool config'), to one of 'srun --mpi=list'."
            )
        return _PMI[implementation]


def _is_given(extra: Sequence[str], *options: str) -> bool:
    """Return whether the user's arguments have one of these options, also as the beginning of a longer one."""
    return any(each.startswith(options) for each in extra)
