"""Autoscaler: keeps as many batch jobs of workers as the tasks of a spool need.

::

    spool, batch system --> ScalingState --> decide() --> Decision, ... --> submit, cancel

All past events that :func:`spoolpool.pool.scaling_policy.decide` needs are dated in the spool, so that rounds of one
process and rounds of many, as from cron, decide alike.

Demand is counted in ``ready/``. Where no worker lives, the autoscaler itself moves tasks there that a worker would have
released: delayed tasks that may start, and claims of dead workers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import AUTOSCALE_LOCK, is_worker_id, parse_lane, parse_task_file, session_of_entry
from spoolpool.launch.launcher import end_margin
from spoolpool.monitor.scan import waiting_needs
from spoolpool.pool import batch_jobs, job_ends
from spoolpool.pool.batch_jobs import SpoolJob
from spoolpool.pool.batch_system import Job
from spoolpool.pool.job_ends import JobEnd
from spoolpool.pool.scaling_policy import Decision, ScalingPolicy, ScalingState, decide
from spoolpool.pool.supervisor import task_seconds
from spoolpool.protocol import sessions, workers
from spoolpool.protocol.delayed_tasks import DelayedTasks
from spoolpool.protocol.heartbeat import Liveness
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import TimeShortage, WorkerInfo
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.locks import Lock, try_lock
from spoolpool.system.processes import ProcessId

log = logging.getLogger(__name__)

_MOST_LANES = 1000  # lanes with waiting tasks that a round considers
_DURATION = re.compile(r"\b\d+ (?:s|min|h|d)\b", re.ASCII)
_MOST_REASON = 4000  # characters of a batch system's reason
_MOST_OBSTACLES = 20  # lanes without a submission that a round reports


def _without_start(seconds: float) -> float:
    """Return the time of a job without that until its groups have started, at least 5 s and at most a minute."""
    return max(0.0, seconds - min(60.0, max(5.0, 0.02 * seconds)))


def _count_tasks(directory: str) -> int:
    return sum(parse_task_file(name) is not None for name in files.list_names(directory))


def _may_serve(info: WorkerInfo, lane: str) -> bool:
    wanted = parse_lane(lane)
    return wanted is not None and info.why_not(wanted) is None


class Autoscaler:
    """Submits and cancels batch jobs like ``job`` for the lanes of a spool.

    With the entry of a ``session``, the jobs belong to its executor. ``tags`` and ``trust`` are those of the job's
    worker options.
    """

    def __init__(
        self,
        spool: Spool,
        job: Job,
        policy: ScalingPolicy,
        *,
        session: str = "",
        tags: tuple[str, ...] = (),
        trust: Trust | None = None,
        seconds: float | None = None,
    ) -> None:
        """``seconds`` for which the groups of a job begin tasks; by default from its walltime."""
        self._seconds = _without_start(
            task_seconds(job.backend.walltime, margin=end_margin(job.backend.system)) if seconds is None else seconds
        )
        self.shortages: dict[str, str] = {}
        """Lanes with tasks that need more time than a job has, with messages; found in the last round."""
        self._spool = spool
        self._job = job
        self._policy = policy
        self._session = session
        self._tags = tags
        self._trust = trust or Trust()
        self._liveness = Liveness(spool)
        self._delayed = DelayedTasks(spool, dated=True)
        self._journal = Journal(spool, session_of_entry(session) or "autoscale")
        self._recovery = Recovery(spool, self._journal)
        self._presence = Presence(spool)
        self._obstacles: dict[str, str] = {}

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock by which one process at a time scales a spool. Raises :class:`SpoolpoolError` if it is taken.

        On a filesystem without locks nothing is excluded, and a warning is logged.
        """
        path = f"{self._spool.layout.jobs}/{AUTOSCALE_LOCK}"
        with files.translate_errors(f"scale the spool {self._spool.path}"):
            self._spool.make_directories(self._spool.layout.jobs)
            with contextlib.suppress(FileExistsError):
                self._spool.write_public(path, [])
            fd = self._spool.open_for_lock(path)
        try:
            lock = try_lock(fd)
            if lock is Lock.BUSY:
                raise SpoolpoolError(
                    f"Another process scales {self._spool.path}: the lock of {path} is taken. One process is enough; "
                    "'lsof' on its host shows which it is."
                )
            if lock is Lock.NONE:
                log.warning("%s has no locks: make sure that only one process scales it.", self._spool.path)
            yield
        finally:
            files.close(fd)

    def round(self, only: set[str] | None = None) -> list[str]:
        """Decide once and act on it; return messages with the reasons. ``only``: ignore tasks of other lanes.

        A missing submission is reported once for each reason. Raises :class:`LauncherError` if the batch system does
        not answer or rejects a job, and :class:`BrokenSpool` if the spool was removed, moved or replaced.
        """
        if not self._presence.check():
            return []
        messages = self.release_tasks()
        jobs = batch_jobs.find_ends(self._spool, batch_jobs.find_jobs(self._spool))
        messages += self._cancel_orphans(jobs)
        jobs = [self._cancel_stuck(job, messages) if self._is_stuck(job) else job for job in jobs]
        own, served = self._own(jobs)
        for job in served:
            batch_jobs.remove_record(self._spool, job.record.name)
            messages.append(f"The failure of a job for {job.record.lane} is forgotten: a newer group serves that lane.")
        obstacles = {}
        untold = 0
        before = self.shortages
        try:
            state = self._state(own, only)
            messages += [text for lane, text in self.shortages.items() if before.get(lane) != text][:_MOST_OBSTACLES]
            for decision in decide(state, self._policy):
                if decision.action == "none":
                    # without the numbers before the semicolon and the durations, which change from round to round
                    obstacles[decision.lane] = _DURATION.sub("", decision.reason.partition(";")[2])
                    if self._obstacles.get(decision.lane) != obstacles[decision.lane]:
                        untold += 1
                        if untold <= _MOST_OBSTACLES:
                            messages.append(f"Nothing is submitted for {decision.lane}: {decision.reason}.")
                    continue
                messages.append(self._act(decision))
                self._journal.write("autoscaled", text=messages[-1])
        finally:
            self._obstacles = obstacles
            self._journal.close()
        if untold > _MOST_OBSTACLES:
            messages.append(f"Nothing is submitted for {untold - _MOST_OBSTACLES} more lanes.")
        return messages

    def preview(self) -> list[str]:
        """Return what :meth:`round` would do now, as messages with the reasons; nothing in the spool is changed.

        Without the jobs for tasks that :meth:`release_tasks` would make ready. Raises as :meth:`round`.
        """
        Presence(self._spool, restore=False).check()
        messages = []
        held, claimed = (_count_tasks(path) for path in (self._spool.layout.waiting, self._spool.layout.claimed))
        if held or claimed:
            messages.append(
                f"Not counted are {held} task(s) that are held back and {claimed} claim(s): a round would first make "
                "ready those that may start, and those of dead workers."
            )
        jobs = batch_jobs.find_ends(self._spool, batch_jobs.find_jobs(self._spool, clean=False), record=False)
        messages += [f"Job {job.id} would be cancelled: its executor has died." for job in self._orphans(jobs)]
        messages += [f"Job {each.id} would be cancelled: {each.problem}." for each in jobs if self._is_stuck(each)]
        own, _ = self._own(jobs)
        state = self._state(own, None)
        messages += self.shortages.values()
        for decision in decide(state, self._policy):
            if decision.job is not None:
                text = f"Job {decision.job.id} for {decision.lane} would be cancelled"
            elif decision.action == "submit":
                text = f"A job would be submitted for {decision.lane}"
            else:
                text = f"Nothing would be submitted for {decision.lane}"
            messages.append(f"{text}: {decision.reason}.")
        return messages or ["Nothing would be submitted or cancelled."]

    def release_tasks(self) -> list[str]:
        """Release delayed tasks that may start, and claims of dead workers; return a message for each change.

        To be called about four times a lease. Nothing is raised: what cannot be done now is done later.
        """
        messages = []
        try:
            if count := self._delayed.round():
                messages.append(f"{count} delayed task(s) were made ready.")
                self._journal.write("autoscaled", text=messages[-1])
            messages += [f"Recovered {line}." for line in self._recovery.round()]
        except OSError as error:  # the server is unreachable for a moment
            log.info("The release of tasks was put off: %s", error)
        self._journal.close()
        return messages

    def await_recovery(self, wait: Callable[[float], bool]) -> Iterator[str]:
        """Watch silent workers until each is recovered or shows a heartbeat, for two leases at most; yield messages.

        For a process that makes a single round: a worker is dead only after a lease in which it was watched. ``wait``
        waits some seconds, and returns whether to stop.
        """
        lease = self._spool.config.lease
        end = time.monotonic() + 2 * lease
        while self._has_silent_workers() and time.monotonic() < end:
            yield from self.release_tasks()
            if wait(lease / 4):
                return

    def _has_silent_workers(self) -> bool:
        """Return whether a registered worker, or the worker of a claim, has had no heartbeat for a lease."""
        claims = map(parse_task_file, files.list_names(self._spool.layout.claimed))
        names = {task_file.worker for task_file in claims if task_file is not None}
        names.update(filter(is_worker_id, files.list_names(self._spool.layout.workers)))
        if not names:
            return False
        now, lease = self._spool.server_time(), self._spool.config.lease
        ages = (workers.seconds_since_heartbeat(self._spool, worker, now) for worker in names)
        return any(age is None or age > lease for age in ages)

    def _act(self, decision: Decision) -> str:
        if (job := decision.job) is not None:
            job.cancel()
            batch_jobs.remove_record(self._spool, job.record.name)  # else it would count as a job that ended by itself
            return f"Job {job.id} for {decision.lane} was cancelled: {decision.reason}."
        lane = parse_lane(decision.lane)
        assert lane is not None
        options = [f"--ranks={lane.ranks}", f"--threads={lane.threads}", f"--gpus={lane.gpus}", f"--queue={lane.queue}"]
        if not decision.permanent:
            options.append(f"--idle-timeout={self._policy.idle_timeout:g}")
        job_of_lane = replace(self._job, arguments=(*self._job.arguments, *options))
        _, number = batch_jobs.submit(self._spool, job_of_lane, lane=decision.lane, session=self._session)
        return f"Job {number} was submitted for {decision.lane}: {decision.reason}."

    def _is_stuck(self, job: SpoolJob) -> bool:
        """Return whether a job for a lane waits in a state that only a person can change."""
        mine = bool(job.record.lane) and job.record.session == self._session
        return mine and job.state == "pending" and bool(job.problem)

    def _cancel_stuck(self, job: SpoolJob, messages: list[str]) -> SpoolJob:
        """Cancel a job that cannot start, and count it as one that failed; return it so."""
        job.cancel()
        end = JobEnd(
            name=job.record.name,
            kind="failed",
            why=f"it cannot start: {job.problem}"[:_MOST_REASON],
            job=job.id,
            lane=job.record.lane,
            session=job.record.session,
        )
        job_ends.write_end(self._spool, end)
        messages.append(f"Job {job.id} for {job.record.lane} was cancelled: {end.why}.")
        self._journal.write("autoscaled", text=messages[-1])
        return replace(job, state="over", end=end)

    def _cancel_orphans(self, jobs: list[SpoolJob]) -> Iterator[str]:
        """Cancel pending jobs of executors that have died."""
        for job in self._orphans(jobs):
            job.cancel()
            yield f"Job {job.id} was cancelled: its executor has died."

    def _orphans(self, jobs: list[SpoolJob]) -> Iterator[SpoolJob]:
        for job in jobs:
            session = job.record.session
            others = job.state == "pending" and session not in ("", self._session)
            if others and sessions.is_dead(self._spool, session):
                yield job

    def _own(self, jobs: list[SpoolJob]) -> tuple[list[SpoolJob], list[SpoolJob]]:
        """Return the jobs that are scaled here, and the failed ones that count no more.

        These are of a lane that a group of this account serves which has started later, such as one of a job that a
        person submitted.
        """
        own = [job for job in jobs if job.record.lane and job.record.session == self._session]
        failed = [job for job in own if job.end is not None and job.end.kind == "failed"]
        if not failed:
            return own, []
        now = self._spool.server_time()
        served: list[SpoolJob] = []
        for info in workers.read_workers(self._spool):
            entry = f"{self._spool.layout.worker(info.worker)}/info.json"
            own_group = not self._spool.shared or info.user == account_name(os.geteuid())
            stamp = files.mtime_ns(entry) if own_group and self._liveness.is_alive(info) else None
            if stamp is not None:
                age = now - stamp / 1e9
                served += [job for job in failed if age < job.ended and _may_serve(info, job.record.lane)]
        names = {job.record.name for job in served}
        return [job for job in own if job.record.name not in names], [job for job in own if job.record.name in names]

    def _state(self, own: list[SpoolJob], only: set[str] | None) -> ScalingState:
        needs = {lane: found for lane, found in waiting_needs(self._spool).items() if only is None or lane in only}
        shortages = {lane: workers.why_too_short(needed, self._seconds) for lane, needed in needs.items()}
        self.shortages = {lane: self._describe(lane, found) for lane, found in shortages.items() if found}
        found = {lane: sum(needs[lane].values()) - (short.tasks if short else 0) for lane, short in shortages.items()}
        # others can make any number of lanes; the ones with the most tasks come first in any case
        waiting = dict(sorted(found.items(), key=lambda each: -each[1])[:_MOST_LANES])
        names = {job.record.name for job in own}
        lanes = {*waiting, self._policy.home}
        sources: dict[str, set[str]] = {lane: set() for lane in lanes}
        infos = workers.read_workers(self._spool)
        self._liveness.keep_only({info.worker for info in infos})
        for info in infos:
            if info.batch not in names and self._liveness.is_alive(info):
                for lane in lanes:
                    if _may_serve(info, lane):
                        sources[lane].add(info.batch or info.job or info.process.host)
        return ScalingState(
            waiting=waiting,
            jobs=tuple(own),
            other_sources={lane: len(found) for lane, found in sources.items()},
            quiet={job.record.lane: self._quiet_seconds(job.record.lane) for job in own if job.state == "pending"},
            unserved={lane: reason for lane in lanes if (reason := self._why_unserved(lane))},
        )

    def _describe(self, lane: str, shortage: TimeShortage) -> str:
        return (
            f"Nothing is submitted for {shortage.tasks} task(s) of {lane}: {shortage.needs}, the groups of a job have "
            f"{self._seconds:.0f} s for tasks. Give the jobs a longer walltime."
        )

    def _why_unserved(self, lane: str) -> str | None:
        """Return the reason why workers started here, in the shape of a lane, would not run its tasks; else None."""
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

    def _quiet_seconds(self, lane: str) -> float:
        """Return the seconds since a task was added to or removed from a lane."""
        path = self._spool.layout.lane(lane)
        stamps = [files.mtime_ns(path), *(files.mtime_ns(f"{path}/{bucket}") for bucket in files.list_names(path))]
        return self._spool.server_time() - max((stamp or 0) for stamp in stamps) / 1e9
