"""Ends of batch jobs: ``jobs/NAME.end`` says how a job ended, with the last lines of its output.

A supervisor records the end of its job itself. For a job that ended without one, the account that submitted it asks the
batch system, which forgets a job after minutes; what that cannot tell is concluded from the files of the job. A record
is written once: the first one counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from spoolpool.errors import SpoolpoolError, signal_name
from spoolpool.format.names import ended_job_of
from spoolpool.pool.systems.base import EndedJob
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import started_mark
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files, open_directory, records
from spoolpool.system.bounds import Text, Word
from spoolpool.system.environment import state_directory
from spoolpool.system.text import escape_line

EndKind = Literal["done", "failed", "cancelled", "lost"]
"""``done``: groups of it have worked, and it ended in order or with its walltime. ``lost``: a node failed, or it was
preempted. That and ``cancelled`` say nothing about the jobs that follow."""

KEPT = 86400.0
"""Seconds for which the end of a job is shown, and counts for its lane."""

_TAIL = 4000  # bytes at the end of an output that are read
_LINES = 10  # lines of it that are kept
_LINE = 500  # characters of each
_MOST = 1000  # records of jobs of other accounts, or without a record of the submission, that are read

_REASONS = (
    ("cancelled", re.compile(r"TERM_(?:FORCE_)?(?:OWNER|ADMIN)\b")),
    ("timeout", re.compile(r"TERM_RUNLIMIT\b|PBS status -29\b|\bh_rt limit\b")),
    ("lost", re.compile(r"TERM_(?:PREEMPT|REQUEUE)")),
)
"""Reasons of LSF, PBS and Grid Engine for the end of a job that are no failure of its script."""
_BEFORE_GROUPS = "it ended before one of its worker groups had started"


class JobEnd(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``jobs/NAME.end``."""

    name: Word
    """Name of the job; that of a script without a record is new."""
    kind: EndKind
    """Whether the next job of its lane may be expected to work."""
    why: Text = ""
    """Exit code, reason of the batch system, or error of the supervisor."""
    job: Word = ""
    """Id in the batch system; empty if it is unknown."""
    lane: Text = ""
    """Lane for which the job was submitted; empty if a person submitted it."""
    session: Word = ""
    """Entry of the session of the executor that owned the job; empty without one."""
    output: Annotated[tuple[Text, ...], Meta(max_length=100)] = ()
    """Last lines of its output, escaped."""


class ReadEnd(NamedTuple):
    """Record of an end, with what its file says."""

    end: JobEnd
    age: float
    """Seconds since the record was written, by the clock that dates the files."""
    owner: int
    """Account of the file."""


_decoder = msgspec.json.Decoder(JobEnd)


def _path(spool: Spool, name: str) -> str:
    return f"{spool.layout.jobs}/{name}.end"


def output_path(spool: Spool, name: str) -> str:
    """Return the path of the output of a job, unless a directive sets another.

    The batch system opens it by this path. Where other accounts can replace the spool, they could lead it elsewhere, so
    there it is below the submitting account's own directory.
    """
    return f"{state_directory()}/jobs/{name}.out" if spool.replaceable else f"{spool.layout.jobs}/{name}.out"


def last_lines(path: str) -> tuple[str, ...]:
    """Return the last lines of a job's output, bounded and escaped; none for a file of another account."""
    with contextlib.suppress(OSError, SpoolpoolError, ValueError), files.reading(path, Trust().check) as (fd, status):
        tail = file_content.read_at(fd, _TAIL, max(0, status.st_size - _TAIL)).decode(errors="replace")
        lines = [line for line in map(str.strip, tail.splitlines()) if line]
        return tuple(escape_line(line)[-_LINE:] for line in lines[-_LINES:])
    return ()


def has_started(spool: Spool, name: str) -> bool:
    """Return whether a group of a job has registered: the mark counts only if it belongs to this account."""
    path = started_mark(spool, name)
    with contextlib.suppress(OSError):
        return files.exists(path) and files.owner(path) == os.geteuid()  # a look-up alone may be answered from a cache
    return False


def read_end(spool: Spool, name: str, now: float, *, own: bool = True) -> ReadEnd | None:
    """Return the recorded end of a job; None without a valid one. ``own``: only of this account."""
    found: list[os.stat_result] = []

    def check(fd: int, path: str) -> os.stat_result:
        found.append(Trust().check(fd, path) if own else files.regular_status(fd, path))
        return found[-1]

    end = records.read(_path(spool, name), _decoder, check=check)
    if end is None or end.name != name:
        return None
    return ReadEnd(end, now - found[-1].st_mtime, found[-1].st_uid)


def read_ends(spool: Spool, now: float, known: set[str]) -> Iterator[ReadEnd]:
    """Yield the recorded ends of jobs of all accounts but the ``known`` ones, up to a limit."""
    names = [name for name in map(ended_job_of, files.list_names(spool.layout.jobs)) if name and name not in known]
    for name in names[:_MOST]:
        end = read_end(spool, name, now, own=False)
        if end is not None:
            yield end


def write_end(spool: Spool, end: JobEnd) -> bool:
    """Record an end, unless one is recorded; harmless when repeated. Return whether this account has a record of it."""
    path = _path(spool, end.name)
    with contextlib.suppress(OSError):  # another process was first; or nothing can be written: it is concluded again
        spool.write_own(path, [msgspec.json.encode(end)])
        return True
    return read_end(spool, end.name, 0.0) is not None


def age_without_record(spool: Spool, name: str, age: float) -> float:
    """Return the seconds since the end of a job of which no record can be written, the same end at each look.

    That is the date of its output, or else of its submission, which was ``age`` seconds ago. "Just now" would begin the
    pause of its lane again at each look.
    """
    with contextlib.suppress(OSError):
        path = output_path(spool, name)
        printed = files.mtime_ns(path) if files.owner(path) == os.geteuid() else None
        submitted = files.mtime_ns(f"{spool.layout.jobs}/{name}.json")
        if printed is not None and submitted is not None:
            return min(age, max(0.0, age - (printed - submitted) / 1e9))
    return age


def remove_end(spool: Spool, name: str) -> None:
    """Remove the record of an end, and the mark of the groups."""
    for path in (_path(spool, name), started_mark(spool, name)):
        with contextlib.suppress(OSError):
            files.remove(path)


def forget_requeued(spool: Spool, name: str) -> None:
    """Remove the end of a job that runs: it was requeued. Its mark goes too, since the groups are those before."""
    if files.exists(_path(spool, name)):
        remove_end(spool, name)


def conclude(
    spool: Spool, name: str, told: EndedJob | None, *, lane: str = "", session: str = "", vanished: bool
) -> JobEnd | None:
    """Return how a job ended that has left the queue; None if that is not known yet.

    ``told``: by the batch system. ``vanished``: the job is so old that the batch system would know it, if it waited.
    """
    path = (told.output if told else "") or output_path(spool, name)
    started, began = has_started(spool, name), files.exists(output_path(spool, name))
    if told is None and not (started or began or vanished):
        return None
    kind = _kind(told, started=started, began=began)
    why = "" if told is None else _describe(told)
    lines: tuple[str, ...] = ()
    if kind == "failed":
        lines = last_lines(path)
        if not lines:
            why = "; ".join(filter(None, (why, f"it printed nothing to {open_directory.display_path(path)}")))
            if not (began or files.exists(path)):
                why += f". Do the nodes see {spool.path}? It must lie on a filesystem that they share"
        if not started:
            why = f"{_BEFORE_GROUPS} ({why})" if why else _BEFORE_GROUPS
    return JobEnd(
        name=name,
        kind=kind,
        why=escape_line(why)[:_TAIL],
        job=escape_line(told.id) if told else "",
        lane=lane,
        session=session,
        output=lines,
    )


def _kind(told: EndedJob | None, *, started: bool, began: bool) -> EndKind:
    if told is None:  # without any output it was cancelled before it began
        return "done" if started else "failed" if began else "cancelled"
    state = next((state for state, words in _REASONS if words.search(told.reason)), told.state)
    if state == "cancelled" or told.exit_status == -signal.SIGTERM:  # some systems give only the signal
        return "cancelled"
    if state == "lost":
        return "lost"
    return "failed" if state == "failed" or not started else "done"


def _describe(told: EndedJob) -> str:
    """Return the end that a batch system tells, in words."""
    status = told.exit_status
    code = "" if not status else signal_name(-status) if status < 0 else f"exit code {status}"
    return ", ".join(filter(None, (told.reason or told.state.upper(), code)))
