"""Batch jobs of worker groups that belong to one executor, for use from a login node."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace

from spoolpool.batch_backends import BatchBackend
from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import Lane
from spoolpool.pool import batch_jobs
from spoolpool.pool.autoscaler import Autoscaler
from spoolpool.pool.batch_jobs import SpoolJob
from spoolpool.pool.batch_system import Job
from spoolpool.pool.job_ends import JobEnd
from spoolpool.pool.scaling_policy import ScalingPolicy
from spoolpool.protocol import workers
from spoolpool.protocol.heartbeat import Heartbeat, heartbeat_interval
from spoolpool.protocol.spool import Spool
from spoolpool.resources import per_core
from spoolpool.security import known_spools
from spoolpool.system.backoff import Backoff
from spoolpool.system.packages import is_requirement
from spoolpool.system.walltime import describe_walltime

log = logging.getLogger(__name__)

_FAILED_JOBS = 3  # failed jobs in a row, or refused submissions, after which no more are submitted
_LOOKS_WITHOUT_GROUP = 10  # in a row that found jobs which ended without a group, for whichever reason
_COOLDOWN = 5.0  # seconds between two submissions for a lane
_RELEASE_SECONDS = 5.0  # between two looks for delayed tasks that may start, at most
_STOP_SECONDS = 30.0  # for running jobs to end in order


class BatchPool:
    """Batch jobs of one executor; they end with it, also if its process dies.

    One thread at a time may call :meth:`step`, which does nothing before :meth:`start`.
    """

    def __init__(
        self,
        spool: Spool,
        session: str,
        backend: BatchBackend,
        *,
        home: Lane,
        groups: int | None,
        memory: int,
    ) -> None:
        """``session``: entry of the executor's session, which identifies this process as the owner of the jobs.

        ``groups``: worker groups in each job, as many as fit if None; ``memory``: bytes per rank, or 0.
        """
        self._spool = spool
        self._session = session
        self.broken = ""
        """Reason for which no more jobs are submitted, or ""."""
        tags = tuple(tag for tag in home.tags if not is_requirement(tag))  # a worker finds its packages by itself
        arguments = [] if groups is None else ["--groups", str(groups)]
        if memory:
            arguments.append(f"--memory={memory}")
            if backend.system == "slurm":  # Flux has no memory option; a later directive, the user's, wins
                directive = f"--mem-per-cpu={per_core(memory, home.threads)}"
                backend = replace(backend, directives=(directive, *backend.directives))
        arguments += [f"--tag={tag}" for tag in tags]
        known = known_spools.encode(spool.identity) if spool.temporary else ""
        self.job = Job(backend=backend, spool=spool.path, arguments=tuple(arguments), known=known)
        """Description of each job."""
        policy = ScalingPolicy(
            min_jobs=backend.min_jobs,
            max_jobs=backend.job_limit,
            home=home.name,
            cooldown=_COOLDOWN,
            max_failures=0,  # counted here, so that the futures get an error
        )
        self._scaler = Autoscaler(spool, self.job, policy, session=session, tags=tags)
        self._backoff = Backoff(1.0, 60.0)
        self._due = math.inf
        self._release_due = 0.0
        self._lanes: set[str] = set()
        self._started: set[str] = set()  # jobs of which a group has registered
        self._checked: set[str] = set()  # jobs that ended, and were counted as failures or not
        self._failures = 0
        self._looks_without_group = 0
        self._refusals = 0
        self._heartbeat: Heartbeat | None = None

    def start(self) -> None:
        """Submit the first jobs; the session must exist. Raises :class:`LauncherError` if they are refused."""
        then = batch_jobs.orphan_command(self._spool, self._session)
        # for the groups on other hosts, which run for this session alone
        path = self._spool.layout.session(self._session)
        self._heartbeat = Heartbeat(path, heartbeat_interval(self._spool), then)
        log.info("walltime of each batch job: %s", describe_walltime(self.job.backend.walltime))
        self._scale(set())
        self._due = time.monotonic() + self._backoff.next()

    def step(self, lanes: set[str]) -> None:
        """Check the jobs if it is time, and submit or cancel some; ``lanes`` are those of the unfinished tasks."""
        if lanes != self._lanes:
            self._lanes = lanes
            self._due = min(self._due, time.monotonic() + self._backoff.first)
            self._backoff.reset()
        if self.broken or self._heartbeat is None:
            return
        if lanes and time.monotonic() >= self._release_due:
            self._release_due = time.monotonic() + min(self._spool.config.lease / 4, _RELEASE_SECONDS)
            for message in self._scaler.release_tasks():
                log.info("%s", message)
                self._due = 0.0
        if time.monotonic() < self._due:
            return
        if self._heartbeat is not None:
            self._heartbeat.keep()
        try:
            self._check_ended_jobs()
            if not self.broken:
                self._scale(lanes)
            self._refusals = 0
        except (OSError, SpoolpoolError) as error:
            self._refusals += 1
            log.warning("%s", error)
            if self._refusals >= _FAILED_JOBS and not self._started:
                self.broken = str(error)
        self._due = time.monotonic() + self._backoff.next()

    def _scale(self, lanes: set[str]) -> None:
        messages = self._scaler.round(lanes)
        short = self._scaler.shortages.values()
        for message in messages:
            log.log(logging.WARNING if message in short else logging.INFO, "%s", message)
        if messages:
            self._backoff.reset()

    def _check_ended_jobs(self) -> None:
        """Count jobs that failed before one of their groups registered; give up after several in a row.

        Jobs that were cancelled, preempted or lost their node are no failures, but jobs without a group are not
        submitted for ever: the looks that find them are counted, since one command may cancel many jobs.
        """
        named = {info.batch for info in workers.read_workers(self._spool)}
        jobs = batch_jobs.find_ends(self._spool, batch_jobs.find_jobs(self._spool))
        started = named.intersection(job.record.name for job in jobs)
        if started - self._started:
            self._started |= started
            self._failures = self._looks_without_group = 0
        own = [job for job in jobs if job.record.session == self._session]
        found = ""
        for job in own:
            name = job.record.name
            if job.state != "over" or job.end is None or name in self._checked or self.broken:
                continue
            self._checked.add(name)
            if job.end.kind == "done":  # with a group that registered and left between two looks, perhaps
                self._failures = self._looks_without_group = 0
            if name in self._started or job.end.kind == "done":
                continue
            found = _describe(job.end)
            log.warning("%s", found)
            if job.end.kind == "failed":
                self._failures += 1
                if self._failures >= _FAILED_JOBS:
                    self.broken = f"{self._failures} batch jobs in a row ended like this: {found}"
        if found and not any(job.state == "running" and job.record.name in self._started for job in own):
            self._looks_without_group += 1
            if self._looks_without_group >= _LOOKS_WITHOUT_GROUP and not self.broken:
                self.broken = f"Batch jobs end again and again before one of their worker groups has started: {found}"

    def stop(self) -> None:
        """Cancel the waiting jobs, and give the running ones some time to end in order."""
        if self._heartbeat is None:
            return

        def is_own(job: SpoolJob) -> bool:
            return job.record.session == self._session

        try:
            for message in batch_jobs.end_jobs(self._spool, is_own, _STOP_SECONDS):
                log.info("%s", message)
        except (OSError, SpoolpoolError) as error:  # the jobs end by themselves when the session's heartbeat stops
            log.warning("Cannot end the batch jobs of this executor: %s", error)
        self._heartbeat.close()


def _describe(end: JobEnd) -> str:
    reason = f": {end.why.rstrip('.')}" if end.why else ""
    output = "; its output ends with: " + "\n".join(end.output) if end.output else ""
    kind = "failed" if end.kind == "failed" else f"was {end.kind}"
    return f"Batch job {end.name} {kind}{reason}{output}."
