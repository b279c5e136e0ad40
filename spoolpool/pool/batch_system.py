"""Batch jobs that run ``spool-worker``: script, submission, list and cancellation, from a login node.

Every job has a unique name, by which it is found again: ids are reused after a while, and a submitter may die before it
receives the id.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING, Literal, NamedTuple

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.system.environment import python_module
from spoolpool.system.walltime import format_walltime

if TYPE_CHECKING:
    from spoolpool.options import BatchBackend

System = Literal["slurm", "flux"]

_SECONDS = 120.0  # for one answer of a batch system

_SCRIPTS: dict[System, str] = {
    "slurm": """\
#!/bin/bash
#SBATCH --nodes=$nodes
#SBATCH --exclusive
#SBATCH --time=$time
#SBATCH --open-mode=append
$directives
exec $worker
""",
    "flux": """\
#!/bin/bash
# flux: --nodes=$nodes
# flux: --exclusive
# flux: --time-limit=$time
$directives
exec $worker
""",
}
_DIRECTIVES: dict[System, str] = {"slurm": "#SBATCH", "flux": "# flux:"}
_SUBMIT: dict[System, list[str]] = {"slurm": ["sbatch", "--parsable"], "flux": ["flux", "batch"]}
_LIST: dict[System, list[str]] = {
    "slurm": ["squeue", "--noheader", f"--user={os.geteuid()}", "--format=%i|%T|%j"],
    "flux": ["flux", "jobs", "--no-header", "--filter=active", "--count=0", "--format={id.f58plain}|{state}|{name}"],
}
_PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "DEPEND", "PRIORITY", "SCHED"})
"""States of a job that has not begun. Both batch systems also list jobs that run or are about to end."""


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
    """Script of the site, a ``string.Template`` with ``$nodes``, ``$time``, ``$directives`` and ``$worker``."""

    @property
    def time(self) -> str:
        """Walltime, as the batch system reads it."""
        return format_walltime(self.backend.walltime, self.backend.system)

    def script(self, name: str, output: str) -> str:
        """Return the batch script of the job ``name``; it prints to the file ``output``, or to that of a directive.

        Raises :class:`LauncherError` for a template with other variables.
        """
        system = self.backend.system
        variables = [f"{settings.ENV_JOB}={name}", *([f"{settings.ENV_KNOWN}={self.known}"] if self.known else [])]
        worker = ["env", *variables, *python_module("spoolpool.cli.worker")]
        if system == "slurm":
            output = output.replace("%", "%%")
        directives = [f"--output={shlex.quote(output)}", *self.backend.directives]
        try:
            return Template(self.template or _SCRIPTS[system]).substitute(
                nodes=self.backend.nodes,
                time=self.time,
                directives="\n".join(f"{_DIRECTIVES[system]} {each}" for each in directives),
                worker=shlex.join([*worker, self.spool, *self.arguments]),
            )
        except (KeyError, ValueError) as error:
            raise LauncherError(
                f"The template of the batch script cannot be filled in ({error}): it may use $nodes, $time, "
                "$directives and $worker, and writes a dollar as $$."
            ) from error

    def submit(self, name: str, output: str) -> str:
        """Submit the job under a name; return its id. Raises :class:`LauncherError` with the batch system's message."""
        command = [*_SUBMIT[self.backend.system], f"--job-name={name}"]
        answer = _run(command, "submit a batch job", self.script(name, output))
        return answer.partition(";")[0].replace("\N{LATIN SMALL LETTER F WITH HOOK}", "f")  # as Flux lists it in ASCII


class ActiveJob(NamedTuple):
    """Job of this account that is pending or running."""

    id: str
    state: Literal["pending", "running"]


def active_jobs(system: System) -> dict[str, ActiveJob]:
    """Return the pending and running jobs of this account by name, by one command. Raises :class:`LauncherError`."""
    rows = [line.strip().split("|", 2) for line in _run(_LIST[system], "list the batch jobs").splitlines()]
    return {row[2]: ActiveJob(row[0], "pending" if row[1] in _PENDING else "running") for row in rows if len(row) == 3}


def cancel(system: System, job: str, name: str) -> None:
    """Cancel the job with this id and name. Does nothing if it has ended meanwhile; raises :class:`LauncherError`.

    Slurm checks the name as well, since the id may have been given to another job meanwhile.
    """
    command = ["flux", "cancel", "--quiet", job]
    if system == "slurm":
        command = ["scancel", "--quiet", f"--jobname={name}", job]
    try:
        _run(command, "cancel a batch job")
    except LauncherError:
        active = active_jobs(system).get(name)
        if active is not None and active.id == job:
            raise


@functools.cache
def cluster(system: System) -> str:
    """Return the name of the batch system that answers here: jobs of another one must not be taken for ended ones.

    A Flux instance has no name: its hosts stand for it.
    """
    if system == "flux":
        return _run(["flux", "getattr", "hostlist"], "ask for the name of the Flux instance")
    for line in _run(["scontrol", "show", "config"], "ask for the name of the cluster").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "ClusterName":
            return value.strip()
    return ""


def _run(command: Sequence[str], action: str, text: str = "") -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherError(f"Cannot {action} with {command[0]}: {error}.") from error
    if done.returncode:
        reason = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise LauncherError(f"Cannot {action}: {' '.join(command[:2])} says: {reason}")
    return done.stdout.strip()
