"""``spool autoscale``."""

from __future__ import annotations

import signal
import time
from typing import Any

import click

from spoolpool import settings
from spoolpool.cli.batch_options import job, job_options, worker_options
from spoolpool.cli.output import echo_escaped, echo_stderr, report_errors
from spoolpool.errors import LauncherError
from spoolpool.pool.autoscaler import Autoscaler
from spoolpool.pool.scaling_policy import ScalingPolicy
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system.stop_request import StopRequest


@click.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.option("--once", is_flag=True, help="Look once, and end: for cron.")
@click.option("--every", type=click.FloatRange(1), default=60.0, show_default=True, help="Seconds between two looks.")
@click.option("--max-jobs", type=click.IntRange(1), required=True, help="Jobs that may wait or run at once.")
@click.option(
    "--tasks-per-job",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Waiting tasks of a lane for each of which one more job is worth it.",
)
@click.option(
    "--patience",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    help="Seconds for which a job that nobody needs any more may wait before it is cancelled.",
)
@click.option(
    "--cooldown",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds between two submissions for a lane that has a job, or whose last one ended.",
)
@click.option(
    "--idle-timeout",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    help="Seconds without a task after which the groups end.",
)
@job_options
@report_errors
def autoscale(
    directory: str,
    once: bool,
    every: float,
    max_jobs: int,
    tasks_per_job: int,
    patience: float,
    cooldown: float,
    idle_timeout: float,
    **options: Any,
) -> None:
    """Submit batch jobs of workers for the tasks that wait in SPOOL, and cancel those that nobody needs any more.

    Each job is for one lane: its groups have the ranks, threads, GPUs and queue that the tasks ask for. One process
    at a time scales a spool. Prints what it does, and why.
    """
    spool = Spool(directory)
    policy = ScalingPolicy(
        max_jobs=max_jobs,
        tasks_per_job=tasks_per_job,
        patience=patience,
        cooldown=cooldown,
        idle_timeout=idle_timeout,
    )
    given = worker_options(options["arguments"])
    trust = Trust(given["trusted"], given["trusted_groups"])
    scaler = Autoscaler(spool, job(spool.path, options), policy, tags=given["tags"], trust=trust)
    ending = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with scaler.exclusive():
        while True:
            try:
                for line in scaler.round():
                    echo_escaped(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
            except (LauncherError, OSError) as error:
                if once:
                    raise
                echo_stderr(
                    f"{time.strftime('%Y-%m-%d %H:%M:%S')} {error}"
                )  # the batch system may be back at the next look
            if once or ending.wait(every):
                return
