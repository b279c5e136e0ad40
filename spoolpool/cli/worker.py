"""``spool-worker``: one rank of a worker group, or the supervisor of several groups."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import click

from spoolpool import settings
from spoolpool.cli.output import command, common_arguments, echo_stderr
from spoolpool.cli.quantities import Duration
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.cli.worker_options import WorkerCommandOptions, read_weights
from spoolpool.cli.worker_rank import rank_started, ranks_started, run_rank
from spoolpool.format.names import check_tags
from spoolpool.launch.launcher import HostLauncher, LaunchOptions
from spoolpool.system.quantities import read_memory
from spoolpool.system.walltime import describe_walltime

log = logging.getLogger(__name__)

_LAUNCH_OPTIONS = ("extra", "memory", "cwd", "output", "urgency", "oversubscribe")


@command("spool-worker")
@takes_spool()
@click.option(
    "--ranks",
    type=click.IntRange(1),
    help="MPI ranks per group.  [default: all that were started; 1 with --launcher]",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads per rank.")
@click.option("--gpus", type=click.IntRange(0), default=0, show_default=True, help="GPUs per rank.")
@click.option(
    "--groups",
    type=click.IntRange(1),
    help="Supervise this number of groups.  [default with --launcher: as many as the job around holds, or 1]",
)
@click.option(
    "--shape",
    "given_shapes",
    multiple=True,
    metavar="RANKS[xTHREADS][+GPUSgpu][=GROUPS]",
    help="Supervise groups of this shape (repeat for more): '8x2+1gpu=4'.  [default number: as many as fit]",
)
@click.option(
    "--launcher",
    type=click.Choice(settings.LAUNCHERS),
    help="Supervise groups that this launcher starts.  [default with --groups, and in a batch script: auto, or "
    "as 'spool config' shows]",
)
@click.option(
    "--launcher-option",
    "extra",
    multiple=True,
    help="Argument for srun or mpiexec, or shell option NAME=VALUE for Flux (repeat for more).",
)
@click.option("--memory", metavar="SIZE", default="0", help="Memory per rank that srun requests, such as 4G.")
@click.option("--cwd", type=click.Path(file_okay=False), help="Working directory of the groups.")
@click.option("--output", default="", help="File for the output of Flux jobs.  [default: output of the supervisor]")
@click.option(
    "--urgency",
    type=click.IntRange(0, 31),
    default=16,
    show_default=True,
    help="Urgency of the Flux jobs of the groups among the jobs of the instance.",
)
@click.option("--oversubscribe", is_flag=True, help="Start more ranks than there are cores.")
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME[=WEIGHT]",
    default=("default",),
    show_default=True,
    help="Serve this queue (repeat for more); while others have tasks, weight 3 gets three times as many as weight 1.",
)
@click.option(
    "--tag", "tags", multiple=True, help="Property of the groups; also run tasks that require it (repeat for more)."
)
@click.option(
    "--trust-user",
    "trusted",
    multiple=True,
    help="Also run tasks of this account (repeat for more). A task is a program: it runs as you.",
)
@click.option(
    "--trust-group",
    "trusted_groups",
    multiple=True,
    help="Also run tasks of the members of this group at the time (repeat for more).",
)
@click.option("--idle-timeout", type=Duration(), help="Seconds without a task after which a group ends.")
@click.option("--max-tasks", type=click.IntRange(1), help="Number of tasks after which each group ends.")
@click.option(
    "--grace",
    type=Duration(),
    default=settings.GRACE,
    show_default=True,
    help="Seconds for the other ranks to report after one has failed; then the group is replaced.",
)
@click.option(
    "--max-time",
    type=Duration(),
    help="Time after which to end: 1:30:00, 2-00:00:00, 90m, 1.5h, or a number of seconds.  "
    "[default in a job: the rest of its walltime]",
)
@click.option(
    "--drain",
    type=Duration(),
    default=settings.DRAIN,
    show_default=True,
    help="Seconds for running tasks to finish at the end; then they are released.",
)
@click.option(
    "--notice",
    type=Duration(),
    hidden=True,
    help="Seconds between a signal of the batch system and its kill.  [default in a Flux job: 5]",
)
@click.option(
    "--group-of", type=click.IntRange(1), hidden=True, help="Be one of this number of ranks, started by a supervisor."
)
def main(**options: Any) -> None:
    """Run tasks from SPOOL.

    Without a launcher, this process and the other ranks that were started with it are the workers:

    \b
      spool-worker /shared/spool                          one group of one rank
      mpiexec -n 2 spool-worker /shared/spool             one group of two ranks
      mpiexec -n 8 spool-worker /shared/spool --ranks 4   two groups of four

    With --launcher or --groups, and in a batch script, it starts groups, and replaces dead ones:

    \b
      spool-worker /shared/spool --launcher mpiexec --ranks 2 --groups 3
      exec spool-worker /shared/spool --ranks 8 --threads 2     (in a script for sbatch)

    Ends at SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP or SIGALRM after the running tasks; a supervisor releases tasks
    that take longer than --drain. Releases them and ends at once at a second signal.
    """
    options["memory"] = read_memory(options["memory"])
    launch = LaunchOptions(**{name: options.pop(name) for name in _LAUNCH_OPTIONS})
    read = {"queues": read_weights(options["queues"]), "tags": check_tags(options["tags"]), "launch": launch}
    given = WorkerCommandOptions(**{**options, **read})
    is_start = settings.ENV_LIMITS not in os.environ  # of a worker that starts itself again the end is known
    if given.max_time is not None and given.group_of is None and not rank_started() and is_start:
        report = log.info if "--log-json" in common_arguments() else echo_stderr
        report(f"--max-time: the work ends after {describe_walltime(given.max_time)}")
    if given.group_of is None and (given.launcher or given.groups or given.given_shapes or in_batch_script()):
        supervise(given)
    else:
        sys.exit(run_rank(given))


def in_batch_script() -> bool:
    """Return whether this process is the script of a Slurm job or a Flux batch job, and not a rank."""
    from spoolpool.launch.allocation import find_allocation, in_step

    return find_allocation().system != "none" and not in_step() and ranks_started() == 1


def supervise(options: WorkerCommandOptions) -> None:
    """Supervise groups until a signal requests a stop, the time is up, or all groups have ended."""
    from spoolpool.launch.selection import default_launcher, select_launcher
    from spoolpool.pool.own_job import OwnJob
    from spoolpool.pool.supervisor import Supervisor
    from spoolpool.protocol.spool import Spool
    from spoolpool.security import known_spools
    from spoolpool.security.trust import Trust
    from spoolpool.system.job_ids import job_id, unused_nodes
    from spoolpool.system.stop_request import StopRequest, stop_on_signals

    known_spools.inherit(os.environ.pop(settings.ENV_KNOWN, ""))
    spool = Spool(options.directory, trust=Trust(options.trusted, options.trusted_groups))
    with OwnJob(spool).recording() as job:
        launcher = select_launcher(options.launcher or default_launcher())
        supervisor = Supervisor(
            spool,
            launcher,
            options.shapes(
                single=isinstance(launcher, HostLauncher) and launcher.allocation(options.launch).system == "none"
            ),
            options.launch,
            arguments=options.group_arguments(),
            max_time=options.max_time,
            drain=options.drain,
            as_json="--log-json" in common_arguments(),
            echo=echo_stderr,
        )
        if others := unused_nodes():
            echo_stderr(
                f"Job {job_id()} is heterogeneous. Groups are started in its first component alone, and not on "
                f"{', '.join(others)}: submit one job for each shape instead."
            )
        job.has_groups_left = supervisor.has_groups_left
        stopping, hurry = StopRequest(), StopRequest()
        stop_on_signals(stopping.set, hurry.set)
        supervisor.run(stopping, hurry)


if __name__ == "__main__":
    main()
