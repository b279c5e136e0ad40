"""Batch jobs of a spool: each is recorded before it is submitted, and found again by its name.

Thus no command cancels a job of another spool, and no job is forgotten when a process dies, at any moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.format.names import job_of, new_job_name, parse_lane, session_of_entry
from spoolpool.pool import batch_system
from spoolpool.pool.batch_system import Job, System
from spoolpool.pool.systems.base import ActiveJob
from spoolpool.protocol import worker_registration, workers
from spoolpool.protocol.heartbeat import Liveness, heartbeat_interval
from spoolpool.protocol.spool import Spool
from spoolpool.security import known_spools
from spoolpool.security.trust import Trust
from spoolpool.system import files, records
from spoolpool.system.accounts import account_name
from spoolpool.system.backoff import Backoff
from spoolpool.system.bounds import Positive, Text, Word
from spoolpool.system.environment import python_module, state_directory

log = logging.getLogger(__name__)

KEPT = 86400.0
"""Seconds for which the record of an ended job is kept: the autoscaler counts jobs that ended lately."""

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

    def cancel(self) -> None:
        """Cancel the job. Raises :class:`LauncherError`."""
        batch_system.cancel(self.record.system, self.id, self.record.name)


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


def output_path(spool: Spool, name: str) -> str:
    """Return the path of the output of a job, unless a directive sets another.

    The batch system opens it by this path. Where other accounts can replace the spool, they could lead it elsewhere, so
    there it is below the submitting account's own directory.
    """
    return f"{state_directory()}/jobs/{name}.out" if spool.replaceable else f"{spool.layout.jobs}/{name}.out"


def read_records(spool: Spool) -> list[JobRecord]:
    """Return the records of all jobs that this account has submitted; those of other accounts are ignored."""
    found = (_read(spool, name) for name in map(job_of, files.list_names(spool.layout.jobs)) if name)
    return [record for record in found if record is not None]


def _read(spool: Spool, name: str) -> JobRecord | None:
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


def find_jobs(spool: Spool) -> list[SpoolJob]:
    """Return the jobs of this spool on this cluster, the oldest first, by one command to each batch system.

    Removes the records of jobs that ended long ago. Raises :class:`LauncherError` if a batch system does not answer.
    """
    jobs = []
    now: float | None = None
    active: dict[System, dict[str, ActiveJob]] = {}
    for record in read_records(spool):
        system = record.system
        if record.cluster != batch_system.cluster(system):
            continue
        if system not in active:
            active[system] = batch_system.active_jobs(system)
        now = now or spool.server_time()
        submitted = files.mtime_ns(_record_path(spool, record.name))
        if submitted is None:
            continue
        age = now - submitted / 1e9
        if found := active[system].get(record.name):
            jobs.append(SpoolJob(record=record, age=age, state=found.state, id=found.id))
        elif age > KEPT:
            remove_record(spool, record.name)
        else:
            jobs.append(SpoolJob(record=record, age=age, state="over"))
    return sorted(jobs, key=lambda job: -job.age)


def remove_record(spool: Spool, name: str) -> None:
    """Remove the record and the output of an ended job."""
    for path in (output_path(spool, name), _record_path(spool, name)):
        with contextlib.suppress(OSError):
            files.remove(path)


def end_jobs(spool: Spool, selects: Callable[[SpoolJob], bool], seconds: float) -> Iterator[str]:
    """End the selected jobs: cancel pending ones, ask the groups of running ones to end.

    A job that still runs after ``seconds`` is cancelled. Yields a message for each step; at the end no job is left.
    Raises :class:`LauncherError`, also if a cancelled job does not end.
    """
    backoff = Backoff(0.2, 2.0)
    end = time.monotonic() + seconds
    asked: set[str] = set()
    cancelled: set[str] = set()
    while active := [job for job in find_jobs(spool) if job.state != "over" and selects(job)]:
        late = time.monotonic() >= end
        for job in active:
            if job.record.name not in cancelled and (late or job.state == "pending"):
                job.cancel()
                cancelled.add(job.record.name)
                yield f"Job {job.id} was cancelled: it was {job.state}."
        names = {job.record.name for job in active}
        for info in workers.read_workers(spool):
            if info.batch in names and info.worker not in asked:
                worker_registration.request_stop(spool, info.worker)
                asked.add(info.worker)
                yield f"{info.worker} on {info.process.host} was asked to end."
        if time.monotonic() > end + _CANCEL_SECONDS:
            raise LauncherError(
                f"{len(active)} batch job(s) were cancelled and have not ended after {_CANCEL_SECONDS:g} s: look at "
                f"{', '.join(job.id for job in active)}."
            )
        backoff.sleep()


class OwnerWatch:
    """Tells whether the executor that owns the batch job around this process has ended."""

    def __init__(self, spool: Spool, name: str | None = None) -> None:
        """``name`` of the job; that of the environment if None."""
        self._spool = spool
        name = os.environ.get(settings.ENV_JOB, "") if name is None else name
        record = _read(spool, name) if job_of(f"{name}.json") else None
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
