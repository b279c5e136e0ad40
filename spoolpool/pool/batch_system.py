"""Batch jobs that run ``spool-worker``: script, submission, list and cancellation, from a login node.

Every job has a unique name, by which it is found again: ids are reused after a while, and a submitter may die before it
receives the id.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING, Literal

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.pool.systems.base import ActiveJob, BatchSystem, EndedJob, run
from spoolpool.pool.systems.flux import Flux
from spoolpool.pool.systems.gridengine import GridEngine
from spoolpool.pool.systems.lsf import LSF
from spoolpool.pool.systems.pbs import PBS
from spoolpool.pool.systems.slurm import Slurm
from spoolpool.system import defaults
from spoolpool.system.defaults import Default
from spoolpool.system.environment import python_module
from spoolpool.system.job_ids import select
from spoolpool.system.walltime import format_walltime

if TYPE_CHECKING:
    from spoolpool.batch_backends import BatchBackend

System = Literal["slurm", "flux", "pbs", "lsf", "sge"]

_SCRIPT = """\
#!/bin/bash
$resources
$directives
${setup}exec $worker
"""


@functools.cache
def _system(name: System) -> BatchSystem:
    systems: dict[System, type[BatchSystem]] = {
        "slurm": Slurm,
        "flux": Flux,
        "pbs": PBS,
        "lsf": LSF,
        "sge": GridEngine,
    }
    return systems[name]()


@dataclass(frozen=True, kw_only=True)
class Job:
    """Batch job whose script is ``spool-worker``."""

    backend: BatchBackend
    """Batch system, nodes, walltime and directives."""
    spool: str
    """Directory of the spool; absolute."""
    arguments: tuple[str, ...] = ()
    """Options of ``spool-worker``."""
    known: str = ""
    """Identity of a temporary spool, which no process of the job could check otherwise."""
    template: str = ""
    """Script of the site, a ``string.Template`` with ``$nodes``, ``$time``, ``$directives`` and ``$worker``; it may use
    ``$resources``, the lines that request the nodes and the time."""
    defaults: tuple[tuple[str, Default], ...] | None = None
    """Options with a default of the site, the user or a variable; None: those that no directive gives."""

    def __post_init__(self) -> None:
        if self.defaults is None:  # found once: a mistake that a file gets later must not end an autoscaler
            object.__setattr__(self, "defaults", tuple(self._find_defaults()))

    @property
    def time(self) -> str:
        """Walltime, as the batch system reads it."""
        return format_walltime(self.backend.walltime, self.backend.system)

    def script(self, name: str, output: str) -> str:
        """Return the batch script of the job ``name``; it prints to the file ``output``, or to that of a directive.

        Raises :class:`LauncherError` for a template with other variables.
        """
        system = _system(self.backend.system)
        variables = [f"{settings.ENV_JOB}={name}", *([f"{settings.ENV_KNOWN}={self.known}"] if self.known else [])]
        worker = ["env", *variables, *python_module("spoolpool.cli.worker")]
        template = self.template or _SCRIPT
        resources = []
        if re.search(r"\$\{?resources\b", template):  # it may take questions to the batch system
            resources = system.resources(self.backend, self.time)
        defaulted = [option for option, _ in self.defaults or ()]
        directives = [*system.output_options(output), *defaulted, *self.backend.directives]
        try:
            return Template(template).substitute(
                nodes=self.backend.nodes,
                time=self.time,
                resources="\n".join(f"{system.mark} {each}" for each in resources),
                directives="\n".join(f"{system.mark} {each}" for each in directives),
                setup=system.setup,
                worker=shlex.join([*worker, self.spool, *self.arguments]),
            )
        except (KeyError, ValueError) as error:
            raise LauncherError(
                f"The template of the batch script cannot be filled in ({error}): it may use $nodes, $time, "
                "$resources, $directives and $worker, and writes a dollar as $$."
            ) from error

    def _find_defaults(self) -> Iterator[tuple[str, Default]]:
        """Yield each option with a default that neither a directive nor the template gives, and that default."""
        system = _system(self.backend.system)
        lines = [line.removeprefix(system.mark) for line in self.template.splitlines() if line.startswith(system.mark)]
        given = [*self.backend.directives, *" ".join(lines).split()]
        for key, spellings in system.default_options:
            if any(_is_option(each, spellings) for each in given):
                continue
            if (default := defaults.find(key)).value is not None:
                option = spellings[0]
                yield f"{option}={default.value}" if option.startswith("--") else f"{option} {default.value}", default

    def submit(self, name: str, output: str) -> str:
        """Submit the job under a name; return its id. Raises :class:`LauncherError` with the batch system's message."""
        system = _system(self.backend.system)
        *words, option = system.name_option
        named = [f"{option}{name}"] if option.endswith("=") else [option, name]
        script = self.script(name, output)
        try:
            return system.job_id(run([*system.submit_command, *words, *named], "submit a batch job", script))
        except LauncherError as error:
            given = [f"{option} from {default.source}" for option, default in self.defaults or ()]
            raise (LauncherError(f"{error} (with {', '.join(given)})") if given else error) from None


def active_jobs(system: System) -> dict[str, ActiveJob]:
    """Return the pending and running jobs of this account by name. Raises :class:`LauncherError`."""
    return _system(system).active_jobs()


def ended_job(system: System, name: str) -> EndedJob | None:
    """Return how the job of this name ended; None if the batch system does not know the job, or not any more.

    Raises :class:`LauncherError`.
    """
    return _system(system).ended_job(name)


def listed_ids(system: System, job: str) -> frozenset[str]:
    """Return the ids as lists have them of a job that has a further id; none for other and unknown jobs."""
    return _system(system).listed_ids(job)


def cancel(system: System, job: str, name: str) -> None:
    """Cancel the job, or the part of it, with this id and name. Raises :class:`LauncherError`.

    Does nothing if it has ended meanwhile.
    """
    try:
        _system(system).cancel(job, name)
    except LauncherError:
        active = active_jobs(system).get(name)
        if active is not None and any(select(job, each) for each in (active.id, *(part.id for part in active.parts))):
            raise


@functools.cache
def cluster(system: System) -> str:
    """Return the name of the batch system that answers here: jobs of another one must not be taken for ended ones."""
    return _system(system).cluster()


def _is_option(directive: str, spellings: Sequence[str]) -> bool:
    """Return whether a directive gives an option: ``--name VALUE``, ``--name=VALUE``, ``-n VALUE`` or ``-nVALUE``."""
    name = directive.split(maxsplit=1)[0].partition("=")[0] if directive.strip() else ""
    return name in spellings or any(len(each) == 2 and name.startswith(each) for each in spellings)
