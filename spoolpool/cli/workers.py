"""``spool workers``: start and stop batch jobs of workers from a login node."""

from __future__ import annotations

import json
import time
from typing import Any

import click
import msgspec

from spoolpool import settings
from spoolpool.cli.batch_options import create_job, job_options
from spoolpool.cli.output import echo_escaped, echo_stderr, report_errors
from spoolpool.cli.quantities import Duration
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.format.names import new_job_name
from spoolpool.pool.batch_jobs import end_jobs, find_jobs, output_path, submit
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import request_stop
from spoolpool.protocol.workers import WorkerInfo, group_state, read_start_errors, read_workers


@click.group()
def workers() -> None:
    """Submit batch jobs of workers, list and stop groups."""


@workers.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.option("--jobs", "count", type=click.IntRange(1), default=1, show_default=True, help="Number of jobs.")
@click.option("--dry-run", is_flag=True, help="Print the job script; submit nothing.")
@job_options
@report_errors
def start(directory: str, count: int, dry_run: bool, **options: Any) -> None:
    """Submit batch jobs that run spool-worker, and print their ids.

    Example: spool workers start /shared/spool --nodes 4 --time 4:00:00 -- --ranks 8 --threads 2
    """
    spool = Spool(directory)
    submitted = create_job(spool.path, options)
    if dry_run:
        name = new_job_name()
        click.echo(submitted.script(name, output_path(spool, name)), nl=False)
        return
    for _ in range(count):
        click.echo(submit(spool, submitted)[1])


@workers.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per group or job, and line.")
@report_errors
def ls(directory: str, as_json: bool) -> None:
    """List the worker groups of SPOOL: id, state, host, job, shape and queues; then its batch jobs."""
    spool = Spool(directory, read_only=True)
    now = _server_time(spool)
    found = read_workers(spool)
    for info in sorted(found, key=lambda info: info.started):
        life = group_state(spool, info, now)
        if as_json:
            click.echo(json.dumps({**msgspec.to_builtins(info), "state": life.state, "silence": life.silence}))
            continue
        state = life.text
        job = f"job {info.job or info.batch}" if info.job or info.batch else "no job"
        shape = f"{info.ranks} rank(s) x {info.threads} thread(s), {info.gpus} GPU(s)"
        left = "" if info.ends is None else f"  {max(0.0, info.ends - now):.0f} s left"
        echo_escaped(f"{info.worker}  {state}  {info.process.host}  {job}  {shape}  {', '.join(info.queues)}{left}")
    for worker, error in read_start_errors(spool, {info.worker for info in found}).items():
        if as_json:
            click.echo(json.dumps({"worker": worker, "state": "missing", "error": error}))
        else:
            echo_escaped(f"{worker}  missing  {error}")
    for each in find_jobs(spool):
        if as_json:
            click.echo(json.dumps({**msgspec.to_builtins(each.record), "id": each.id, "state": each.state}))
        elif each.state != "over":
            record = each.record
            purpose = f"for {record.lane}" if record.lane else "submitted manually"
            purpose += f", session {record.session}" if record.session else ""
            text = f"{each.id}  {each.state}  {record.nodes} node(s) for {record.time}  {purpose}  {record.name}"
            echo_escaped(text)


def _server_time(spool: Spool) -> float:
    try:
        return spool.server_time()
    except (OSError, SpoolpoolError):  # the spool cannot be written to, or is away: use the clock of this host
        return time.time()


def _select_groups(spool: Spool, named: tuple[str, ...], everything: bool) -> list[WorkerInfo]:
    found = read_workers(spool)
    if everything == bool(named):
        raise BadRequest(f"Name groups, jobs or hosts, or --all. The spool has {len(found)} groups.")
    chosen = []
    for name in named:
        fits = [info for info in found if info.worker.startswith(name) or name in (info.job, info.process.host)]
        if not fits:
            raise BadRequest(f"{name!r} is no group, job or host of this spool: see 'spool workers ls {spool.path}'.")
        chosen += fits
    return found if everything else chosen


@workers.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.argument("named", metavar="[GROUP|JOB|HOST]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All groups of the spool.")
@report_errors
def drain(directory: str, named: tuple[str, ...], everything: bool) -> None:
    """Stop groups after their current tasks. A supervisor ends with its last group."""
    spool = Spool(directory)
    for info in _select_groups(spool, named, everything):
        request_stop(spool, info.worker)
        click.echo(f"{info.worker} on {info.process.host} was asked to end.")


@workers.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.argument("named", metavar="[JOB|NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All batch jobs and all groups of the spool.")
@click.option(
    "--wait",
    "seconds",
    type=Duration(),
    default=60.0,
    show_default=True,
    help="Seconds for groups to finish their tasks; then their jobs are cancelled.",
)
@report_errors
def stop(directory: str, named: tuple[str, ...], everything: bool, seconds: float) -> None:
    """Stop batch jobs that were submitted for SPOOL, and wait until they have ended.

    Pending jobs are cancelled. The groups of running jobs are asked to end after their tasks; after --wait seconds
    their jobs are cancelled too. Only jobs that your account submitted for this spool are touched.
    """
    spool = Spool(directory)
    active = [job for job in find_jobs(spool) if job.state != "over"]
    if everything == bool(named):
        raise BadRequest(f"Name batch jobs, or --all. There are {len(active)}: see 'spool workers ls {spool.path}'.")
    for name in named:
        if not any(name in (job.record.name, job.id) for job in active):
            raise BadRequest(f"{name!r} is no batch job of this spool: see 'spool workers ls {spool.path}'.")
    wanted = {job.record.name for job in active if everything or {job.record.name, job.id} & set(named)}
    if everything:
        for info in _select_groups(spool, (), True):
            request_stop(spool, info.worker)
            echo_stderr(f"{info.worker} on {info.process.host} was asked to end.")
    for line in end_jobs(spool, lambda job: job.record.name in wanted, seconds):
        echo_stderr(line)
