"""Worker groups in batch jobs that live and die with an executor: the way to use it from a login node."""

from __future__ import annotations

import contextlib
import logging
import math
import time

from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import Lane
from spoolpool.options import BatchBackend
from spoolpool.pool import batch_jobs, batch_system
from spoolpool.pool.autoscaler import Autoscaler
from spoolpool.pool.batch_jobs import SpoolJob
from spoolpool.pool.scaling_policy import ScalingPolicy
from spoolpool.protocol import workers
from spoolpool.protocol.heartbeat import SessionHeartbeat
from spoolpool.protocol.spool import Spool
from spoolpool.resources import per_core
from spoolpool.system import files
from spoolpool.system.backoff import Backoff
from spoolpool.system.packages import is_requirement

log = logging.getLogger(__name__)

_IDLE_TIMEOUT = 300.0  # seconds; of jobs beyond the ones that are always wanted
_FAILED_JOBS = 3
_COOLDOWN = 5.0
_STOP_SECONDS = 30.0
_TAIL = 2000  # bytes of what a job printed last


class BatchPool:
    """The batch jobs of one executor; they end when it does, or has died.

    One thread at a time may call :meth:`step`; it does nothing before :meth:`start` was called.
    """

    def __init__(
        self,
        spool: Spool,
        session: str,
        options: BatchBackend,
        *,
        home: Lane,
        groups: int | None,
        memory: int,
    ) -> None:
        """``groups``: worker groups in each job, as many as fit if None; ``memory``: bytes per rank, or 0."""
        self._spool = spool
        self._session = session
        self.broken = ""
        """Why no more jobs are submitted."""
        tags = tuple(tag for tag in home.tags if not is_requirement(tag))  # packages are there, or are not
        arguments = [] if groups is None else ["--groups", str(groups)]
        directives = list(options.directives)
        if memory and options.system == "slurm":  # Flux has no memory option; a later directive, the user's, wins
            directives.insert(0, f"--mem-per-cpu={per_core(memory, home.threads)}")
        if memory:
            arguments.append(f"--memory={memory}")
        job = batch_system.Job(
            system=options.system,
            spool=spool.path,
            nodes=options.nodes,
            time=options.time,
            directives=tuple(directives),
            arguments=(*arguments, *(f"--tag={tag}" for tag in tags)),
        )
        terms = ScalingPolicy(min_jobs=options.min_jobs, max_jobs=options.job_limit, home=home.name, cooldown=_COOLDOWN)
        self.job = job
        """What its batch jobs are like."""
        self._scaler = Autoscaler(spool, job, terms, idle_timeout=_IDLE_TIMEOUT, session=session, tags=tags)
        self._backoff = Backoff(1.0, 60.0)
        self._due = math.inf
        self._lanes: set[str] = set()
        self._came: set[str] = set()  # jobs of which a group was seen
        self._judged: set[str] = set()
        self._failures = 0
        self._refusals = 0
        self._beat: SessionHeartbeat | None = None

    def start(self) -> None:
        """Submit the first jobs, once the session is there. Raises :class:`LauncherError` where they are refused."""
        self._beat = SessionHeartbeat(self._spool, self._session, batch_jobs.when_killed(self._spool, self._session))
        self._say(self._scaler.round(set()))
        self._due = time.monotonic() + self._backoff.next()

    def step(self, lanes: set[str]) -> None:
        """Look after the jobs, now and then; ``lanes`` are those of the tasks that nobody has done yet."""
        if lanes != self._lanes:
            self._lanes = lanes
            self._due = min(self._due, time.monotonic() + self._backoff.first)
            self._backoff.reset()
        if self.broken or time.monotonic() < self._due:
            return
        try:
            self._judge()
            if not self.broken:
                self._say(self._scaler.round(lanes))
            self._refusals = 0
        except (OSError, SpoolpoolError) as error:
            self._refusals += 1
            log.warning("%s", error)
            if self._refusals >= _FAILED_JOBS and not self._came:
                self.broken = str(error)
        self._due = time.monotonic() + self._backoff.next()

    def _say(self, said: list[str]) -> None:
        for line in said:
            log.info("%s", line)
        if said:
            self._backoff.reset()

    def _judge(self) -> None:
        """Find out about jobs that ended before a group of theirs was there."""
        came = {info.batch for info in workers.read_workers(self._spool)}
        if came - self._came:
            self._came |= came
            self._failures = 0
        for job in batch_jobs.look(self._spool):
            name = job.record.name
            if job.record.session != self._session or job.state != "over" or name in self._judged or self.broken:
                continue
            self._judged.add(name)
            if name not in self._came:
                self._failures += 1
                log.warning("%s", self._explain(job))
                if self._failures >= _FAILED_JOBS:
                    self.broken = f"{self._failures} batch jobs in a row ended like this: {self._explain(job)}"

    def _explain(self, job: SpoolJob) -> str:
        path = batch_jobs.output_of(self._spool, job.record.name)
        said = ""
        with contextlib.suppress(OSError, ValueError):
            said = files.read_small(path)[-_TAIL:].decode(errors="replace").strip()
        reason = f"it says: {said}"
        if not said:
            reason = (
                f"it left no word in {path}. Do the nodes see {self._spool.path}? It must lie on a filesystem that "
                "they share"
            )
        return f"Batch job {job.record.name} ended before one of its worker groups had begun; {reason}."

    def stop(self) -> None:
        """End the jobs: those that wait are cancelled, those that run get some time to end in order."""
        if self._beat is None:
            return
        try:
            for line in batch_jobs.stop(self._spool, lambda job: job.record.session == self._session, _STOP_SECONDS):
                log.info("%s", line)
        except (OSError, SpoolpoolError) as error:  # they will miss this executor's sign of life
            log.warning("The batch jobs of this executor were not ended: %s", error)
        self._beat.close()
