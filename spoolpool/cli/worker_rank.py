"""What ``spool-worker`` is where it supervises nothing: a rank of a worker group, and rank 0 of it."""

from __future__ import annotations

import functools
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from spoolpool import settings
from spoolpool.cli.output import say
from spoolpool.cli.worker_options import WorkerCommandOptions
from spoolpool.errors import BadRequest, LauncherError, SpoolpoolError
from spoolpool.format.names import is_worker_id, new_worker_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from spoolpool.protocol.spool import Spool
    from spoolpool.security.trust import Trust
    from spoolpool.worker.loop import Group, WorkerOptions

log = logging.getLogger(__name__)

_RANKS_STARTED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS", "FLUX_JOB_SIZE")


def ranks_started() -> int:
    """How many ranks the launcher that started this process says it started; 1 without a launcher."""
    sizes = [os.environ.get(name, "") for name in _RANKS_STARTED]
    return max([1, *(int(size) for size in sizes if size.isdigit())])


def open_spool(directory: str) -> Spool:
    """Open the spool; not imported before it is needed, so that ``--help`` is quick."""
    from spoolpool.protocol.spool import Spool

    return Spool(directory)


def work(wishes: WorkerCommandOptions) -> int:
    """Be a rank of a group; returns the exit code."""
    from spoolpool.launch.output_relay import redirect_output
    from spoolpool.protocol.registration import decode_owner
    from spoolpool.security.trust import Trust
    from spoolpool.system.gpus import local_rank, take_share
    from spoolpool.worker.loop import WorkerOptions

    launched = wishes.group_of is not None
    pipes, devices = [os.environ.pop(name, "") for name in (settings.ENV_OUTPUT, settings.ENV_DEVICES)]
    if launched and pipes:
        redirect_output(pipes, local_rank())
    if launched and devices:
        take_share(devices, wishes.gpus)
    size = wishes.group_of or ranks_started()
    if size == 1 and wishes.ranks not in (None, 1):
        raise BadRequest(
            f"This is one process, and --ranks asks for {wishes.ranks}. Start it with 'mpiexec -n {wishes.ranks}', or "
            "let it start its ranks: --launcher mpiexec."
        )
    meant_for_us = [os.environ.pop(name, "") for name in (settings.ENV_OWNER, settings.ENV_WORKER)]
    owner, worker = meant_for_us if launched else ("", "")
    terms = WorkerOptions(
        trust=Trust(wishes.trusted, wishes.trusted_groups),
        idle_timeout=wishes.idle_timeout,
        max_tasks=wishes.max_tasks,
        owner=decode_owner(owner),
        supervised=launched,
        max_time=wishes.max_time,
    )
    if size > 1:
        return _work_with_mpi(wishes, terms, size, worker)
    from spoolpool.calls.interruption import Interrupter
    from spoolpool.protocol.cancel import is_requested
    from spoolpool.protocol.objects import ObjectCache
    from spoolpool.protocol.progress import Progress
    from spoolpool.worker.capture import Capture
    from spoolpool.worker.publish import publish_for_group
    from spoolpool.worker.serial_group import SerialGroup

    spool = open_spool(wishes.directory)
    group = SerialGroup(
        terms.ends,
        spool.path,
        supervised=terms.supervised,
        interrupter=Interrupter(functools.partial(is_requested, spool), publish_for_group(spool), wishes.grace),
        capture=Capture(spool.path),
        progress=Progress(spool.path),
        objects=ObjectCache(spool, _trusted(spool, terms)),
    )
    code = _lead(spool, group, wishes, terms, worker)
    group.stop()
    return code


def _work_with_mpi(wishes: WorkerCommandOptions, terms: WorkerOptions, size: int, worker: str) -> int:
    from spoolpool.calls.interruption import Interrupter
    from spoolpool.protocol.cancel import is_requested
    from spoolpool.protocol.objects import ObjectCache
    from spoolpool.protocol.progress import Progress
    from spoolpool.protocol.spool import Spool
    from spoolpool.worker.capture import Capture
    from spoolpool.worker.mpi import World
    from spoolpool.worker.mpi_group import MPIGroup
    from spoolpool.worker.publish import publish_for_group

    world: World | None = None
    directory = os.path.abspath(wishes.directory)
    try:
        world = World(wishes.ranks, size)
        leads = world.comm.Get_rank() == 0
        keys = world.share(open_spool(wishes.directory).secrets() if leads else b"")
        spool = Spool(directory, keys=keys)
        publish = publish_for_group(spool)
        group = MPIGroup(
            world.comm,
            publish,
            supervised=terms.supervised and not world.split,
            grace=wishes.grace,
            ends=terms.ends,
            interrupter=Interrupter(functools.partial(is_requested, spool), publish if leads else None, wishes.grace),
            capture=Capture(directory, world.comm.Get_rank()),
            progress=Progress(directory),
            spool=directory,
            objects=ObjectCache(spool, _trusted(spool, terms)),
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
            from spoolpool.protocol.registration import report_start_error

            report_start_error(open_spool(wishes.directory), worker, str(error))
            return settings.EXIT_START
        return getattr(error, "exit_code", 1)
    return code


def _trusted(spool: Spool, terms: WorkerOptions) -> Trust:
    """Whose tasks and objects are read: in a dropbox everybody's."""
    from spoolpool.security.trust import Trust

    return Trust(everybody=True) if spool.config.mode == "dropbox" else terms.trust


def _follow(group: Any) -> None:
    """Ranks other than 0 leave the end of the group to rank 0, which gets the signal as well."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    group.serve()


def _lead(spool: Spool, group: Group, wishes: WorkerCommandOptions, terms: WorkerOptions, worker: str) -> int:
    """Be rank 0 of a group."""
    from dataclasses import replace

    from spoolpool.launch.allocation import find_allocation
    from spoolpool.protocol.workers import WorkerInfo
    from spoolpool.system.accounts import account_name
    from spoolpool.system.processes import ProcessId, hostname
    from spoolpool.system.stop_request import StopRequest
    from spoolpool.worker.loop import Worker

    terms = replace(terms, trust=_trusted(spool, terms))
    info = WorkerInfo(
        worker=worker if is_worker_id(worker) else new_worker_id(),
        process=ProcessId.of(os.getpid()),
        user=account_name(os.geteuid()),
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
    told = StopRequest()
    on_signals(told.set)  # a signal that comes while the worker announces itself must not leave its entry behind
    leader = Worker(spool, group, info, terms)
    # alone on a host, a task may take as long as it needs
    stop = functools.partial(leader.stop, None if find_allocation().system == "none" else wishes.drain)
    on_signals(stop)
    if told.is_set():
        stop()
    if not terms.supervised:
        say(f"Worker group {info.worker}: {group.size} rank(s) on {hostname()} serve {spool.path}")
    return leader.run()


def on_signals(stop: Callable[[], None], hurry: Callable[[], None] | None = None) -> None:
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
