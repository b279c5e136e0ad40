"""Batch jobs whose script is ``spool-worker``: written and submitted from a login node."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from string import Template
from typing import Literal

from spoolpool.errors import LauncherError

System = Literal["slurm", "flux"]

_SCRIPTS: dict[System, str] = {
    "slurm": """\
#!/bin/bash
#SBATCH --job-name=spool-worker
#SBATCH --nodes=$nodes
#SBATCH --exclusive
#SBATCH --time=$time
#SBATCH --open-mode=append
$directives
exec $worker
""",
    "flux": """\
#!/bin/bash
# flux: --job-name=spool-worker
# flux: --nodes=$nodes
# flux: --exclusive
# flux: --time-limit=$time
$directives
exec $worker
""",
}
_MARKS: dict[System, str] = {"slurm": "#SBATCH", "flux": "# flux:"}
_COMMANDS: dict[System, list[str]] = {"slurm": ["sbatch", "--parsable"], "flux": ["flux", "batch"]}


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

    def script(self) -> str:
        """The batch script. Raises :class:`LauncherError` where a template asks for what nobody knows."""
        worker = [sys.executable, "-m", "spoolpool.cli.worker", self.spool, *self.arguments]
        directives = [f"{_MARKS[self.system]} {each}" for each in self.directives]
        try:
            return Template(self.template or _SCRIPTS[self.system]).substitute(
                nodes=self.nodes, time=self.time, directives="\n".join(directives), worker=shlex.join(worker)
            )
        except (KeyError, ValueError) as error:
            raise LauncherError(
                f"The template of the batch script cannot be filled in ({error}): it may use $nodes, $time, "
                "$directives and $worker, and writes a dollar as $$."
            ) from error

    def submit(self) -> str:
        """Submit it; returns the batch system's id of the job. Raises :class:`LauncherError` with what it said."""
        command = _COMMANDS[self.system]
        try:
            said = subprocess.run(
                command, input=self.script(), capture_output=True, text=True, timeout=300, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LauncherError(f"Cannot submit a batch job with {command[0]}: {error}.") from error
        if said.returncode:
            raise LauncherError(f"{' '.join(command)} refused the job: {said.stderr.strip() or said.stdout.strip()}")
        return said.stdout.strip().partition(";")[0]
