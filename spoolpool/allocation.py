"""What a batch system has given to the job that this process runs in: cores, GPUs, and the time that is left."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from spoolpool.errors import LauncherError
from spoolpool.resources import Shape

Kind = Literal["slurm", "flux", "none"]

_COUNTS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_LEFT = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The job around this process, or ``none``: then the whole host is ours."""

    kind: Kind
    """Batch system."""
    job: str = ""
    """Its id of the job."""
    cores: tuple[int, ...] = ()
    """Cores of each node."""
    gpus: tuple[int, ...] = ()
    """GPUs of each node."""

    def fits(self, shape: Shape) -> int:
        """How many groups of a shape run side by side: each within a node if it can be, else over nodes.

        Raises :class:`LauncherError` where not even one fits.
        """
        if shape.cores <= max(self.cores, default=0) and shape.ranks * shape.gpus <= max(self.gpus, default=0):
            count = sum(self._on_node(shape, *node) for node in zip(self.cores, self.gpus, strict=True))
        else:
            count = sum(self.cores) // shape.cores
            if shape.gpus:
                count = min(count, sum(self.gpus) // (shape.ranks * shape.gpus))
        if not count:
            raise LauncherError(
                f"A group of {shape.ranks} rank(s) with {shape.threads} thread(s) and {shape.gpus} GPU(s) each does "
                f"not fit into this job: it has {sum(self.cores)} core(s) and {sum(self.gpus)} GPU(s) on "
                f"{len(self.cores)} node(s). Ask for a larger job, or smaller groups."
            )
        return count

    @staticmethod
    def _on_node(shape: Shape, cores: int, gpus: int) -> int:
        count = cores // shape.cores
        return min(count, gpus // (shape.ranks * shape.gpus)) if shape.gpus else count

    def nodes_for(self, shape: Shape) -> int:
        """Nodes over which one group of a shape must spread."""
        most = max(self.cores, default=1)
        gpus = max(self.gpus, default=0)
        by_cores = -(-shape.ranks // max(1, most // shape.threads))
        return max(by_cores, -(-shape.ranks * shape.gpus // gpus) if shape.gpus and gpus else 1)


def find(environment: Mapping[str, str] = os.environ) -> Allocation:
    """The innermost allocation that this process runs in: a Flux instance, else a Slurm job, else this host."""
    if environment.get("FLUX_URI"):
        return Allocation(kind="flux", job=environment.get("FLUX_JOB_ID", ""))
    if job := environment.get("SLURM_JOB_ID"):
        cores = expand(environment.get("SLURM_JOB_CPUS_PER_NODE", "1"))
        gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
        return Allocation(kind="slurm", job=job, cores=cores, gpus=(gpus,) * len(cores))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Allocation(kind="none", cores=(usable,), gpus=(0,))


def in_step(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a rank of a Slurm step or a Flux job; a batch script is none, and has no such id.

    In a batch script of Flux, the rank's number is that of the script in the instance above it, whose ``FLUX_URI``
    is another one: Flux takes it out of the environment there.
    """
    return bool(environment.get("SLURM_STEP_ID") or environment.get("FLUX_TASK_RANK"))


def expand(counts: str) -> tuple[int, ...]:
    """Slurm's short form of numbers per node: ``"4(x2),2"`` is 4, 4, 2."""
    return tuple(int(count) for count, times in _COUNTS.findall(counts) for _ in range(int(times or 1)))


def seconds_left(allocation: Allocation, environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds until the job's walltime ends; None if it has none, or nobody knows.

    Slurm before 23.02 sets no ``SLURM_JOB_END_TIME``; its queue is asked then. Call it once per job, not per group.
    """
    if allocation.kind != "slurm":
        return None
    if end := environment.get("SLURM_JOB_END_TIME"):
        return max(0.0, float(end) - time.time())
    try:
        said = subprocess.run(
            ["squeue", "-h", "-j", allocation.job, "-o", "%L"],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # no such command on this node, or the controller is away
        return None
    return duration(said.stdout)


def duration(text: str) -> float | None:
    """Slurm's form of a time, ``D-HH:MM:SS`` with the front left out where it is nothing, in seconds."""
    match = _LEFT.fullmatch(text.strip())
    if match is None:  # UNLIMITED, INVALID, NOT_SET
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds
