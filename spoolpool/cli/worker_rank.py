"""``spool-worker`` as one rank of a worker group."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from spoolpool import settings
from spoolpool.cli.output import echo_stderr
from spoolpool.cli.worker_options import WorkerCommandOptions
from spoolpool.errors import BadRequest
from spoolpool.system.garbage import no_collection

if TYPE_CHECKING:
    from spoolpool.worker.rank_guard import GuardOptions, RankGuard

_RANKS_STARTED = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MPI_LOCALNRANKS",
    "SLURM_STEP_NUM_TASKS",
    "FLUX_JOB_SIZE",
    "JSM_NAMESPACE_SIZE",
)

_RANK = (
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "PALS_RANKID",
    "JSM_NAMESPACE_RANK",
    "SLURM_PROCID",
    "FLUX_TASK_RANK",
)

_FLUX_NOTICE = 5.0  # default kill-timeout of Flux
_RELEASE_SECONDS = 2.0  # for the release of a task before the batch system kills the processes


def ranks_started() -> int:
    """Return the number of ranks that the launcher of this process has started; 1 without a launcher."""
    sizes = [os.environ.get(name, "") for name in _RANKS_STARTED]
    return max([1, *(int(size) for size in sizes if size.isdigit())])


def rank_started() -> int:
    """Return the number of this process among the ranks that its launcher has started; 0 without a launcher."""
    ranks = [os.environ.get(name, "") for name in _RANK]
    return next((int(text) for text in ranks if text.isdigit()), 0)


def rest_of_walltime(options: WorkerCommandOptions, world_size: int) -> float | None:
    """Return the seconds that are left of the walltime of a job, for the first rank of a group without a supervisor.

    None for other ranks, without an end, and where it cannot be determined.
    """
    from spoolpool.launch.allocation import seconds_left

    is_first = rank_started() % (options.ranks or world_size) == 0
    return seconds_left() if options.group_of is None and is_first else None


def watch_rank(directory: str, worker: str, options: GuardOptions) -> RankGuard:
    """Continue in a child process, which its parent ends in time; return the way to that guard.

    The end of the child is recorded in the entry of the ``worker`` of a supervisor, unless it was to end.
    """
    from spoolpool.protocol import lost_attempts, worker_registration
    from spoolpool.protocol.recovery import Recovery
    from spoolpool.protocol.spool import Spool
    from spoolpool.system.parent import continue_in_child
    from spoolpool.worker.rank_guard import RankGuard

    rank = rank_started()

    guard = RankGuard(options)

    def report(status: int) -> None:
        with contextlib.suppress(Exception):  # whatever hinders it, the rank has ended, and so must this process
            spool = Spool(directory)
            if ended := guard.ended_worker(status):
                reason, over = guard.why_released
                recovery = Recovery(spool)
                recovery.release(recovery.take_over(ended, reason, over=over))
            if worker and not worker_registration.has_end(spool, worker):
                lost_attempts.record_exit(spool, worker, status, rank=rank)

    continue_in_child(report, guard)
    return guard


def _drain(options: WorkerCommandOptions, system: str) -> float | None:
    """Return the seconds for the running task after a request to stop; None if it may take as long as it needs."""
    if system == "none" and options.max_time is None:
        return None
    notice = _FLUX_NOTICE if options.notice is None and system == "flux" else options.notice
    return options.drain if notice is None else max(0.0, min(options.drain, notice - _RELEASE_SECONDS))


class _Limits(NamedTuple):
    """Limits of a worker, which last longer than its processes."""

    max_tasks: int | None
    ends: float | None
    """End by the monotonic clock, which starts again with the host alone."""

    @classmethod
    def of(cls, options: WorkerCommandOptions, world_size: int) -> _Limits:
        """Return the limits of this worker: the rest of them, if it has started itself again."""
        rest = os.environ.pop(settings.ENV_LIMITS, "").split() if options.group_of is None else []
        if len(rest) == len(cls._fields):
            return cls(*(None if text == "-" else kind(text) for kind, text in zip((int, float), rest, strict=True)))
        now = time.monotonic()
        seconds = rest_of_walltime(options, world_size) if options.max_time is None else options.max_time
        return cls(options.max_tasks, None if seconds is None else now + seconds)

    def record(self, done: int) -> None:
        """Record the rest of the limits, after a number of tasks, in the environment of this process."""
        tasks = None if self.max_tasks is None else self.max_tasks - done
        os.environ[settings.ENV_LIMITS] = " ".join("-" if each is None else str(each) for each in (tasks, self.ends))

    def seconds_left(self) -> float | None:
        """Return the seconds until the end; None without one."""
        return None if self.ends is None else max(0.0, self.ends - time.monotonic())


def _start_again(limits: _Limits, done: int, begun: float, renewals: int) -> None:
    """Execute the command of this process again, after a number of tasks, begun at a time of the monotonic clock.

    Where that fails, and after a request to stop, this returns, and the process ends.
    """
    from spoolpool.system.stop_request import block_stop_signals, was_requested

    block_stop_signals()  # a signal from now on waits for the handlers of the new image
    if was_requested():  # after the last look of the worker, while it ended what tasks had left
        return
    limits.record(done)
    is_soon = time.monotonic() - begun < settings.RENEWAL_SECONDS
    os.environ[settings.ENV_RENEWALS] = str(renewals + 1 if is_soon else 1)
    with contextlib.suppress(OSError):
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606  the command of this process


def run_rank(options: WorkerCommandOptions) -> int:
    """Run one rank of a worker group; return the exit code. Imports are late, so that ``--help`` is quick."""
    with no_collection():
        from spoolpool.calls import run
        from spoolpool.launch.allocation import find_allocation, in_step
        from spoolpool.protocol.worker_registration import decode_owner
        from spoolpool.security import known_spools
        from spoolpool.security.trust import Trust
        from spoolpool.system.gpus import local_rank, take_share
        from spoolpool.worker import main
        from spoolpool.worker.loop import WorkerOptions
        from spoolpool.worker.rank_guard import GuardOptions

    # always removed: a task may start workers of its own
    names = (
        settings.ENV_OUTPUT,
        settings.ENV_DEVICES,
        settings.ENV_OWNER,
        settings.ENV_WORKER,
        settings.ENV_KNOWN,
        settings.ENV_OWNER_ENTRY,
    )
    run.worker_number = int(os.environ.pop(settings.ENV_NUMBER, "") or 0)
    variables = [os.environ.pop(name, "") for name in names]
    pipes, devices, owner, worker, known, owner_entry = variables if options.group_of is not None else [""] * len(names)
    renewals = int(os.environ.pop(settings.ENV_RENEWALS, "") or 0)
    known_spools.inherit(known)
    if pipes:
        from spoolpool.launch.output_relay import redirect_output

        redirect_output(pipes, local_rank())
    if devices:
        take_share(devices, options.gpus)
    world_size = options.group_of or ranks_started()
    drain = _drain(options, find_allocation().system)
    limits = _Limits.of(options, world_size)
    begun = time.monotonic()
    supervised = options.group_of is not None

    def start_again(done: int) -> None:
        _start_again(limits, done, begun, renewals)

    guard = None
    if worker or world_size > 1 or in_step():
        conditions = GuardOptions(
            owner=decode_owner(owner),
            grace=options.grace,
            drain=drain,
            max_time=limits.seconds_left(),
            start_again=None if supervised or world_size > 1 else start_again,
        )
        guard = watch_rank(options.directory, worker, conditions)
    if world_size == 1 and options.ranks not in (None, 1):
        raise BadRequest(
            f"This is one process, and --ranks asks for {options.ranks}. Start it with 'mpiexec -n {options.ranks}', "
            "or let it start its ranks: --launcher mpiexec."
        )
    config = main.RankConfig(
        directory=options.directory,
        worker=worker,
        owner_entry=owner_entry,
        world_size=world_size,
        ranks=options.ranks,
        threads=options.threads,
        gpus=options.gpus,
        queues=options.queues,
        tags=options.tags,
        grace=options.grace,
        drain=drain,
        guard=guard,
        options=WorkerOptions(
            trust=Trust(options.trusted, options.trusted_groups),
            idle_timeout=options.idle_timeout,
            max_tasks=limits.max_tasks,
            owner=decode_owner(owner),
            supervised=supervised,
            replaced=supervised or world_size == 1,
            renewals=renewals,
            max_time=limits.seconds_left(),
        ),
        start_again=None if supervised or world_size > 1 else guard.request_start if guard else start_again,
    )
    return main.run_rank(config, echo_stderr=echo_stderr)
