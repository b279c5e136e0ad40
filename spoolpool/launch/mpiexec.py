"""Groups of MPI ranks on this host, or on those that mpiexec finds by itself."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from spoolpool import settings
from spoolpool.launch.base import HostLauncher, Options, python_worker
from spoolpool.launch.output_relay import handed_over
from spoolpool.resources import Shape


def find_mpiexec() -> str | None:
    """The mpiexec to use: what the environment names, else the one beside this Python, else ``PATH``'s.

    The MPI that came as a wheel puts its mpiexec beside the interpreter. The one of another MPI would start
    ranks that do not find each other.
    """
    named = os.environ.get(settings.ENV_MPIEXEC)
    if named:
        return shutil.which(named)
    beside = os.path.join(sys.prefix, "bin", "mpiexec")
    return beside if os.access(beside, os.X_OK) else shutil.which("mpiexec")


@functools.cache
def flavour(path: str) -> str:
    """Which MPI an mpiexec belongs to: ``openmpi``, ``mpich`` (also Intel's and Cray's), or ``unknown``."""
    try:
        text = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    words = (text.stdout + text.stderr).lower()
    if "open mpi" in words or "open-mpi" in words or "prte" in words:
        return "openmpi"
    return "mpich" if "hydra" in words or "mpich" in words or "intel" in words else "unknown"


class MpiexecLauncher(HostLauncher):
    """Starts groups by one command for all kinds of MPI."""

    name = "mpiexec"

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        # within a step, mpiexec would start its ranks by srun and wait for what the step itself holds; and Open MPI
        # 4.1's crashes on what Flux tells its tasks
        steps = {"SLURM_STEP_ID": "SLURM_", "FLUX_TASK_RANK": "FLUX_"}
        self.drops = tuple(names for step, names in steps.items() if os.environ.get(step))

    def output(self, shape: Shape, options: Options, group: str) -> tuple[list[int], dict[str, str]]:
        """mpiexec mixes the lines of its ranks: each gets pipes of its own."""
        output, told = super().output(shape, options, group)
        if options.relay is not None and shape.ranks > 1:
            for rank in range(shape.ranks):
                output += options.relay.pipes(group, options.nodes, rank=rank)
            told[settings.ENV_OUTPUT] = handed_over(output[2:])
        return output, told

    def command(self, shape: Shape, arguments: Sequence[str], options: Options) -> list[str]:
        """mpiexec with what its kind understands; a single rank is started without it."""
        if shape.ranks == 1:
            return python_worker(arguments)
        command = [self._path, "-n", str(shape.ranks)]
        if flavour(self._path) == "openmpi":
            # MPICH's starts more ranks than cores by itself, and takes the option for an error
            if options.oversubscribe:
                command.append("--oversubscribe")
            command += ["--bind-to", "none"]
            if os.geteuid() == 0:
                command.append("--allow-run-as-root")
        return [*command, *options.extra, *python_worker(arguments)]
