"""Batch jobs of a spool: each is recorded before it is submitted, and found again by its name.

Thus no command cancels a job of another spool, and no job is forgotten when a process dies, at any moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import msgspec

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.format.names import job_of, new_job_name, parse_lane, session_of_entry
from spoolpool.pool import batch_system, job_ends
from spoolpool.pool.batch_system import Job, System
from spoolpool.pool.job_ends import KEPT, JobEnd, output_path
from spoolpool.pool.systems.base import ActiveJob, EndedJob, JobPart
from spoolpool.protocol import worker_registration, workers
from spoolpool.protocol.heartbeat import Liveness, heartbeat_interval
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.security import known_spools
from spoolpool.security.trust import Trust
from spoolpool.system import files, records
from spoolpool.system.accounts import account_name
from spoolpool.system.backoff import Backoff
from spoolpool.system.bounds import Positive, Text, Word
from spoolpool.system.environment import python_module
from spoolpool.system.job_ids import elements, join_elements, names_job
from spoolpool.system.text import escape_line

log = logging.getLogger(__name__)

_SUBMISSION_SECONDS = 300.0
"""Age from which a job that its batch system does not know has ended: until then its submission may be in progress."""

_LONGEST = 30 * KEPT  # age at which a job whose end was never asked for is forgotten: it may have waited for long
_MOST_OTHERS = 1000  # records of other accounts that are counted
_NOW = 1e-3  # seconds since an end that was found just now
_CANCEL_SECONDS = 120.0  # for a cancelled job to end; Slurm kills it after KillWait, 30 s by default


class JobRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``jobs/NAME.json``."""

    name: Word
    """Name of the job in the batch system."""
    system: System
    """Batch system."""
    cluster: Word
    """Name of the batch system: jobs of another cluster are not looked up."""
    user: Word
    """Account that submitted the job."""
    nodes: Positive = 1
    """Whole nodes."""
    time: Word = ""
    """Walltime, as the batch system reads it."""
    lane: Text = ""
    """Lane for which the job was submitted; empty if a person submitted it."""
    session: Word = ""
    """Entry of the session of the executor that owns the job and ends it; empty without one."""


_decoder = msgspec.json.Decoder(JobRecord)


@dataclass(frozen=True, kw_only=True)
class SpoolJob:
    """Recorded job and its state in the batch system."""

    record: JobRecord
    """Record of the submission."""
    age: float
    """Seconds since the submission, by the clock that dates the spool's files."""
    state: Literal["pending", "running", "over"]
    """State in the batch system; ``over`` also while a new job is not known there yet."""
    id: str = ""
    """Id in the batch system; empty if the job is over."""
    problem: str = ""
    """Reason for which a pending job cannot start as it is, in the words of the batch system."""
    parts: tuple[JobPart, ...] = ()
    """Elements or components that have not ended, or the job itself; none if it is over."""
    started: bool = False
    """Whether a worker group of it has ever registered."""
    end: JobEnd | None = None
    """How it ended, if it is over and that is known."""
    ended: float = 0.0
    """Seconds since its end was recorded; 0 if that is not known."""

    def cancel(self, part: str = "") -> None:
        """Cancel the job, or the elements with an id such as ``6_[2,5]``. Raises :class:`LauncherError`."""
        batch_system.cancel(self.record.system, part or self.id, self.record.name)

    def selected(self, only: Collection[str] | None) -> dict[JobPart, frozenset[str]]:
        """Return the active parts with the ids that ``only`` contains of each; with all of their ids if it is None."""
        ids = {part: elements(part.id) for part in self.parts}
        if only is not None:
            ids = {part: found.intersection(only) for part, found in ids.items()}
        return {part: found for part, found in ids.items() if found}


def submit(spool: Spool, job: Job, *, lane: str = "", session: str = "") -> tuple[JobRecord, str]:
    """Record and submit a job; return the record and the id. Raises :class:`LauncherError`."""
    record = JobRecord(
        name=new_job_name(),
        system=job.backend.system,
        cluster=batch_system.cluster(job.backend.system),
        user=account_name(os.geteuid()),
        nodes=job.backend.nodes,
        time=job.time,
        lane=lane,
        session=session,
    )
    path = _record_path(spool, record.name)
    with files.translate_errors(f"record a batch job in {spool.path}"):
        spool.make_directories(spool.layout.jobs)
        data = [msgspec.json.encode(record)]
        files.create(path, data, mode=spool.rights.file, exact=spool.shared, durability=spool.config.durability)
    try:
        if spool.replaceable:
            with contextlib.suppress(OSError):  # the batch system says that the output cannot be written
                os.makedirs(os.path.dirname(output_path(spool, record.name)), mode=0o700, exist_ok=True)
        return record, job.submit(record.name, output_path(spool, record.name))
    except BaseException:
        files.remove(path)
        raise


def _record_path(spool: Spool, name: str) -> str:
    return f"{spool.layout.jobs}/{name}.json"


def read_records(spool: Spool) -> list[JobRecord]:
    """Return the records of all jobs that this account has submitted; those of other accounts are ignored."""
    found = (read_record(spool, name) for name in map(job_of, files.list_names(spool.layout.jobs)) if name)
    return [record for record in found if record is not None]


def read_record(spool: Spool, name: str) -> JobRecord | None:
    """Return the record of a job; None if it is missing or invalid, or another account submitted the job."""
    path = _record_path(spool, name)
    try:
        if files.owner(path) != os.geteuid():
            return None
    except OSError:  # unknown
        return None
    record = records.read(path, _decoder, check=Trust().check)
    if record is None:
        return None
    good = record.name == name and (not record.lane or parse_lane(record.lane))
    return record if good and (not record.session or session_of_entry(record.session)) else None


def count_other_jobs(spool: Spool) -> dict[str, int]:
    """Return how many jobs other accounts have submitted of which no end is recorded, by account."""
    names = set(files.list_names(spool.layout.jobs))
    open_ = [name for name in map(job_of, names) if name and f"{name}.end" not in names]
    counts: dict[str, int] = {}
    for name in open_[:_MOST_OTHERS]:
        with contextlib.suppress(OSError):
            owner = files.owner(_record_path(spool, name))
            if owner not in (None, os.geteuid()):
                counts[account_name(owner)] = counts.get(account_name(owner), 0) + 1
    return counts


def recorded_jobs(spool: Spool) -> list[SpoolJob]:
    """Return the jobs of this spool as its files tell, the oldest first, without a question to a batch system.

    A job without a recorded end is ``running`` if a group of it has registered, else ``pending``.
    """
    jobs = []
    now = spool.shown_time()
    for record in read_records(spool):
        submitted = files.mtime_ns(_record_path(spool, record.name))
        if submitted is None:
            continue
        job = SpoolJob(record=record, age=now - submitted / 1e9, state="pending")
        if end := job_ends.read_end(spool, record.name, now):
            job = replace(job, state="over", end=end.end, ended=end.age)
        elif job_ends.has_started(spool, record.name):
            job = replace(job, state="running", started=True)
        jobs.append(job)
    return sorted(jobs, key=lambda job: -job.age)


def find_jobs(spool: Spool, *, clean: bool = True) -> list[SpoolJob]:
    """Return the jobs of this spool on this cluster, the oldest first, by one command to each batch system.

    Removes the records of jobs that ended long ago, unless ``clean`` is False. Raises :class:`LauncherError` if a batch
    system does not answer.
    """
    jobs = []
    now: float | None = None
    active: dict[System, dict[str, ActiveJob]] = {}
    for record in read_records(spool):
        system, name = record.system, record.name
        if record.cluster != batch_system.cluster(system):
            continue
        if system not in active:
            active[system] = batch_system.active_jobs(system)
        now = now or (spool.server_time() if clean else spool.shown_time())
        submitted = files.mtime_ns(_record_path(spool, name))
        if submitted is None:
            continue
        age = now - submitted / 1e9
        job = SpoolJob(record=record, age=age, state="over")
        if found := active[system].get(name):
            started = bool(record.lane) and job_ends.has_started(spool, name)
            parts = found.parts or (JobPart(found.id, found.state),)
            problem = escape_line(found.problem)
            job = replace(job, state=found.state, id=found.id, problem=problem, parts=parts, started=started)
        elif end := job_ends.read_end(spool, name, now):
            job = replace(job, end=end.end, ended=end.age)
        if clean and job.state == "over" and (job.ended > KEPT or (job.end is None and age > _LONGEST)):
            remove_record(spool, name)
        else:
            jobs.append(job)
    return sorted(jobs, key=lambda job: -job.age)


def find_ends(spool: Spool, jobs: list[SpoolJob], *, record: bool = True) -> list[SpoolJob]:
    """Return jobs with the ends that were not known yet: as their batch system tells, or concluded from their files.

    With ``record`` the ends are recorded, since the batch system forgets them.
    """
    found: dict[str, SpoolJob] = {}
    unknown = [job for job in jobs if job.state == "over" and job.end is None]
    for job in unknown:
        name = job.record.name
        told = _ask_for_end(job.record)
        vanished = job.age > _SUBMISSION_SECONDS
        end = job_ends.conclude(spool, name, told, lane=job.record.lane, session=job.record.session, vanished=vanished)
        if end is not None:
            recorded = record and job_ends.write_end(spool, end)
            ended = _NOW if recorded else max(_NOW, job_ends.age_without_record(spool, name, job.age))
            found[name] = replace(job, end=end, ended=ended)
    return [found.get(job.record.name, job) for job in jobs]


def _ask_for_end(record: JobRecord) -> EndedJob | None:
    """Return how a job ended; None where the batch system cannot tell: the files of the job tell the rest."""
    try:
        return batch_system.ended_job(record.system, record.name)
    except LauncherError:
        return None


def remove_record(spool: Spool, name: str) -> None:
    """Remove the record, the end and the output of an ended job."""
    job_ends.remove_end(spool, name)
    for path in (output_path(spool, name), _record_path(spool, name)):
        with contextlib.suppress(OSError):
            files.remove(path)


def end_jobs(
    spool: Spool,
    selects: Callable[[SpoolJob], bool],
    seconds: float,
    parts: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Iterator[str]:
    """End the selected jobs: cancel pending ones, ask the groups of running ones to end.

    ``parts`` has the ids of the elements to be ended, by the name of the job; all of a job that it does not name. A job
    that still runs after ``seconds`` is cancelled. Yields a message for each step; at the end no job is left.
    Raises :class:`LauncherError`, also if a cancelled job does not end.
    """
    backoff = Backoff(0.2, 2.0)
    end = time.monotonic() + seconds
    asked: set[str] = set()
    cancelled: set[str] = set()
    while active := [
        (job, part, ids)
        for job in find_jobs(spool)
        if job.state != "over" and selects(job)
        for part, ids in job.selected(parts.get(job.record.name)).items()
    ]:
        late = time.monotonic() >= end
        for job, part, ids in active:
            if (late or part.state == "pending") and not cancelled.issuperset(ids):
                chosen = part.id if ids == elements(part.id) else join_elements(ids)
                job.cancel("" if len(job.parts) == 1 and chosen == part.id else chosen)
                cancelled.update(ids)
                yield f"Job {chosen} was cancelled: it was {part.state}."
        names = {job.record.name: parts.get(job.record.name) for job, _, _ in active}
        for info in workers.read_workers(spool):
            if info.batch in names and info.worker not in asked and _is_in(info, names[info.batch]):
                if worker_registration.request_stop(spool, info.worker):
                    yield f"{info.worker} on {info.process.host} was asked to end."
                asked.add(info.worker)
        if time.monotonic() > end + _CANCEL_SECONDS:
            raise LauncherError(
                f"{len(active)} batch job(s) were cancelled and have not ended after {_CANCEL_SECONDS:g} s: look at "
                f"{', '.join(part.id for _, part, _ in active)}."
            )
        backoff.sleep()


def _is_in(info: WorkerInfo, only: Collection[str] | None) -> bool:
    """Return whether a group belongs to parts of its job."""
    return only is None or any(names_job(each, info.job) for each in only)


class OwnerWatch:
    """Tells whether the executor that owns the batch job around this process has ended."""

    def __init__(self, spool: Spool, name: str | None = None) -> None:
        """``name`` of the job; that of the environment if None."""
        self._spool = spool
        name = os.environ.get(settings.ENV_JOB, "") if name is None else name
        record = read_record(spool, name) if job_of(f"{name}.json") else None
        self._session = record.session if record is not None else ""
        self._liveness = Liveness(spool)
        self._interval = heartbeat_interval(spool)
        self._due = 0.0
        self._ended = False

    def has_ended(self) -> bool:
        """Return whether the owner has ended; checked several times per lease, False for a job without owner."""
        if self._session and not self._ended and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval
            self._ended = not self._liveness.is_session_alive(self._session)
        return self._ended

    def leave(self) -> None:
        """Remove the temporary spool of an executor that died, once no other worker is in it."""
        died = self._ended and not files.is_missing(self._spool.layout.session(self._session))
        if died and self._spool.temporary and not workers.read_workers(self._spool):
            self._spool.remove()


def end_orphaned(directory: str, session: str, known: str) -> None:
    """End the jobs of an executor that died, and remove its spool if that was temporary.

    ``known`` is the encoded identity of the executor's spool.
    """
    known_spools.inherit(known)
    spool = Spool(directory)
    seconds = 0.0 if spool.temporary else 30.0  # a temporary spool has no tasks of other sessions
    for line in end_jobs(spool, lambda job: job.record.session == session, seconds):
        log.info("%s", line)
    if spool.temporary:
        spool.remove()


def orphan_command(spool: Spool, session: str) -> list[str]:
    """Return the command that runs :func:`end_orphaned`."""
    known = known_spools.encode(spool.identity)
    return python_module("spoolpool.pool.batch_jobs", spool.path, session, known)


if __name__ == "__main__":
    end_orphaned(*sys.argv[1:])
