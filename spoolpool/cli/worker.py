"""``spool-worker``: the ranks of a worker group, or the supervisor of several groups."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from spoolpool import layout, settings
from spoolpool.cli.output import command, common_arguments, say
from spoolpool.errors import BadRequest, LauncherError, SpoolpoolError
from spoolpool.resources import Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spoolpool.spool import Spool
    from spoolpool.worker import Group, Terms

log = logging.getLogger(__name__)

_MARGIN = 5.0  # seconds for what comes after the last task

_RANKS_STARTED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS", "FLUX_JOB_SIZE")


def ranks_started() -> int:
    """How many ranks the launcher that started this process says it started; 1 without a launcher."""
    sizes = [os.environ.get(name, "") for name in _RANKS_STARTED]
    return max([1, *(int(size) for size in sizes if size.isdigit())])


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The options of the command line; each field is one."""

    directory: str
    ranks: int | None
    threads: int
    gpus: int
    groups: int | None
    launcher: str | None
    oversubscribe: bool
    queues: dict[str, int]
    """Their weights by their names."""
    tags: tuple[str, ...]
    trusted: tuple[str, ...]
    trusted_groups: tuple[str, ...]
    idle_timeout: float | None
    max_tasks: int | None
    grace: float
    max_time: float | None
    drain: float
    group_of: int | None

    def for_groups(self) -> list[str]:
        """The options that a supervisor hands on to its groups."""
        arguments = [*common_arguments(), "--grace", str(self.grace)]
        arguments += [f"--queue={queue}={weight}" for queue, weight in self.queues.items()]
        arguments += [f"--tag={tag}" for tag in self.tags]
        for user in self.trusted:
            arguments += ["--trust-user", user]
        for group in self.trusted_groups:
            arguments += ["--trust-group", group]
        if self.idle_timeout is not None:
            arguments += ["--idle-timeout", str(self.idle_timeout)]
        if self.max_tasks is not None:
            arguments += ["--max-tasks", str(self.max_tasks)]
        return arguments


def weights_of(queues: Iterable[str]) -> dict[str, int]:
    """Weights by the names of queues, out of texts like ``fast=3``; 1 where none is given."""
    weights = {}
    for text in queues:
        name, given, weight = text.partition("=")
        if given and not (weight.isdecimal() and 1 <= int(weight) <= 1000):
            raise BadRequest(f"The weight of queue {name!r} is {weight!r}; it must be a whole number from 1 to 1000.")
        weights[layout.check_queue(name)] = int(weight or 1)
    return weights


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
    "--launcher",
    type=click.Choice(["auto", "local", "mpiexec", "srun", "flux"]),
    help="Supervise groups that are started through this.  [default with --groups, and in a batch script: auto]",
)
@click.option("--oversubscribe", is_flag=True, help="Let mpiexec start more ranks than there are cores.")
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
    wishes = Wishes(**{**options, "queues": weights_of(options["queues"]), "tags": layout.check_tags(options["tags"])})
    if wishes.group_of is None and (wishes.launcher or wishes.groups or in_batch_script()):
        supervise(wishes)
    else:
        sys.exit(work(wishes))


def in_batch_script() -> bool:
    """Whether this process is the script of a Slurm job or a Flux batch job, and no rank of anything."""
    from spoolpool.allocation import find, in_step

    return find().kind != "none" and not in_step() and ranks_started() == 1


def open_spool(directory: str) -> Spool:
    """Open the spool; not imported before it is needed, so that ``--help`` is quick."""
    from spoolpool.spool import Spool

    return Spool(directory)


def work(wishes: Wishes) -> int:
    """Be a rank of a group; returns the exit code."""
    from spoolpool.registry import read_owner
    from spoolpool.trust import Trust
    from spoolpool.worker import Terms

    launched = wishes.group_of is not None
    size = wishes.group_of or ranks_started()
    if size == 1 and wishes.ranks not in (None, 1):
        raise BadRequest(
            f"This is one process, and --ranks asks for {wishes.ranks}. Start it with 'mpiexec -n {wishes.ranks}', or "
            "let it start its ranks: --launcher mpiexec."
        )
    meant_for_us = [os.environ.pop(name, "") for name in (settings.ENV_OWNER, settings.ENV_WORKER)]
    owner, worker = meant_for_us if launched else ("", "")
    terms = Terms(
        trust=Trust(wishes.trusted, wishes.trusted_groups),
        idle_timeout=wishes.idle_timeout,
        max_tasks=wishes.max_tasks,
        owner=read_owner(owner),
        supervised=launched,
        max_time=wishes.max_time,
    )
    if size > 1:
        return _work_with_mpi(wishes, terms, size, worker)
    from spoolpool.capture import Capture
    from spoolpool.group import SerialGroup
    from spoolpool.progress import Progress

    spool = open_spool(wishes.directory)
    group = SerialGroup(terms.ends, capture=Capture(spool.path), progress=Progress(spool.path))
    code = _lead(spool, group, wishes, terms, worker)
    group.stop()
    return code


def _work_with_mpi(wishes: Wishes, terms: Terms, size: int, worker: str) -> int:
    from spoolpool.capture import Capture
    from spoolpool.group import MPIGroup
    from spoolpool.mpi import World
    from spoolpool.progress import Progress
    from spoolpool.publishing import publish_for_group

    world: World | None = None
    directory = os.path.abspath(wishes.directory)
    try:
        world = World(wishes.ranks, size)
        leads = world.comm.Get_rank() == 0
        keys = world.share(open_spool(wishes.directory).secrets() if leads else b"")
        group = MPIGroup(
            world.comm,
            publish_for_group(directory, keys),
            supervised=terms.supervised and not world.split,
            grace=wishes.grace,
            ends=terms.ends,
            capture=Capture(directory, world.comm.Get_rank()),
            progress=Progress(directory),
        )
        code = 0
        if group.rank == 0:
            code = _lead(open_spool(wishes.directory), group, wishes, terms, "" if world.split else worker)
            group.stop()
        else:
            _follow(group)
        world.leave(code)
    except BaseException as error:
        if isinstance(error, SpoolpoolError):
            say(f"spool-worker: {error}")
        else:
            log.exception("A rank of the group failed")
        if world is not None:  # the other ranks would wait for this one for ever
            world.abort(getattr(error, "exit_code", 1))
        elif worker and isinstance(error, LauncherError):
            from spoolpool.registry import report_start_error

            report_start_error(open_spool(wishes.directory), worker, str(error))
            return settings.EXIT_START
        return getattr(error, "exit_code", 1)
    return code


def _follow(group: Any) -> None:
    """Ranks other than 0 leave the end of the group to rank 0, which gets the signal as well."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    group.serve()


def _lead(spool: Spool, group: Group, wishes: Wishes, terms: Terms, worker: str) -> int:
    """Be rank 0 of a group."""
    from spoolpool.identity import Identity, hostname
    from spoolpool.registry import WorkerInfo
    from spoolpool.trust import account
    from spoolpool.worker import Worker

    info = WorkerInfo(
        worker=worker if layout.is_worker_id(worker) else layout.new_worker_id(),
        process=Identity.of(os.getpid()),
        user=account(os.geteuid()),
        ranks=group.size,
        threads=wishes.threads,
        gpus=wishes.gpus,
        queues=tuple(wishes.queues),
        weights={queue: weight for queue, weight in wishes.queues.items() if weight != 1},
        tags=wishes.tags,
        job=os.environ.get("SLURM_JOB_ID", ""),
        batch=os.environ.get(settings.ENV_JOB, ""),
        started=time.time(),
        trust_users=tuple(sorted(terms.trust.uids)),
        trust_groups=terms.trust.groups,
        trust_all=terms.trust.everybody,
    )
    told = threading.Event()
    _on_signals(told.set)  # a signal that comes while the worker announces itself must not leave its entry behind
    leader = Worker(spool, group, info, terms)
    _on_signals(leader.stop)
    if told.is_set():
        leader.stop()
    if not terms.supervised:
        say(f"Worker group {info.worker}: {group.size} rank(s) on {hostname()} serve {spool.path}")
    return leader.run()


def _on_signals(stop: Callable[[], None], hurry: Callable[[], None] | None = None) -> None:
    """Stop in order at the first signal; hurry at the second (None: end at once)."""
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def again(_number: int, _frame: object) -> None:
        if hurry is not None:
            hurry()

    def first(_number: int, _frame: object) -> None:
        for name in names:
            signal.signal(name, again if hurry is not None else signal.SIG_DFL)
        stop()

    for name in names:
        signal.signal(name, first)


def supervise(wishes: Wishes) -> None:
    """Start groups and look after them until told to end, until the time is up, or until all ended by themselves."""
    from spoolpool.allocation import find
    from spoolpool.backoff import Backoff
    from spoolpool.jobs import Purpose
    from spoolpool.launchers import Options, choose
    from spoolpool.pool import Pool

    spool = open_spool(wishes.directory)
    launcher = choose(wishes.launcher or "auto")
    around = find()
    shape = Shape(ranks=wishes.ranks or 1, threads=wishes.threads, gpus=wishes.gpus)
    count = wishes.groups or launcher.fits(shape) or 1
    left = wishes.max_time if wishes.max_time is not None else launcher.seconds_left()
    ends = None if left is None else time.monotonic() + max(0.0, left - wishes.drain - _MARGIN)
    pool = Pool(
        spool, launcher, arguments=wishes.for_groups(), options=Options(oversubscribe=wishes.oversubscribe), ends=ends
    )
    stopping, hurry = threading.Event(), threading.Event()
    _on_signals(stopping.set, hurry.set)
    say(f"Starting {count} worker group(s) of {shape.ranks} rank(s) through {launcher.name} for {spool.path}")
    pool.resize(shape, count)
    purpose = Purpose(spool)
    rhythm = Backoff(0.02, 0.5)
    while not stopping.is_set() and pool.count(shape):
        if pool.step():
            rhythm.reset()
        if ends is not None and time.monotonic() > ends:
            say("The time is up: no more tasks are begun.")
            break
        if purpose.lost():
            say("The executor for which this job runs has ended.")
            break
        stopping.wait(rhythm.next())
    in_time = left is None and around.kind == "none"  # nobody will kill us: tasks may take as long as they need
    for task_id in pool.stop(None if in_time else wishes.drain, hurry=hurry.is_set):
        say(f"Task {task_id} was given back: it did not end in time.")
    purpose.leave()
    if pool.broken:
        raise LauncherError(pool.broken[shape])


if __name__ == "__main__":
    main()
