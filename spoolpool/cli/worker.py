"""``spool-worker``: the ranks of a worker group, or the supervisor of several groups."""

from __future__ import annotations

import sys
from typing import Any

import click

from spoolpool import settings
from spoolpool.cli.output import command, common_arguments, say
from spoolpool.cli.worker_options import WorkerCommandOptions, weights_of
from spoolpool.cli.worker_rank import ranks_started, run_rank
from spoolpool.format.names import check_tags
from spoolpool.launch.launcher import LaunchOptions
from spoolpool.resources import read_memory

_LAUNCH_OPTIONS = ("extra", "memory", "cwd", "output", "urgency", "oversubscribe")


@command("spool-worker")
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
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
    help="Supervise so many groups.  [default with --launcher: as many as the job around holds, or 1]",
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
    type=click.Choice(["auto", "local", "mpiexec", "srun", "flux"]),
    help="Supervise groups that are started through this.  [default with --groups, and in a batch script: auto]",
)
@click.option(
    "--launcher-option",
    "extra",
    multiple=True,
    help="Hand this on to srun or mpiexec, or to Flux as a shell option NAME=VALUE (repeat for more).",
)
@click.option("--memory", metavar="SIZE", default="0", help="Memory per rank that srun is asked for, such as 4G.")
@click.option("--cwd", type=click.Path(file_okay=False), help="Working directory of the groups.")
@click.option("--output", default="", help="File for what Flux jobs print.  [default: as of the supervisor]")
@click.option(
    "--urgency",
    type=click.IntRange(0, 31),
    default=16,
    show_default=True,
    help="How urgent the Flux jobs of the groups are among the others of the instance.",
)
@click.option("--oversubscribe", is_flag=True, help="Start more ranks than there are cores.")
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME[=WEIGHT]",
    default=("default",),
    show_default=True,
    help="Serve this queue (repeat for more); of two that have tasks, one of weight 3 gets three for one of the other.",
)
@click.option(
    "--tag", "tags", multiple=True, help="Also run tasks that ask for this tag (repeat for more): what the groups have."
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
    help="Also run tasks of this group's members (repeat for more), whoever they are at the time.",
)
@click.option("--idle-timeout", type=float, help="End after so many seconds without a task.")
@click.option("--max-tasks", type=click.IntRange(1), help="End each group after so many tasks.")
@click.option(
    "--grace",
    type=float,
    default=settings.GRACE,
    show_default=True,
    help="Seconds for the other ranks to report after one failed; then the group is replaced.",
)
@click.option(
    "--max-time",
    type=float,
    help="End after so many seconds.  [default in a job: what is left of its walltime]",
)
@click.option(
    "--drain",
    type=float,
    default=20.0,
    show_default=True,
    help="Seconds that running tasks get to finish at the end; then they are given back.",
)
@click.option("--group-of", type=click.IntRange(1), hidden=True, help="One of so many ranks that a supervisor started.")
def main(**options: Any) -> None:
    """Run tasks from SPOOL.

    Without a launcher, this process and the ranks beside it are the workers:

    \b
      spool-worker /shared/spool                          one group of one rank
      mpiexec -n 2 spool-worker /shared/spool             one group of two ranks
      mpiexec -n 8 spool-worker /shared/spool --ranks 4   two groups of four

    With --launcher or --groups, and in a batch script of Slurm or Flux, it starts groups, and replaces those that die:

    \b
      spool-worker /shared/spool --launcher mpiexec --ranks 2 --groups 3
      exec spool-worker /shared/spool --ranks 8 --threads 2     (in a script for sbatch)

    Ends at SIGTERM, SIGINT or SIGUSR1 after the tasks that run; a supervisor gives those back that take longer
    than --drain. At a second signal it ends at once.
    """
    options["memory"] = read_memory(options["memory"])
    launch = LaunchOptions(**{name: options.pop(name) for name in _LAUNCH_OPTIONS})
    given = {"queues": weights_of(options["queues"]), "tags": check_tags(options["tags"]), "launch": launch}
    wishes = WorkerCommandOptions(**{**options, **given})
    if wishes.group_of is None and (wishes.launcher or wishes.groups or wishes.given_shapes or in_batch_script()):
        supervise(wishes)
    else:
        sys.exit(run_rank(wishes))


def in_batch_script() -> bool:
    """Whether this process is the script of a Slurm job or a Flux batch job, and no rank of anything."""
    from spoolpool.launch.allocation import find_allocation, in_step

    return find_allocation().system != "none" and not in_step() and ranks_started() == 1


def supervise(wishes: WorkerCommandOptions) -> None:
    """Start groups and look after them until told to end, until the time is up, or until all ended by themselves."""
    from spoolpool.launch.selection import select_launcher
    from spoolpool.pool.supervisor import Supervisor
    from spoolpool.protocol.spool import Spool
    from spoolpool.system.stop_request import StopRequest, stop_on_signals

    launcher = select_launcher(wishes.launcher or "auto")
    supervisor = Supervisor(
        Spool(wishes.directory),
        launcher,
        wishes.shapes(alone=launcher.name in ("local", "mpiexec")),
        wishes.launch,
        arguments=wishes.for_groups(),
        max_time=wishes.max_time,
        drain=wishes.drain,
        as_json="--log-json" in common_arguments(),
        echo=say,
    )
    stopping, hurry = StopRequest(), StopRequest()
    stop_on_signals(stopping.set, hurry.set)
    supervisor.run(stopping, hurry)


if __name__ == "__main__":
    main()
