"""Failed batch jobs of a spool, and lanes that get no more jobs, for ``spool workers ls`` and ``spool status``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spoolpool.errors import SpoolpoolError
from spoolpool.pool import batch_jobs, job_ends
from spoolpool.pool.batch_jobs import SpoolJob
from spoolpool.pool.job_ends import JobEnd, ReadEnd
from spoolpool.pool.scaling_policy import failures_in_a_row, seconds_left_alone
from spoolpool.protocol.spool import Spool
from spoolpool.system.accounts import account_name
from spoolpool.system.text import escape_line, format_duration

_MOST = 10  # failed jobs that are listed
_INTERVAL = 60.0


@dataclass(frozen=True)
class JobFailure:
    """A failed job."""

    end: JobEnd
    user: str
    """Account that submitted it; empty for this one."""
    seconds: float
    """Time since its end."""
    output: tuple[str, ...]
    """Last lines of its output, escaped."""
    failures: int = 0
    """Jobs of its lane that failed in a row, if it is the last of several."""
    left_alone: float = 0.0
    """Seconds for which its lane gets no job; 0 if that is not so, or it is not known."""

    @property
    def text(self) -> str:
        """Description without the output."""
        job = f"Job {self.end.job or self.end.name}"
        job += f" of {self.user}" if self.user else ""
        job += f" for {self.end.lane}" if self.end.lane else ""
        why = f": {self.end.why.rstrip('.')}" if self.end.why else ""
        return escape_line(f"{job} failed {format_duration(self.seconds)} ago{why}.")

    @property
    def consequence(self) -> str:
        """Sentence on the jobs that follow; empty if there is nothing to say."""
        if not self.left_alone:
            return ""
        return (
            f"{self.failures} jobs for this lane failed in a row: 'spool autoscale' submits no other one for "
            f"{format_duration(self.left_alone)}, or before 'spool workers forget' or the start of a group for it."
        )

    def as_json(self) -> dict[str, Any]:
        """Return the failure as JSON; documented in docs/cli.md."""
        return {
            "name": self.end.name,
            "job": self.end.job,
            "user": self.user or account_name(os.geteuid()),
            "lane": self.end.lane,
            "session": self.end.session,
            "why": self.end.why,
            "output": list(self.output),
            "seconds": self.seconds,
            "failures": self.failures,
            "left_alone": self.left_alone,
        }


def find_failures(spool: Spool, *, record: bool) -> tuple[list[SpoolJob], list[JobFailure], str]:
    """Return the jobs of this account, the failed jobs of all accounts, the last ones first, and an error.

    The error is that of a batch system that does not answer; then only recorded ends are known. ``record``: ask about
    all jobs, and record the ends that were not known; else about those without a group alone, since a status must not
    wait for a batch system more often than necessary.
    """
    jobs: list[SpoolJob] = []
    problem = ""
    try:
        jobs = batch_jobs.recorded_jobs(spool)
        if record or any(job.state == "pending" for job in jobs):
            jobs = batch_jobs.find_ends(spool, batch_jobs.find_jobs(spool, clean=record), record=record)
    except (OSError, SpoolpoolError) as error:
        problem = str(error)
    found = [_of_job(spool, job, jobs) for job in jobs if job.end is not None and job.end.kind == "failed"]
    known = {job.record.name for job in jobs if job.state == "over"}  # an element of an array may have failed already
    for end in job_ends.read_ends(spool, spool.shown_time(), known):
        if end.end.kind == "failed" and end.age < job_ends.KEPT:
            found.append(_of_record(spool, end))
        elif record and end.age > job_ends.KEPT and end.owner == os.geteuid():
            job_ends.remove_end(spool, end.end.name)
    certain = [job for job in jobs if not problem or job.state == "over"]
    return certain, sorted(found, key=lambda each: each.seconds), problem


class FailureWatch:
    """Failed jobs for a status that is shown repeatedly: the batch system is asked once a minute at most."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._due = 0.0
        self._found: list[JobFailure] = []

    def look(self) -> list[JobFailure]:
        """Return the failed jobs; without those that only a batch system knows that does not answer here."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _INTERVAL
            _, self._found, _ = find_failures(self._spool, record=False)
        return self._found


def _of_job(spool: Spool, job: SpoolJob, jobs: list[SpoolJob]) -> JobFailure:
    assert job.end is not None
    record = job.record
    of_owner = [each for each in jobs if each.record.session == record.session]
    in_a_row = failures_in_a_row(of_owner, record.lane) if record.lane and not record.session else []
    last = bool(in_a_row) and in_a_row[0] is job
    return JobFailure(
        job.end,
        "",
        job.ended,
        _output(spool, job.end),
        failures=len(in_a_row) if last else 0,
        left_alone=seconds_left_alone(in_a_row) if last else 0.0,
    )


def _of_record(spool: Spool, found: ReadEnd) -> JobFailure:
    own = found.owner == os.geteuid()
    output = _output(spool, found.end) if own else found.end.output
    # another account can write what it likes
    output = tuple(map(escape_line, output))
    return JobFailure(found.end, "" if own else account_name(found.owner), found.age, output)


def _output(spool: Spool, end: JobEnd) -> tuple[str, ...]:
    """Return the last lines of the output of a job of this account; a supervisor cannot always read its own."""
    return end.output or job_ends.last_lines(job_ends.output_path(spool, end.name))


def failure_lines(failures: list[JobFailure]) -> Iterator[str]:
    """Yield lines on failed jobs: one on each, and the last lines of its output, indented; of a lane the last job."""
    chosen, left = choose(failures)
    for each in chosen:
        yield f"{each.text} {each.consequence}".rstrip()
        yield from (f"    | {line}" for line in each.output)
    if left:
        yield f"... and {left} more failed jobs; 'spool workers ls --json' lists all."


def choose(failures: list[JobFailure]) -> tuple[list[JobFailure], int]:
    """Return the failures that are listed, of a lane the last one, and how many more there are."""
    chosen = []
    lanes: set[tuple[str, str, str]] = set()
    for each in failures:
        lane = (each.user, each.end.session, each.end.lane)
        if not each.end.lane or lane not in lanes:
            chosen.append(each)
        lanes.add(lane)
    return chosen[:_MOST], len(chosen[_MOST:])
