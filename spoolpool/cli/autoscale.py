"""``spool autoscale``."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from typing import Any

import click

from spoolpool.cli.batch_options import create_job, job_options, parse_worker_options
from spoolpool.cli.output import echo_escaped, echo_stderr, report_errors
from spoolpool.cli.quantities import Duration
from spoolpool.errors import LauncherError
from spoolpool.launch.launcher import end_margin
from spoolpool.pool.autoscaler import Autoscaler
from spoolpool.pool.scaling_policy import ScalingPolicy
from spoolpool.pool.supervisor import task_seconds
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system.stop_request import StopRequest


@click.command()
@click.option("--once", is_flag=True, help="Scale once and exit, for cron.")
@click.option("--dry-run", is_flag=True, help="Print what one round would do, and why; change nothing.")
@click.option("--every", type=Duration(1.0), default=60.0, show_default=True, help="Seconds between two rounds.")
@click.option("--max-jobs", type=click.IntRange(1), required=True, help="Maximum number of pending and running jobs.")
@click.option(
    "--tasks-per-job",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Queued tasks of a lane per job.",
)
@click.option(
    "--patience",
    type=Duration(),
    default=300.0,
    show_default=True,
    help="Seconds after which an unneeded pending job is cancelled.",
)
@click.option(
    "--cooldown",
    type=Duration(),
    default=60.0,
    show_default=True,
    help="Seconds between two submissions for a lane; longer after jobs that ended.",
)
@click.option(
    "--idle-timeout",
    type=Duration(),
    default=300.0,
    show_default=True,
    help="Seconds without a task after which a group ends.",
)
@job_options
@report_errors
def autoscale(
    directory: str,
    once: bool,
    dry_run: bool,
    every: float,
    max_jobs: int,
    tasks_per_job: int,
    patience: float,
    cooldown: float,
    idle_timeout: float,
    **options: Any,
) -> None:
    """Submit batch jobs of workers for the queued tasks of SPOOL, and cancel unneeded pending jobs.

    \b
      spool autoscale SPOOL --max-jobs 8 --time 4:00:00 -- --ranks 8
      spool autoscale SPOOL --max-jobs 8 --dry-run

    Each job is for one lane: its groups have the ranks, threads, GPUs and queue that the tasks require. Where no
    worker lives, it also makes delayed tasks ready and releases the claims of dead workers; --once first watches
    silent workers for up to two leases. Only one process at a time scales a spool. It prints each action with its
    reason. A lane whose jobs failed twice in a row gets no job for an hour, or longer after further failures: see
    'spool workers ls'.
    """
    given = parse_worker_options(options["arguments"])
    trust = Trust(given["trusted"], given["trusted_groups"])
    spool = Spool(directory, read_only=dry_run, trust=trust)
    policy = ScalingPolicy(
        max_jobs=max_jobs,
        tasks_per_job=tasks_per_job,
        patience=patience,
        cooldown=cooldown,
        idle_timeout=idle_timeout,
    )
    job = create_job(spool.path, options)
    seconds = task_seconds(
        given["max_time"] or job.backend.walltime, given["drain"], margin=end_margin(job.backend.system)
    )
    scaler = Autoscaler(spool, job, policy, tags=given["tags"], trust=trust, seconds=seconds)
    if dry_run:  # beside another process that scales the spool, too
        for message in scaler.preview():
            echo_escaped(message)
        return
    ending = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with scaler.exclusive():
        if once:
            _print(scaler.await_recovery(ending.wait))
            _print(scaler.round())
            return
        while not ending.is_set():
            try:
                _print(scaler.round())
            except (LauncherError, OSError) as error:  # the batch system may be back in the next round
                echo_stderr(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {error}")
            end = time.monotonic() + every
            while (left := end - time.monotonic()) > 0 and not ending.wait(min(left, spool.config.lease / 4)):
                if _print(scaler.release_tasks()):
                    break  # a job may be needed now


def _print(messages: Iterable[str]) -> bool:
    """Print messages with the time; return whether there were any."""
    any_message = False
    for message in messages:
        echo_escaped(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}")
        any_message = True
    return any_message
