"""The batch jobs of a spool: each is recorded before it is submitted, and found again by its name.

So nobody cancels a job that is not of this spool, and none is forgotten, whoever dies at whichever moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from spoolpool import settings
from spoolpool.errors import LauncherError, SpoolpoolError
from spoolpool.format.names import is_session, job_of, new_job_name, parse_lane
from spoolpool.pool import batch_system
from spoolpool.pool.batch_system import Job, Listed, System
from spoolpool.protocol import registration, workers
from spoolpool.protocol.heartbeat import Liveness
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.backoff import Backoff

log = logging.getLogger(__name__)

KEPT = 86400.0
"""Seconds for which the record of a job that is over is kept: it tells how often jobs ended lately."""

_GOING = 120.0  # seconds that a cancelled job gets to be gone; Slurm kills after KillWait, 30 s unless set


class JobRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One batch job, as ``jobs/NAME.json`` has it."""

    name: str
    """Its name in the batch system."""
    system: System
    """Batch system."""
    cluster: str
    """What that calls itself: ids and names of another cluster are not looked for."""
    user: str
    """Account that submitted it."""
    nodes: int = 1
    """Nodes."""
    time: str = ""
    """Walltime, as the batch system writes it."""
    lane: str = ""
    """Lane for which it was submitted; empty if a person did."""
    session: str = ""
    """Session of the executor for whose sake it runs; it ends with that."""


@dataclass(frozen=True, kw_only=True)
class SpoolJob:
    """A recorded job, and what its batch system says about it."""

    record: JobRecord
    """What was submitted."""
    age: float
    """Seconds since then, by the clock that dates the spool's files."""
    listed: Listed | None
    """The batch system's word; None if the job is over, or is not known there yet."""

    @property
    def state(self) -> str:
        """``pending``, ``running`` or ``over``."""
        return "over" if self.listed is None else self.listed.state


def submit(spool: Spool, job: Job, *, lane: str = "", session: str = "") -> tuple[JobRecord, str]:
    """Record and submit a job; returns the record and the batch system's id. Raises :class:`LauncherError`."""
    record = JobRecord(
        name=new_job_name(),
        system=job.system,
        cluster=batch_system.cluster(job.system),
        user=account_name(os.geteuid()),
        nodes=job.nodes,
        time=job.time,
        lane=lane,
        session=session,
    )
    path = f"{spool.layout.jobs}/{record.name}.json"
    with files.translate_errors(f"record a batch job in {spool.path}"):
        spool.make_directories(spool.layout.jobs)
        data = [msgspec.json.encode(record)]
        files.create(path, data, mode=spool.rights.file, exact=spool.shared, durability=spool.config.durability)
    try:
        return record, job.submit(record.name, output_of(spool, record.name))
    except BaseException:
        files.remove(path)
        raise


def output_of(spool: Spool, name: str) -> str:
    """The file to which a job prints, unless a directive says else."""
    return f"{spool.layout.jobs}/{name}.out"


def records(spool: Spool) -> list[JobRecord]:
    """All jobs that this account has submitted; what another one wrote is not read."""
    found = (_read(spool, name) for name in map(job_of, files.list_names(spool.layout.jobs)) if name)
    return [record for record in found if record is not None]


def _read(spool: Spool, name: str) -> JobRecord | None:
    path = f"{spool.layout.jobs}/{name}.json"
    try:
        fd = files.open_file(path)
        try:
            Trust().check(fd, path)
        finally:
            files.close(fd)
        record = msgspec.json.decode(files.read_small(path), type=JobRecord)
    except (OSError, ValueError, SpoolpoolError):  # gone, torn, or somebody else's
        return None
    good = record.name == name and (not record.lane or parse_lane(record.lane))
    return record if good and (not record.session or is_session(record.session)) else None


def look(spool: Spool) -> list[SpoolJob]:
    """The jobs of this spool on this cluster, the oldest first, with one question to each batch system.

    Raises :class:`LauncherError` where a batch system does not answer. Forgets what was over long ago.
    """
    found = []
    now: float | None = None
    answers: dict[System, dict[str, Listed]] = {}
    for record in records(spool):
        if record.cluster != batch_system.cluster(record.system):
            continue
        if record.system not in answers:
            answers[record.system] = {each.name: each for each in batch_system.listed(record.system)}
        now = now or spool.server_time()
        stamp = files.mtime_ns(f"{spool.layout.jobs}/{record.name}.json")
        if stamp is None:
            continue
        job = SpoolJob(record=record, age=now - stamp / 1e9, listed=answers[record.system].get(record.name))
        if job.listed is None and job.age > KEPT:
            forget(spool, record.name)
        else:
            found.append(job)
    return sorted(found, key=lambda job: -job.age)


def forget(spool: Spool, name: str) -> None:
    """Remove what is known of a job that is over."""
    for path in (output_of(spool, name), f"{spool.layout.jobs}/{name}.json"):
        with contextlib.suppress(OSError):
            files.remove(path)


def stop(spool: Spool, wanted: Callable[[SpoolJob], bool], seconds: float) -> Iterator[str]:
    """End jobs: those that wait are cancelled, the groups of those that run are asked to stop.

    What still runs after ``seconds`` is cancelled. Yields what it does, in words; at the end none is left. Raises
    :class:`LauncherError`, also where a job does not go.
    """
    backoff = Backoff(0.2, 2.0)
    end = time.monotonic() + seconds
    asked: set[str] = set()
    cancelled: set[str] = set()
    while going := [job for job in look(spool) if job.listed is not None and wanted(job)]:
        late = time.monotonic() >= end
        for job in going:
            assert job.listed is not None
            if job.record.name not in cancelled and (late or job.state == "pending"):
                batch_system.cancel(job.record.system, [job.listed])
                cancelled.add(job.record.name)
                yield f"Job {job.listed.id} was cancelled: it was {job.state}."
        names = {job.record.name for job in going}
        for info in workers.read_workers(spool):
            if info.batch in names and info.worker not in asked:
                registration.request_stop(spool, info.worker)
                asked.add(info.worker)
                yield f"{info.worker} on {info.process.host} was asked to end."
        if time.monotonic() > end + _GOING:
            raise LauncherError(
                f"{len(going)} batch job(s) were cancelled and are not gone after {_GOING:g} s: look at "
                f"{', '.join(job.listed.id for job in going if job.listed)}."
            )
        backoff.sleep()


class OwnerWatch:
    """Why the batch job around this process should go on, so far as its record says."""

    def __init__(self, spool: Spool, name: str | None = None) -> None:
        self._spool = spool
        name = os.environ.get(settings.ENV_JOB, "") if name is None else name
        record = _read(spool, name) if job_of(f"{name}.json") else None
        self._session = record.session if record is not None else ""
        self._liveness = Liveness(spool)
        self._every = spool.config.lease / settings.BEATS_PER_LEASE
        self._due = 0.0
        self._lost = False

    def lost(self) -> bool:
        """Whether the executor for which this job runs has ended; looks some times in a lease."""
        if self._session and not self._lost and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._every
            self._lost = not self._liveness.session_alive(self._session)
        return self._lost

    def leave(self) -> None:
        """Remove a temporary spool whose executor died, once no other worker is in it."""
        died = self._lost and not files.is_missing(self._spool.layout.session(self._session))
        if died and self._spool.config.temporary and not workers.read_workers(self._spool):
            files.remove_tree(self._spool.path)


def end_orphaned(directory: str, session: str) -> None:
    """End what an executor left that died: its jobs, and its spool if that was its own."""
    spool = Spool(directory)
    seconds = 0.0 if spool.config.temporary else 30.0  # nobody else has tasks in a spool of the executor's own
    for line in stop(spool, lambda job: job.record.session == session, seconds):
        log.info("%s", line)
    if spool.config.temporary:
        files.remove_tree(spool.path)


def when_killed(spool: Spool, session: str) -> list[str]:
    """The command that does :func:`wind_up`."""
    return [sys.executable, "-m", "spoolpool.pool.batch_jobs", spool.path, session]


if __name__ == "__main__":
    end_orphaned(*sys.argv[1:])
