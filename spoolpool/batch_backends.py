"""Backends that run worker groups in batch jobs: options of :class:`spoolpool.Executor`.

They are frozen, so that several executors may share one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Literal

from spoolpool.backends import Backend, keep_as_tuple
from spoolpool.errors import BadRequest
from spoolpool.system.qsub import system_of_qsub
from spoolpool.system.quantities import keep_count
from spoolpool.system.walltime import format_clock, read_walltime


@dataclass(frozen=True, kw_only=True)
class BatchBackend(Backend):
    """Worker groups in batch jobs that end with their executor."""

    in_jobs = True
    system: ClassVar[Literal["slurm", "flux", "pbs", "lsf", "sge"]]
    """Batch system."""

    nodes: int = 1
    """Whole nodes of each job."""
    time: str | timedelta = "1:00:00"
    """Walltime of each job: a ``timedelta``, or a text such as ``"1:30:00"``, ``"2-00:00:00"``, ``"90m"``, ``"1.5h"``
    or ``"90"``, a number of minutes. It is kept as hours, minutes and seconds; each batch system gets it in its own
    format. No number that is no text: batch systems count minutes, and all other times here are in seconds."""
    directives: Sequence[str] = ()
    """Further options of the batch system, such as ``["--partition=long"]``."""
    min_jobs: int = 1
    """Jobs submitted at once, and again when they end; with 0 the first task brings the first job."""
    max_jobs: int | None = None
    """Limit of the jobs that wait or run at once, for many tasks or other shapes of tasks; None: ``min_jobs``, or 1."""

    def __post_init__(self) -> None:
        keep_as_tuple(self, "directives")
        keep_count(self, "nodes", -sys.maxsize)
        keep_count(self, "min_jobs", -sys.maxsize)
        if self.max_jobs is not None:
            keep_count(self, "max_jobs", -sys.maxsize)
        name = f"{type(self).__name__}: time"
        object.__setattr__(self, "time", format_clock(read_walltime(name, self.time)))
        if self.nodes < 1 or not 0 <= self.min_jobs <= self.job_limit or not self.job_limit:
            raise BadRequest(
                f"Batch jobs need at least 1 node (not {self.nodes}), and 0 <= min_jobs <= max_jobs with a max_jobs of "
                f"at least 1 (not {self.min_jobs} and {self.job_limit})."
            )

    @property
    def walltime(self) -> int:
        """``time`` in seconds."""
        return read_walltime("time", self.time)

    @property
    def job_limit(self) -> int:
        """``max_jobs``, or its default."""
        return max(1, self.min_jobs) if self.max_jobs is None else self.max_jobs


@dataclass(frozen=True, kw_only=True)
class Sbatch(BatchBackend):
    """Worker groups in batch jobs of Slurm; as a name, ``backend="sbatch"``."""

    __module__ = "spoolpool"
    name = "sbatch"
    system = "slurm"


@dataclass(frozen=True, kw_only=True)
class FluxBatch(BatchBackend):
    """Worker groups in batch jobs of Flux; as a name, ``backend="flux-batch"``."""

    __module__ = "spoolpool"
    name = "flux-batch"
    system = "flux"


@dataclass(frozen=True, kw_only=True)
class CountedBatch(BatchBackend):
    """Worker groups in batch jobs of a system that counts the cores, or slots, of the nodes that a job requests."""

    cores: int | None = None
    """Cores of each node to request; None: all that a node has, if the nodes that are up have the same number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cores is not None:
            keep_count(self, "cores", 1)


@dataclass(frozen=True, kw_only=True)
class PbsBatch(CountedBatch):
    """Worker groups in batch jobs of PBS Professional or OpenPBS; as a name, ``backend="pbs"``, or ``"qsub"``."""

    __module__ = "spoolpool"
    name = "pbs"
    system = "pbs"


@dataclass(frozen=True, kw_only=True)
class LsfBatch(CountedBatch):
    """Worker groups in batch jobs of LSF; as a name, ``backend="lsf"`` or ``"bsub"``."""

    __module__ = "spoolpool"
    name = "lsf"
    system = "lsf"


@dataclass(frozen=True, kw_only=True)
class SgeBatch(CountedBatch):
    """Worker groups in batch jobs of Grid Engine; as a name, ``backend="sge"``, or ``"qsub"``."""

    __module__ = "spoolpool"
    name = "sge"
    system = "sge"

    parallel_environment: str = ""
    """Parallel environment of jobs with several slots; empty: the first one that fills whole nodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel_environment and not re.fullmatch(r"[\w.+-]+", self.parallel_environment):
            raise BadRequest(f"{self.parallel_environment!r} is no name of a parallel environment.")


BATCH_BACKENDS = (Sbatch, FluxBatch, PbsBatch, LsfBatch, SgeBatch)
COMMANDS = ("qsub", "bsub")
"""Names of backends by the command that submits their jobs."""


def batch_backend(system: str) -> type[BatchBackend]:
    """Return the class of a batch system, or of the one to which the command ``qsub`` or ``bsub`` belongs here.

    Raises :class:`LauncherError` if there is no such command.
    """
    if system in COMMANDS:
        system = system_of_qsub() if system == "qsub" else "lsf"
    return next(each for each in BATCH_BACKENDS if each.system == system)
