"""Have as many batch jobs of workers as a spool needs.

::

    spool, batch system --> State --> decide() --> Decision, ... --> submit, cancel

What :func:`spoolpool.pool.scaling_policy.decide` needs to know of the past is dated in the spool, so that rounds of
one process and
rounds of many, as from cron, decide alike.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import AUTOSCALE_LOCK, Lane, parse_lane
from spoolpool.monitor.scan import waiting_tasks
from spoolpool.pool import batch_jobs, batch_system
from spoolpool.pool.batch_jobs import SpoolJob
from spoolpool.pool.batch_system import Job
from spoolpool.pool.scaling_policy import Decision, JobSeen, ScalingPolicy, State, decide
from spoolpool.protocol import sessions, workers
from spoolpool.protocol.heartbeat import Liveness
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.locks import Lock, try_lock
from spoolpool.system.processes import ProcessId

log = logging.getLogger(__name__)


class Autoscaler:
    """Looks at a spool and its batch jobs, decides, and does it.

    With a ``session``, the jobs are those of its executor, and only what that submitted counts. ``tags`` and ``trust``
    are what the worker options of the job say of them.
    """

    def __init__(
        self,
        spool: Spool,
        job: Job,
        terms: ScalingPolicy,
        *,
        idle_timeout: float,
        session: str = "",
        tags: tuple[str, ...] = (),
        trust: Trust | None = None,
    ) -> None:
        self._spool = spool
        self._job = job
        self._terms = terms
        self._idle_timeout = idle_timeout
        self._session = session
        self._tags = tags
        self._trust = trust or Trust()
        self._liveness = Liveness(spool)
        self._left: dict[str, str] = {}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one that scales this spool. Raises :class:`SpoolpoolError` where somebody else does.

        Where the filesystem has no locks nobody can tell, and the log says so.
        """
        path = f"{self._spool.layout.jobs}/{AUTOSCALE_LOCK}"
        with files.translate_errors(f"scale the spool {self._spool.path}"):
            self._spool.make_directories(self._spool.layout.jobs)
            with contextlib.suppress(FileExistsError):
                self._spool.show(path, [])
            fd = self._spool.open_for_lock(path)
        try:
            found = try_lock(fd)
            if found is Lock.BUSY:
                raise SpoolpoolError(
                    f"Somebody else scales {self._spool.path}: the lock of {path} is held. One is enough; 'lsof' on "
                    "its host shows which process it is."
                )
            if found is Lock.NONE:
                log.warning("%s has no locks: take care that only one process scales it.", self._spool.path)
            yield
        finally:
            files.close(fd)

    def round(self, only: set[str] | None = None) -> list[str]:
        """Look once, decide, and do it; returns what was done and why, in words. ``only`` these lanes count.

        What is left undone is told once for the same reason. Raises :class:`LauncherError` where the batch system
        does not answer or refuses a job.
        """
        seen = batch_jobs.look(self._spool)
        said = list(self._orphans(seen))
        mine = {job.record.name: job for job in seen if job.record.lane and job.record.session == self._session}
        journal = Journal(self._spool, self._session or "autoscale")
        left = {}
        try:
            for decision in decide(self._state(list(mine.values()), only), self._terms):
                if decision.do == "leave":
                    left[decision.lane] = decision.why.partition(";")[2]
                    if self._left.get(decision.lane) != left[decision.lane]:
                        said.append(f"Nothing is submitted for {decision.lane}: {decision.why}.")
                    continue
                said.append(self._do(decision, mine))
                journal.write("autoscaled", text=said[-1])
        finally:
            self._left = left
            journal.close()
        return said

    def _do(self, decision: Decision, mine: Mapping[str, SpoolJob]) -> str:
        if decision.do == "cancel":
            job = mine[decision.job]
            assert job.listed is not None
            batch_system.cancel(job.record.system, [job.listed])
            batch_jobs.forget(self._spool, decision.job)  # it did not end by itself
            return f"Job {job.listed.id} for {decision.lane} was cancelled: {decision.why}."
        lane = parse_lane(decision.lane)
        assert lane is not None
        _, number = batch_jobs.submit(
            self._spool,
            replace(self._job, arguments=(*self._job.arguments, *self._options(lane, decision.stays))),
            lane=decision.lane,
            session=self._session,
        )
        return f"Job {number} was submitted for {decision.lane}: {decision.why}."

    def _options(self, lane: Lane, stays: bool) -> list[str]:
        options = ["--ranks", str(lane.ranks), "--threads", str(lane.threads), "--gpus", str(lane.gpus)]
        options += ["--queue", lane.queue]
        return options if stays else [*options, "--idle-timeout", f"{self._idle_timeout:g}"]

    def _orphans(self, seen: list[SpoolJob]) -> Iterator[str]:
        """Cancel jobs that wait for an executor which has died."""
        for job in seen:
            session = job.record.session
            waits = job.listed is not None and job.state == "pending"
            if waits and session not in ("", self._session) and sessions.is_dead(self._spool, session):
                assert job.listed is not None
                batch_system.cancel(job.record.system, [job.listed])
                yield f"Job {job.listed.id} was cancelled: its executor has died."

    def _state(self, mine: list[SpoolJob], only: set[str] | None) -> State:
        waiting = {lane: n for lane, n in waiting_tasks(self._spool).items() if only is None or lane in only}
        names = {job.record.name for job in mine}
        lanes = {*waiting, self._terms.home}
        sources: dict[str, set[str]] = {lane: set() for lane in lanes}
        for info in workers.read_workers(self._spool):
            if info.batch not in names and self._liveness.alive(info):
                for lane in lanes:
                    wanted = parse_lane(lane)
                    if wanted is not None and info.why_not(wanted) is None:
                        sources[lane].add(info.batch or info.job or info.process.host)
        return State(
            waiting=waiting,
            jobs=tuple(
                JobSeen(name=job.record.name, lane=job.record.lane, state=job.state, age=job.age) for job in mine
            ),
            elsewhere={lane: len(found) for lane, found in sources.items()},
            quiet={job.record.lane: self._quiet(job.record.lane) for job in mine if job.state == "pending"},
            barred={lane: reason for lane in lanes if (reason := self._would_not_serve(lane))},
        )

    def _would_not_serve(self, lane: str) -> str | None:
        """Why workers that are started here, in the shape of a lane, would not run its tasks."""
        wanted = parse_lane(lane)
        if wanted is None:
            return "it is no lane"
        info = WorkerInfo(
            worker="",
            process=ProcessId.of(os.getpid()),
            user=account_name(os.geteuid()),
            ranks=wanted.ranks,
            threads=wanted.threads,
            gpus=wanted.gpus,
            queues=(wanted.queue,),
            tags=self._tags,
            trust_users=tuple(self._trust.uids),
            trust_groups=self._trust.groups,
            trust_all=self._trust.everybody,
        )
        return info.why_not(wanted)

    def _quiet(self, lane: str) -> float:
        """Seconds since a task came into a lane or left it."""
        path = self._spool.layout.lane(lane)
        stamps = [files.mtime_ns(path), *(files.mtime_ns(f"{path}/{bucket}") for bucket in files.list_names(path))]
        return self._spool.server_time() - max((stamp or 0) for stamp in stamps) / 1e9
