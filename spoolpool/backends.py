"""Backends that start worker groups through a launcher: options of :class:`spoolpool.Executor`.

They are frozen, so that several executors may share one. ``batch_backends`` has those of batch jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from spoolpool.errors import BadRequest
from spoolpool.system.quantities import keep_count


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Way to start worker groups. The fields of a launcher's backend are fields of its launch options."""

    name: ClassVar[str]
    """Text that ``backend=`` takes for this backend with its defaults."""
    in_jobs: ClassVar[bool] = False
    """Whether the worker groups run in batch jobs that end with their executor."""


class Auto(Backend):
    """Flux in a batch script of a Flux instance, srun in one of Slurm, jsrun in one of LSF, else mpiexec or local."""

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
        keep_as_tuple(self, "extra")


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
        keep_count(self, "urgency", 0, 31, note=", and a greater one is more urgent")


BACKENDS: dict[str, type[Backend]] = {each.name: each for each in (Auto, Local, Mpiexec, Srun, Flux)}


def keep_as_tuple(options: object, name: str) -> None:
    """Freeze a sequence of texts. Raises :class:`BadRequest` for a single text, of which each letter would be one."""
    given = getattr(options, name)
    if isinstance(given, str):
        raise BadRequest(f"{type(options).__name__}({name}={given!r}) must be a list of texts, not one text.")
    object.__setattr__(options, name, tuple(given))
