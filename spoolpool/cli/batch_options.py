"""Common options of the commands that submit batch jobs of workers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from spoolpool.batch_backends import batch_backend
from spoolpool.cli.output import echo_stderr
from spoolpool.cli.quantities import Walltime
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.cli.worker import main
from spoolpool.errors import BadRequest
from spoolpool.pool.batch_system import Job
from spoolpool.system.walltime import describe_walltime

_OPTIONS = (
    click.option("--slurm", "system", flag_value="slurm", default="slurm", help="Submit with sbatch (the default)."),
    click.option("--flux", "system", flag_value="flux", help="Submit with flux batch."),
    click.option("--pbs", "system", flag_value="pbs", help="Submit with qsub of PBS Professional or OpenPBS."),
    click.option("--sge", "system", flag_value="sge", help="Submit with qsub of Grid Engine."),
    click.option("--qsub", "system", flag_value="qsub", help="Submit with qsub; which one it is, is detected."),
    click.option("--lsf", "--bsub", "system", flag_value="lsf", help="Submit with bsub of LSF."),
    click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Whole nodes per job."),
    click.option(
        "--cores-per-node",
        "cores",
        type=click.IntRange(1),
        help="Cores of each node, for PBS, Grid Engine and LSF.  [default: asked of the batch system]",
    ),
    click.option(
        "--pe",
        "parallel_environment",
        default="",
        help="Parallel environment of Grid Engine.  [default: the first that fills nodes]",
    ),
    click.option(
        "--time",
        "walltime",
        type=Walltime(),
        default="1:00:00",
        show_default=True,
        help="Walltime of a job: 1:30:00, 2-00:00:00, 90m, 1.5h, or a number of minutes.",
    ),
    click.option("--option", "directives", multiple=True, help="Batch system option: --option=--partition=long."),
    click.option("--template", type=click.Path(exists=True, dir_okay=False), help="Job script, a string.Template."),
)


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that :func:`create_job` needs to a command, and the worker's options after the SPOOL."""
    command = takes_spool(many="arguments:[-- WORKER-OPTIONS]")(function)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_worker_options(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Parse options of spool-worker before the submission of a job; a wrong one is a usage error."""
    return main.make_context("spool-worker", ["SPOOL", *arguments]).params


def create_job(spool: str, options: dict[str, Any]) -> Job:
    """Return the job that the options of a command describe; print its walltime as it was understood."""
    parse_worker_options(options["arguments"])
    template = options["template"]
    backend = batch_backend(options["system"])
    given = {name: value for name in ("cores", "parallel_environment") if (value := options[name])}
    if unknown := given.keys() - backend.__dataclass_fields__.keys():
        names = {"cores": "--cores-per-node", "parallel_environment": "--pe"}
        raise BadRequest(f"{', '.join(sorted(names[each] for each in unknown))} is no option for {backend.name}.")
    walltime = timedelta(seconds=options["walltime"])
    job = Job(
        backend=backend(nodes=options["nodes"], time=walltime, directives=options["directives"], **given),
        spool=spool,
        arguments=options["arguments"],
        template=Path(template).read_text(encoding="utf-8") if template else "",
    )
    echo_stderr(f"walltime {describe_walltime(options['walltime'])}")
    return job
