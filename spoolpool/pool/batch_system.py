"""Batch jobs whose script is ``spool-worker``: written, submitted, listed and cancelled from a login node.

Every job has a name of its own, by which it is found again: ids are given anew after a while, and a submitter may
die before it is told the id.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Template
from typing import Literal, get_args

from spoolpool import settings
from spoolpool.errors import LauncherError

System = Literal["slurm", "flux"]
SYSTEMS: tuple[System, ...] = get_args(System)

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
_MARKS: dict[System, str] = {"slurm": "#SBATCH", "flux": "# flux:"}
_SUBMIT: dict[System, list[str]] = {"slurm": ["sbatch", "--parsable"], "flux": ["flux", "batch"]}
_LIST: dict[System, list[str]] = {
    "slurm": ["squeue", "--noheader", f"--user={os.geteuid()}", "--format=%i|%T|%j"],
    "flux": ["flux", "jobs", "--no-header", "--filter=active", "--count=0", "--format={id.f58plain}|{state}|{name}"],
}
_PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "DEPEND", "PRIORITY", "SCHED"})
"""States of a job that has not begun. Slurm also lists jobs that run or are about to end, Flux likewise."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A batch job of workers."""

    system: System
    """Batch system."""
    spool: str
    """Directory of the spool; absolute."""
    nodes: int = 1
    """Whole nodes."""
    time: str = "1:00:00"
    """Walltime, as the batch system writes it."""
    directives: tuple[str, ...] = ()
    """Further options of the batch system, such as ``--partition=long``."""
    arguments: tuple[str, ...] = ()
    """Options of ``spool-worker``."""
    template: str = ""
    """The site's own script, a ``string.Template`` with ``$nodes``, ``$time``, ``$directives`` and ``$worker``."""

    def script(self, name: str, output: str) -> str:
        """The batch script of the job ``name``; it prints to the file ``output``, unless a directive says else.

        Raises :class:`LauncherError` where a template asks for what nobody knows.
        """
        worker = ["env", f"{settings.ENV_JOB}={name}", sys.executable, "-m", "spoolpool.cli.worker"]
        if self.system == "slurm":
            output = output.replace("%", "%%")
        directives = [f"--output={shlex.quote(output)}", *self.directives]
        try:
            return Template(self.template or _SCRIPTS[self.system]).substitute(
                nodes=self.nodes,
                time=self.time,
                directives="\n".join(f"{_MARKS[self.system]} {each}" for each in directives),
                worker=shlex.join([*worker, self.spool, *self.arguments]),
            )
        except (KeyError, ValueError) as error:
            raise LauncherError(
                f"The template of the batch script cannot be filled in ({error}): it may use $nodes, $time, "
                "$directives and $worker, and writes a dollar as $$."
            ) from error

    def submit(self, name: str, output: str) -> str:
        """Submit it under a name; returns the batch system's id. Raises :class:`LauncherError` with what it said."""
        script = self.script(name, output)
        said = _ask([*_SUBMIT[self.system], f"--job-name={name}"], "submit a batch job", script)
        return said.partition(";")[0].replace("\N{LATIN SMALL LETTER F WITH HOOK}", "f")  # as Flux lists it in ASCII


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A job of this account that waits or runs."""

    id: str
    """The batch system's id."""
    state: Literal["pending", "running"]
    """Whether it has begun."""
    name: str
    """Its name."""


def listed(system: System) -> list[Listed]:
    """The jobs of this account that wait or run: one question to the batch system. Raises :class:`LauncherError`."""
    said = _ask(_LIST[system], "list the batch jobs")
    rows = [line.strip().split("|", 2) for line in said.splitlines()]
    return [
        Listed(id=row[0], state="pending" if row[1] in _PENDING else "running", name=row[2])
        for row in rows
        if len(row) == 3
    ]


def cancel(system: System, jobs: Iterable[Listed]) -> None:
    """Cancel jobs that were listed a moment ago. One that has ended meanwhile is no error.

    Slurm is told the name as well: an id that was given to another job meanwhile cancels nothing.
    """
    for job in jobs:
        command = ["flux", "cancel", "--quiet", job.id]
        if system == "slurm":
            command = ["scancel", "--quiet", f"--jobname={job.name}", job.id]
        try:
            _ask(command, "cancel a batch job")
        except LauncherError:
            if any((each.id, each.name) == (job.id, job.name) for each in listed(system)):
                raise


@functools.cache
def cluster(system: System) -> str:
    """What the batch system that answers here is called, so that jobs of another one are not taken for ended ones.

    A Flux instance has no name: it is known by its hosts.
    """
    if system == "flux":
        return _ask(["flux", "getattr", "hostlist"], "ask for the name of the Flux instance")
    for line in _ask(["scontrol", "show", "config"], "ask for the name of the cluster").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "ClusterName":
            return value.strip()
    return ""


def _ask(command: Sequence[str], doing: str, text: str = "") -> str:
    try:
        said = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherError(f"Cannot {doing} with {command[0]}: {error}.") from error
    if said.returncode:
        words = said.stderr.strip() or said.stdout.strip() or f"exit code {said.returncode}"
        raise LauncherError(f"Cannot {doing}: {' '.join(command[:2])} says: {words}")
    return said.stdout.strip()
