"""``spool workers``: batch jobs of workers, started and ended from a login node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spoolpool import settings
from spoolpool.cli.output import explained
from spoolpool.errors import BadRequest

if TYPE_CHECKING:
    from spoolpool.registry import WorkerInfo
    from spoolpool.spool import Spool


@click.group()
def workers() -> None:
    """Start batch jobs of workers, list groups, and end them."""


@workers.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.option("--slurm", "system", flag_value="slurm", default="slurm", help="Submit with sbatch (the default).")
@click.option("--flux", "system", flag_value="flux", help="Submit with flux batch.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Whole nodes per job.")
@click.option(
    "--time", "walltime", default="1:00:00", show_default=True, help="Walltime, as the batch system writes it."
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Submit so many jobs.")
@click.option("--option", "directives", multiple=True, help="Option of the batch system: --option=--partition=long.")
@click.option(
    "--template", type=click.Path(exists=True, dir_okay=False), help="The site's own script, a string.Template."
)
@click.option("--dry-run", is_flag=True, help="Print the script, and submit nothing.")
@click.argument("arguments", metavar="[-- WORKER-OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@explained
def start(
    directory: str,
    system: str,
    nodes: int,
    walltime: str,
    jobs: int,
    directives: tuple[str, ...],
    template: str | None,
    dry_run: bool,
    arguments: tuple[str, ...],
) -> None:
    """Submit batch jobs whose script is spool-worker.

    Example: spool workers start /shared/spool --nodes 4 --time 4:00:00 -- --ranks 8 --threads 2
    """
    from spoolpool.batch import Job
    from spoolpool.spool import Spool

    spool = Spool(directory)
    job = Job(
        system=system,  # type: ignore[arg-type]  # click lets nothing else through
        spool=spool.path,
        nodes=nodes,
        time=walltime,
        directives=directives,
        arguments=arguments,
        template=Path(template).read_text(encoding="utf-8") if template else "",
    )
    if dry_run:
        click.echo(job.script(), nl=False)
        return
    for _ in range(jobs):
        click.echo(job.submit())


@workers.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@explained
def ls(directory: str) -> None:
    """List the worker groups of SPOOL: id, host, job, shape, and what they are."""
    from spoolpool.registry import Liveness
    from spoolpool.registry import workers as entries
    from spoolpool.spool import Spool

    spool = Spool(directory)
    liveness = Liveness(spool)
    for info in sorted(entries(spool), key=lambda info: info.started):
        state = "alive" if liveness.alive(info) else "dead"
        job = f"job {info.job}" if info.job else "no job"
        shape = f"{info.ranks} rank(s) x {info.threads} thread(s), {info.gpus} GPU(s)"
        click.echo(f"{info.worker}  {state}  {info.process.host}  {job}  {shape}  {', '.join(info.queues)}")


def _chosen(spool: Spool, named: tuple[str, ...], everything: bool) -> list[WorkerInfo]:
    from spoolpool.registry import workers as entries

    found = entries(spool)
    if everything == bool(named):
        raise BadRequest(f"Name groups, jobs or hosts, or --all. There are {len(found)} groups.")
    chosen = []
    for name in named:
        fits = [info for info in found if info.worker.startswith(name) or name in (info.job, info.process.host)]
        if not fits:
            raise BadRequest(f"No group, job or host is {name!r}: see 'spool workers ls {spool.path}'.")
        chosen += fits
    return found if everything else chosen


@workers.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.argument("named", metavar="[GROUP|JOB|HOST]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All groups of the spool.")
@explained
def drain(directory: str, named: tuple[str, ...], everything: bool) -> None:
    """Let groups end after the task that they run. A supervisor ends with its last group."""
    from spoolpool.registry import ask_to_stop
    from spoolpool.spool import Spool

    spool = Spool(directory)
    for info in _chosen(spool, named, everything):
        ask_to_stop(spool, info.worker)
        click.echo(f"{info.worker} on {info.process.host} was asked to end.")
