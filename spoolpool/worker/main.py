"""Composition of a worker: builds one rank of a group, and the loop on rank 0."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from spoolpool import settings
from spoolpool.calls.definitions import become_worker
from spoolpool.calls.interruption import Interrupter, Publish
from spoolpool.errors import LauncherError, SpoolpoolError
from spoolpool.format.names import is_worker_id, new_worker_id
from spoolpool.protocol import lost_attempts
from spoolpool.protocol.cancel import is_requested
from spoolpool.protocol.object_cache import ObjectCache
from spoolpool.protocol.progress import Progress
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import report_start_error
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.security import known_spools
from spoolpool.security.trust import Trust
from spoolpool.system import open_directory
from spoolpool.system.accounts import account_name
from spoolpool.system.job_ids import job_id
from spoolpool.system.processes import ProcessId, hostname
from spoolpool.system.stop_request import StopRequest, ignore_stop_signals, stop_on_signals, was_requested
from spoolpool.worker.capture import Capture, enable_stacks
from spoolpool.worker.group import Group, RankEnvironment
from spoolpool.worker.loop import Worker, WorkerOptions
from spoolpool.worker.publish import EmergencyPublisher
from spoolpool.worker.rank_guard import Membership, RankGuard
from spoolpool.worker.serial_group import SerialGroup

if TYPE_CHECKING:
    from spoolpool.worker.mpi_group import MPIGroup
    from spoolpool.worker.mpi_world import World

log = logging.getLogger(__name__)

_END_SECONDS = 2.0  # for threads and processes that tasks have left


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Configuration of a worker, the same on each rank."""

    directory: str
    """Directory of the spool."""
    worker: str = ""
    """Id that the supervisor has chosen for the worker; empty without a supervisor."""
    owner_entry: str = ""
    """Id of the entry with the heartbeat of the supervisor or executor; empty if its launcher reaches this host alone.
    """
    world_size: int
    """Number of ranks that the launcher has started."""
    ranks: int | None = None
    """Ranks of each group; None for all that were started."""
    threads: int = 1
    """Threads of each rank."""
    gpus: int = 0
    """GPUs of each rank."""
    queues: Mapping[str, int]
    """Weights of the queues by their names."""
    tags: tuple[str, ...] = ()
    """Further properties that tasks may ask for."""
    grace: float
    """Seconds for the other ranks to report after one has failed."""
    drain: float | None
    """Seconds for the running task after a request to stop; None if it may take as long as it needs."""
    guard: RankGuard | None = None
    """Guard of this rank; None for a rank without a launcher."""
    options: WorkerOptions
    start_again: Callable[[int], None] | None = None
    """Function that starts a worker of one rank again in this process, after a number of tasks."""


def run_rank(config: RankConfig, echo_stderr: Callable[[str], None]) -> int:
    """Run one rank of a worker until its end; return the exit code. ``echo_stderr`` prints a message to a person."""
    enable_stacks()
    _keep_log_apart()
    become_worker()
    if config.world_size > 1:
        return _run_mpi_rank(config, echo_stderr)
    spool = Spool(config.directory, trust=config.options.trust)
    publish = EmergencyPublisher(spool)
    environment = _environment(config, spool, 0, publish)
    group = SerialGroup(environment, supervised=config.options.supervised)
    config = replace(config, worker=config.worker if is_worker_id(config.worker) else new_worker_id())
    _join_group(config, spool, 0)
    code, done = _run_leader(spool, group, config, publish, echo_stderr)
    group.stop()
    left = group.end_leftovers(_END_SECONDS)
    if code == settings.EXIT_RENEW and config.start_again is not None:
        config.start_again(done)
        # at once: in the shutdown of the interpreter, a forwarded signal would end it with an error
        _exit_at_once(0 if was_requested() else code)
    RankGuard.leave()
    if left:
        _exit_at_once(code)
    return code


def _exit_at_once(code: int) -> NoReturn:
    """End the process without a wait for threads and processes that tasks have left."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _keep_log_apart() -> None:
    """Write the log through a stream of its own: a task may close or replace ``sys.stderr``."""
    stream = open(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    for handler in logging.getLogger("spoolpool").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)


def _run_mpi_rank(config: RankConfig, echo_stderr: Callable[[str], None]) -> int:
    from spoolpool.worker.mpi_group import MPIGroup
    from spoolpool.worker.mpi_world import World

    world: World | None = None
    try:
        world = World(config.ranks, config.world_size)
        rank = world.comm.Get_rank()
        leader = Spool(config.directory, trust=config.options.trust) if rank == 0 else None
        known_spools.inherit(
            world.share(b"" if leader is None else known_spools.encode(leader.identity).encode()).decode()
        )
        keys = world.share(b"" if leader is None else leader.secrets())
        chosen = config.worker if is_worker_id(config.worker) and not world.split else new_worker_id()
        config = replace(config, worker=world.share(chosen.encode()).decode())
        spool = Spool(config.directory, keys=keys)
        publish = EmergencyPublisher(spool)
        group = MPIGroup(
            world.comm,
            publish,
            _environment(config, spool, rank, None if rank else publish),
            supervised=config.options.supervised and not world.split,
            grace=config.grace,
        )
        code = 0
        _join_group(config, spool, rank)
        if rank == 0:
            code, _ = _run_leader(Spool(config.directory), group, config, publish, echo_stderr)
            group.stop()
        else:
            _serve(group)
        left = group.end_leftovers(_END_SECONDS)
        RankGuard.leave()
        world.leave(code)
        if left:
            _exit_at_once(code)
    except BaseException as error:
        if isinstance(error, SpoolpoolError):
            echo_stderr(f"spool-worker: {error}")
        else:
            log.exception("A rank of the group failed")
        if world is not None:  # otherwise the other ranks would wait for this one for ever
            world.abort(getattr(error, "exit_code", 1))
        elif config.worker and isinstance(error, LauncherError):
            report_start_error(Spool(config.directory), config.worker, str(error))
            return settings.EXIT_START
        return getattr(error, "exit_code", 1)
    return code


def _environment(config: RankConfig, spool: Spool, rank: int, publish: Publish | None) -> RankEnvironment:
    return RankEnvironment(
        spool=spool.path,
        ends=config.options.ends,
        guard=config.guard,
        interrupter=Interrupter(functools.partial(is_requested, spool), publish, config.grace),
        capture=Capture(spool.path, rank),
        progress=Progress(spool.path),
        objects=ObjectCache(spool, _trust(spool, config)),
        lost_attempts=lambda task: [*lost_attempts.kept(spool, task).values()],
    )


def _join_group(config: RankConfig, spool: Spool, rank: int) -> None:
    """Tell the guard of this rank which group it belongs to."""
    if config.guard is not None:
        owner_entry = spool.layout.worker(config.owner_entry) if is_worker_id(config.owner_entry) else ""
        config.guard.join(
            Membership(
                rank=rank,
                worker=config.worker,
                lease=spool.config.lease,
                entry=open_directory.child_path(spool.layout.worker(config.worker)),
                claimed=open_directory.child_path(spool.layout.claimed),
                owner_entry=owner_entry and open_directory.child_path(owner_entry),
            )
        )


def _trust(spool: Spool, config: RankConfig) -> Trust:
    """Return the accounts whose tasks and objects are read: in a dropbox all."""
    return Trust(everybody=True) if spool.config.mode == "dropbox" else config.options.trust


def _serve(group: MPIGroup) -> None:
    """Run a rank other than 0. It leaves the end of the group to rank 0, which gets the signal as well."""
    ignore_stop_signals()
    group.serve()


def _run_leader(
    spool: Spool,
    group: Group,
    config: RankConfig,
    publish: EmergencyPublisher,
    echo_stderr: Callable[[str], None],
) -> tuple[int, int]:
    """Run the loop of rank 0; return the exit code, and the number of tasks that have run."""
    trust = _trust(spool, config)
    info = WorkerInfo(
        worker=config.worker,
        process=ProcessId.of(os.getpid()),
        user=account_name(os.geteuid()),
        ranks=group.size,
        threads=config.threads,
        gpus=config.gpus,
        queues=tuple(config.queues),
        weights={queue: weight for queue, weight in config.queues.items() if weight != 1},
        tags=config.tags,
        job=job_id(),
        supervisor=config.options.owner,
        batch=os.environ.get(settings.ENV_JOB, ""),
        started=time.time(),
        time_left=config.options.max_time,
        trust_users=tuple(sorted(trust.uids)),
        trust_groups=trust.groups,
        trust_all=trust.everybody,
    )
    requested = StopRequest()
    stop_on_signals(requested.set)  # a signal during the registration must not leave the worker's entry behind
    worker = Worker(spool, group, info, replace(config.options, trust=trust))
    publish.journal = worker.task_journal
    stop = functools.partial(worker.stop, config.drain)
    stop_on_signals(stop, hurry=functools.partial(worker.stop, 0.0))
    if config.options.max_time is not None:
        limit = threading.Timer(config.options.max_time, stop)
        limit.daemon = True
        limit.start()
    if requested.is_set():
        stop()
    if not config.options.supervised:
        echo_stderr(f"Worker group {info.worker}: {group.size} rank(s) on {hostname()} serve {spool.path}")
    return worker.run(), worker.done
