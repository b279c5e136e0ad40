"""Option objects of :class:`spoolpool.Executor`: backends, sessions and the submission of calls.

They are frozen, so that several executors may share one.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar, Literal

from spoolpool import settings
from spoolpool.calls.pickling import OUT_OF_BAND
from spoolpool.errors import BadRequest
from spoolpool.format.names import check_queue, check_session
from spoolpool.system.qsub import system_of_qsub
from spoolpool.system.quantities import read_count
from spoolpool.system.walltime import format_clock, read_walltime


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Way to start worker groups. The fields of a launcher's backend are fields of its launch options."""

    name: ClassVar[str]
    """Text that ``backend=`` takes for this backend with its defaults."""


class Auto(Backend):
    """Flux in a batch script of a Flux instance, srun in one of a Slurm job, else mpiexec, else local."""

    name = "auto"


class Local(Backend):
    """Plain processes on this host, for groups of one rank."""

    name = "local"


@dataclass(frozen=True, kw_only=True)
class LauncherBackend(Backend):
    """Worker groups started through a launcher."""

    extra: Sequence[str] = ()
    """Further arguments of the launcher's command; for Flux, shell options as ``NAME`` or ``NAME=VALUE``."""

    def __post_init__(self) -> None:
        _keep_as_tuple(self, "extra")


@dataclass(frozen=True, kw_only=True)
class Mpiexec(LauncherBackend):
    """Worker groups started by mpiexec; as a name, ``backend="mpiexec"``. A group of one rank is a plain process."""

    __module__ = "spoolpool"
    name = "mpiexec"


@dataclass(frozen=True, kw_only=True)
class Srun(LauncherBackend):
    """Worker groups as steps of the surrounding Slurm job; as a name, ``backend="srun"``."""

    __module__ = "spoolpool"
    name = "srun"


@dataclass(frozen=True, kw_only=True)
class Flux(LauncherBackend):
    """Worker groups as jobs of the surrounding Flux instance; as a name, ``backend="flux"``."""

    __module__ = "spoolpool"
    name = "flux"

    urgency: int = 16
    """Urgency of the jobs within the instance, from 0 to 31."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _keep_count(self, "urgency", 0, 31, note=", and a greater one is more urgent")


@dataclass(frozen=True, kw_only=True)
class BatchBackend(Backend):
    """Worker groups in batch jobs that end with their executor."""

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
        _keep_as_tuple(self, "directives")
        _keep_count(self, "nodes", -sys.maxsize)
        _keep_count(self, "min_jobs", -sys.maxsize)
        if self.max_jobs is not None:
            _keep_count(self, "max_jobs", -sys.maxsize)
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
            _keep_count(self, "cores", 1)


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


_BATCH_BACKENDS = (Sbatch, FluxBatch, PbsBatch, LsfBatch, SgeBatch)
_BACKENDS = {each.name: each for each in (Auto, Local, Mpiexec, Srun, Flux, *_BATCH_BACKENDS)}
_COMMANDS = ("qsub", "bsub")
"""Names of backends by the command that submits their jobs."""


def batch_backend(system: str) -> type[BatchBackend]:
    """Return the class of a batch system, or of the one to which the command ``qsub`` or ``bsub`` belongs here.

    Raises :class:`LauncherError` if there is no such command.
    """
    if system in _COMMANDS:
        system = system_of_qsub() if system == "qsub" else "lsf"
    return next(each for each in _BATCH_BACKENDS if each.system == system)


def backend_of(backend: str | Backend) -> Backend:
    """Return a backend, or the one of this name with its defaults.

    Raises :class:`BadRequest`, and :class:`LauncherError` if the command of the name is not there.
    """
    if isinstance(backend, Backend):
        return backend
    if backend in _COMMANDS:
        return batch_backend(backend)()
    if backend not in _BACKENDS:
        names = ", ".join((*_BACKENDS, *_COMMANDS))
        raise BadRequest(
            f"There is no backend {backend!r}: give one of the names {names}, or an object such as "
            "spoolpool.Sbatch(nodes=2)."
        )
    return _BACKENDS[backend]()


@dataclass(frozen=True, kw_only=True)
class Session:
    """Named session of a spool: results stay in it after their delivery, for a later executor of this name.

    ``session="a name"`` is the session of this name with the defaults.
    """

    __module__ = "spoolpool"

    name: str = field(kw_only=False)
    """Name of the session."""
    resume: bool = False
    """Give a call that the session has had before, with the same function, arguments and resources, the future of that
    task instead of a new task. A call that failed is made again."""
    detach: bool = False
    """Leave the tasks to the spool when the executor is shut down or the process ends: see
    :meth:`spoolpool.Executor.detach`. Requires that the worker groups run elsewhere."""

    def __post_init__(self) -> None:
        check_session(self.name)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Rules by which calls become tasks."""

    __module__ = "spoolpool"

    queue: str = "default"
    """Queue of the spool to which tasks go."""
    pack: bool = False
    """Let short calls share a task while more of them wait than groups can take; each call keeps a future of its own. A
    call then may not be in the spool yet when ``submit`` returns."""
    share_from: int | None = settings.SHARE_FROM
    """Size in bytes from which a function, an argument or an array in one is stored once, as by
    :meth:`spoolpool.Executor.put`, when it is sent for the second time; None: never."""
    wait_for_room: bool = False
    """In a spool with a limit of waiting tasks per user, let ``submit`` wait for room instead of raising
    :class:`~spoolpool.errors.TooManyWaiting`. ``shutdown`` ends the waiting."""
    raise_cause: bool = False
    """Let a call that was not run because a dependency failed raise the exception of the dependency, as executorlib
    does, instead of a :class:`~spoolpool.errors.DependencyFailed` with that exception as its cause."""

    def __post_init__(self) -> None:
        check_queue(self.queue)
        if self.share_from is not None:
            _keep_count(self, "share_from", OUT_OF_BAND, note=" (bytes), or None")

    @property
    def least_shared(self) -> int:
        """``share_from`` as a number."""
        return sys.maxsize if self.share_from is None else self.share_from


def _keep_count(options: object, name: str, least: int, most: float = math.inf, *, note: str = "") -> None:
    """Freeze a whole number. Raises :class:`BadRequest`."""
    given = getattr(options, name)
    object.__setattr__(options, name, read_count(f"{type(options).__name__}: {name}", given, least, most, note=note))


def _keep_as_tuple(options: object, name: str) -> None:
    """Freeze a sequence of texts. Raises :class:`BadRequest` for a single text, of which each letter would be one."""
    given = getattr(options, name)
    if isinstance(given, str):
        raise BadRequest(f"{type(options).__name__}({name}={given!r}) must be a list of texts, not one text.")
    object.__setattr__(options, name, tuple(given))
