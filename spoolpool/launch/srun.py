"""Groups as steps of the Slurm job around us."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.base import CommandLauncher, Options, python_worker
from spoolpool.launch.mpi_flavour import mpi_in_use
from spoolpool.resources import Shape, per_core

_PMI = {"mpich": "pmi2", "openmpi": "pmix"}
"""The process managers by which the ranks of an MPI find each other under srun. With another one they are
worlds of one rank each, silently (measured with Slurm 22.05, MPICH 5, Open MPI 4.1 and 5)."""


class SrunLauncher(CommandLauncher):
    """Starts groups by srun, several side by side on a node or one over several nodes."""

    name = "srun"
    label = r" *(\d+): "
    drops: tuple[str, ...] = (
        "SLURM_GPUS",
        "SLURM_GPU_BIND",
        "SLURM_CPUS_PER_TASK",
        "SLURM_TRES_PER_TASK",
        "SLURM_CPU_BIND",
        "SLURM_MEM_PER",
        "SLURM_NTASKS_PER",
        "SLURM_HOSTFILE",
    )
    """Variables of the job that srun would take for wishes about a step."""

    def __init__(self, allocation: Allocation) -> None:
        if shutil.which("srun") is None or allocation.kind != "slurm":
            raise LauncherError(
                "There is no srun here, or no Slurm job around this process: use sbatch or salloc first."
            )
        self._allocation = allocation

    def command(self, shape: Shape, arguments: Sequence[str], options: Options) -> list[str]:
        """srun with what concurrent steps need: an exact share of cores, no memory and no GPUs of others."""
        command = [
            "srun",
            *self._where(shape, options),
            f"--ntasks={shape.ranks}",
            f"--cpus-per-task={shape.threads}",
            *(["--overlap", "--overcommit"] if options.oversubscribe else ["--exact"]),
            f"--mem-per-cpu={per_core(options.memory, shape.threads)}" if options.memory else "--mem=0",
            f"--gpus-per-task={shape.gpus}" if shape.gpus else "--gres=none",
            f"--mpi={self._mpi(shape)}",
            "--kill-on-bad-exit=1",  # under pmi2 the other ranks would wait for a dead one for ever
            "--export=ALL",  # after sbatch --export=NONE a step has no PATH
            "--job-name=spool-worker",
        ]
        if options.relay is not None:
            command.append("--label")
        if options.cwd:
            command.append(f"--chdir={options.cwd}")
        return [*command, *options.extra, *python_worker(arguments)]

    def _where(self, shape: Shape, options: Options) -> list[str]:
        """On the nodes that were chosen, rank by rank; else on as many as the group needs, which Slurm chooses."""
        if options.nodes:
            exact = ["--distribution=arbitrary"] if len(set(options.nodes)) > 1 else []
            return [f"--nodes={len(set(options.nodes))}", f"--nodelist={','.join(options.nodes)}", *exact]
        place = self._allocation.room(shape.cores if options.oversubscribe else 0).take(shape)
        if place is None:
            self._allocation.check(shape)
        return [f"--nodes={len(set(place or ()))}"]

    def allocation(self) -> Allocation:
        """The job."""
        return self._allocation

    @staticmethod
    def _mpi(shape: Shape) -> str:
        if named := os.environ.get(settings.ENV_SRUN_MPI):
            return named
        if shape.ranks == 1:
            return "none"
        found = mpi_in_use()
        if found not in _PMI:
            raise LauncherError(
                f"It is not known which --mpi= the MPI of mpi4py needs: set {settings.ENV_SRUN_MPI} to one of "
                "'srun --mpi=list'."
            )
        return _PMI[found]
