"""Names of files and directories in a spool: each is made by one function and read by one pattern. No I/O.

A name that does not parse does not belong to spoolpool and is left alone. ``docs/format.md`` describes the tree.
"""

from __future__ import annotations

import functools
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from spoolpool import settings
from spoolpool.errors import BadRequest
from spoolpool.system.patterns import lazy_pattern

FORMAT = 1
"""Version of the tree and of the file format."""

NAME_LIMIT = 254
"""Limit in bytes of a lane's name; every filesystem takes names of 255 bytes."""

AUTOSCALE_LOCK = "autoscale.lock"
"""File in ``jobs/``; the process that holds its lock scales the spool."""

CANCELLED = "cancelled"
"""Replaces the worker id in the name of a task that was cancelled before a worker claimed it."""

# re.ASCII: without it \d matches the digits of every script
_TASK = r"\d{3}-[0-9a-f]{14}-[0-9a-f]{10}"
_WORKER = r"[0-9a-f]{16}"
_QUEUE = r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}"
_TAG = r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,63}"
_SESSION = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_ACCOUNT = r"0|[1-9]\d{0,9}"
_OBJECT = r"[0-9a-f]{32}"
_OBJECT_FILE = rf"{_OBJECT}(?:@(?:{_ACCOUNT}))?"
_CACHE_KEY = r"[0-9a-f]{64}"
_UNFINISHED = rf"spool\.json|{_TASK}|{_WORKER}\.info|{_OBJECT}\.{_SESSION}|{_CACHE_KEY}\.{_WORKER}"
_TASK_FILE = lazy_pattern(
    rf"({_TASK})\.(\d{{6}})\.(\d{{2}})(?:-(\d{{9}})-(\d{{2}}))?(?:x(\d{{5}})-(\d{{5}}))?(?:\.({_WORKER}|{CANCELLED}))?",
    re.ASCII,
)
_LINK = lazy_pattern(rf"({_TASK})\.({_TASK})", re.ASCII)
_MOST_SECONDS = 999_999_999
MOST_CALLS = 99_999
"""Calls of a pack, at most."""
_RUN = r"[0-9a-f]{8}"
_LEASE = lazy_pattern(rf"({_OBJECT_FILE})\.({_RUN})", re.ASCII)
_ENTRY = lazy_pattern(rf"({_SESSION})(?:~{_RUN})?", re.ASCII)
_LANE = lazy_pattern(
    rf"({_QUEUE})\.r([1-9]\d{{0,6}})t([1-9]\d{{0,3}})g(0|[1-9]\d{{0,2}})"
    rf"\.py(\d\.\d{{1,2}})((?:\+{_TAG})*)(?:@({_ACCOUNT}))?",
    re.ASCII,
)
_JOB_FILE = lazy_pattern(r"(spool-worker-[0-9a-f]{16})\.(json|out|end|started)")
_OUTPUT_FILE = lazy_pattern(rf"({_WORKER})\.(0|[1-9]\d{{0,6}})(?:\.([1-9]\d{{0,8}}))?", re.ASCII)


def _matcher(text: str) -> Callable[[str], bool]:
    """Return a function that tells whether a whole text matches a pattern."""
    expression = lazy_pattern(text, re.ASCII)
    return lambda name: expression.fullmatch(name) is not None


is_task_id = _matcher(_TASK)
"""Return whether a text is a task id (:func:`new_task_id`)."""
is_worker_id = _matcher(_WORKER)
"""Return whether a text is a worker id (:func:`new_worker_id`)."""
is_bucket = _matcher(r"\d{3}-[0-9a-f]{14}-[0-9a-f]{8}")
"""Return whether a text is the name of a bucket (:func:`bucket_name`)."""
is_session = _matcher(_SESSION)
"""Return whether a text can name the directories of a session."""
is_object_id = _matcher(_OBJECT)
"""Return whether a text is an object id: the 128-bit hash of the content, in hex."""
is_object_file = _matcher(_OBJECT_FILE)
"""Return whether a text is the name of an object's file (:meth:`spoolpool.format.layout.Layout.object`)."""
is_cache_key = _matcher(_CACHE_KEY)
"""Return whether a text is the key of a cached result: the 256-bit hash of its call, in hex."""
is_cache_part = _matcher(r"[0-9a-f]{2}")
"""Return whether a text names a directory of cached results: the first two digits of their keys."""
is_account = _matcher(_ACCOUNT)
"""Return whether a text is the number of an account."""
is_unfinished = _matcher(_UNFINISHED)
"""Return whether a name can occur in ``tmp/``: an unfinished spool.json, task, worker entry, object, cached result."""
is_rendezvous = _matcher(r"spoolpool-doctor-[0-9a-f]{8}")
"""Return whether a text is a directory of ``spool doctor`` (:func:`rendezvous_name`)."""
is_job_file = _matcher(_JOB_FILE.pattern)
"""Return whether a name is the record of a batch job or its output."""
_is_queue = _matcher(_QUEUE)
_is_tag = _matcher(_TAG)


class TaskFile(NamedTuple):
    """Name of a task file: task, claim number, attempt, the worker that holds the claim, and the time that it needs.

    ``claim`` rises at every requeue, take-over and release, so that no name is ever made twice and a late or repeated
    request finds no source. ``attempt`` rises only when a worker died. The time is in the name, so that a worker
    decides by a listing whether it has enough.
    """

    task: str
    claim: int
    attempt: int
    worker: str = ""
    seconds: int = 0
    """Seconds that a group must have left to claim the task; 0 if that is not known."""
    releases: int = 0
    """Number of times that the task was given back at the end of a walltime."""
    calls: int = 0
    """Number of calls of a pack; 0 for a task with one call."""
    first: int = 0
    """Number of the first calls of a pack that have outcomes, at least: ``attempt`` is that of the call after them."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return _task_file_name(self)

    @property
    def is_open(self) -> bool:
        """Whether this is the name of an open pack (:func:`open_pack_file`)."""
        return not self.claim and bool(self.calls)

    def claimed_by(self, worker: str) -> TaskFile:
        """Return the name of this claim when it belongs to a worker (or to :data:`CANCELLED`)."""
        return self._replace(worker=worker)

    def released(self) -> TaskFile:
        """Return the name after the worker gave the task back: it is queued again, with the same attempt."""
        return self._replace(claim=self.claim + 1, worker="")

    def needing(self, seconds: float, *, releases: int | None = None) -> TaskFile:
        """Return the name of a task that needs at least this time, rounded up."""
        count = self.releases if releases is None else min(releases, 99)
        return self._replace(seconds=max(self.seconds, min(math.ceil(seconds), _MOST_SECONDS)), releases=count)

    def requeued(self) -> TaskFile:
        """Return the name after the worker died: it is queued again, with the next attempt."""
        return self._replace(claim=self.claim + 1, attempt=min(self.attempt + 1, 99), worker="")

    def advanced(self, first: int) -> TaskFile:
        """Return the name of a pack of which so many calls have an outcome: the next one begins its first attempt."""
        if first <= self.first:
            return self
        return self._replace(first=min(first, self.calls), attempt=1, seconds=0, releases=0)

    def reassigned_to(self, worker: str) -> TaskFile:
        """Return the name after a recoverer took the claim over."""
        return self._replace(claim=self.claim + 1, worker=worker)


def open_pack_file(task: str) -> TaskFile:
    """Return the name of an open pack, to which its submitter appends calls: the number of calls is not known yet."""
    return TaskFile(task, 0, 1, calls=1)


@functools.lru_cache(maxsize=64)
def _task_file_name(task_file: TaskFile) -> str:
    """Cached: each side needs the name about ten times for one task."""
    stem = f"{task_file.task}.{task_file.claim:06d}.{task_file.attempt:02d}"
    if task_file.seconds or task_file.releases:
        stem += f"-{task_file.seconds:09d}-{task_file.releases:02d}"
    if task_file.calls:
        stem += f"x{task_file.calls:05d}-{task_file.first:05d}"
    return f"{stem}.{task_file.worker}" if task_file.worker else stem


def parse_task_file(name: str) -> TaskFile | None:
    """Parse :attr:`TaskFile.name`; None for any other name."""
    match = _TASK_FILE.fullmatch(name)
    if match is None:
        return None
    task, claim, attempt, seconds, releases, calls, first, worker = match.groups()
    if seconds is None and calls is None:  # the usual case
        return TaskFile(task, int(claim), int(attempt), worker or "")
    found = TaskFile(task, int(claim), int(attempt), worker or "", int(seconds or 0), int(releases or 0))
    if seconds is not None and not (found.seconds or found.releases):  # the same task would have two names
        return None
    if calls is None:
        return found
    found = found._replace(calls=int(calls), first=int(first))
    return found if found.calls and found.first <= found.calls else None


def new_task_id(priority: int = settings.PRIORITY) -> str:
    """Return a new, unique task id. Ids sort by priority (greater first), then by time.

    The time is this host's clock in microseconds. It is used for the order and for nothing else.
    """
    if not -499 <= priority <= 499:
        raise BadRequest(f"The priority of a task is {priority}; it must lie between -499 and 499.")
    return f"{499 - priority:03d}-{time.time_ns() // 1000:014x}-{os.urandom(5).hex()}"


def submitted_at(task: str) -> float:
    """Return the time of submission that a task id contains: seconds since the epoch, the submitting host's clock."""
    return int(task[4:18], 16) / 1e6


class DependencyLink(NamedTuple):
    """Name of a file in ``needs/SESSION/``: a task of that session, and a task that needs its outcome."""

    task: str
    needed_by: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.task}.{self.needed_by}"


def parse_link(name: str) -> DependencyLink | None:
    """Parse :attr:`DependencyLink.name`; None for any other name."""
    match = _LINK.fullmatch(name)
    return match and DependencyLink(*match.groups())


class ObjectLease(NamedTuple):
    """Name of a file in ``needs/SESSION/``: an object's file, and the run of the session that uses the object."""

    object: str
    run: str
    """Random; a named session has several runs, one after another."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.object}.{self.run}"


def parse_lease(name: str) -> ObjectLease | None:
    """Parse :attr:`ObjectLease.name`; None for any other name."""
    match = _LEASE.fullmatch(name)
    return match and ObjectLease(*match.groups())


def name_aside(object_file: str) -> str:
    """Return a new name, beside the objects, for one that is put aside; :func:`parse_lease` parses it too."""
    return ObjectLease(object_file, new_submitter_id()).name


def new_worker_id() -> str:
    """Return the id of a new worker group; ids are never reused."""
    return os.urandom(8).hex()


def new_submitter_id() -> str:
    """Return a random submitter id, which ends the names of the buckets that one submitter fills."""
    return os.urandom(4).hex()


def submitter_of(session: str) -> str:
    """Return the submitter id of a named session: the same for all processes that open it, one after another."""
    return f"{zlib.crc32(session.encode()):08x}"


def bucket_name(task: str, submitter: str) -> str:
    """Return the name of the bucket whose first task is ``task``: buckets sort like their first tasks."""
    return f"{task[:18]}-{submitter}"


def series_of(bucket: str) -> tuple[str, str]:
    """Return priority and submitter id of a bucket; a submitter fills the buckets of a series one after another."""
    priority, _, submitter = bucket.split("-")
    return priority, submitter


class Lane(NamedTuple):
    """Requirements of tasks; tasks with equal requirements share a directory."""

    queue: str
    ranks: int
    threads: int
    gpus: int
    python: str
    tags: tuple[str, ...] = ()
    """Tags that a group must have; sorted, without duplicates."""
    user: int | None = None
    """Account of the tasks, as claimed by the process that made the directory; None in private spools."""

    @property
    def name(self) -> str:
        """Name of the directory."""
        return _lane_name(self)


@functools.lru_cache(maxsize=256)
def _lane_name(lane: Lane) -> str:
    shape = f"{lane.queue}.r{lane.ranks}t{lane.threads}g{lane.gpus}.py{lane.python}"
    user = "" if lane.user is None else f"@{lane.user}"
    return "+".join((shape, *lane.tags)) + user


@functools.lru_cache(maxsize=256)
def parse_lane(name: str) -> Lane | None:
    """Parse :attr:`Lane.name`; None for any other name."""
    match = _LANE.fullmatch(name)
    if match is None or len(name) > NAME_LIMIT:
        return None
    queue, ranks, threads, gpus, python, joined, user = match.groups()
    tags = tuple(joined.split("+")[1:])
    if tags != tuple(sorted(set(tags))):
        return None
    return Lane(queue, int(ranks), int(threads), int(gpus), python, tags, None if user is None else int(user))


@functools.lru_cache(maxsize=256)
def check_lane(lane: Lane) -> Lane:
    """Return a lane; raise :class:`BadRequest` where a tag is invalid or the directory's name would be too long."""
    check_tags(lane.tags)
    if len(lane.name) > NAME_LIMIT:
        raise BadRequest(
            f"Queue and tags of a task make a directory name of {len(lane.name)} bytes ({lane.name}); the limit is "
            f"{NAME_LIMIT}. Ask for fewer tags, or define one tag that stands for several."
        )
    return lane


def check_session(name: str) -> str:
    """Return a session's name; raise :class:`BadRequest` where it cannot name a directory."""
    return _checked("session", name, is_session, "up to 64 letters, digits, '_', '-' and '.'")


def check_queue(name: str) -> str:
    """Return a queue's name; raise :class:`BadRequest` where it cannot be part of a directory's name."""
    return _checked("queue", name, _is_queue, "up to 32 letters, digits, '_' and '-'")


def check_tags(names: Iterable[str]) -> tuple[str, ...]:
    """Return tags sorted and without duplicates; raise :class:`BadRequest` where one cannot be part of a name."""
    rule = "up to 64 letters, digits, '_', '.', '-' and '='"
    return tuple(_checked("tag", name, _is_tag, rule) for name in sorted(set(names)))


def _checked(kind: str, name: str, good: Callable[[str], bool], rule: str) -> str:
    if not good(name):
        raise BadRequest(f"A {kind} cannot be called {name!r}: use {rule}, and begin with a letter or digit.")
    return name


def rendezvous_name() -> str:
    """Return the name of a new directory in which the two sides of ``spool doctor`` communicate."""
    return f"spoolpool-doctor-{os.urandom(4).hex()}"


def session_entry(session: str, run: str) -> str:
    """Return the name of the entry of one run of a named session; that of an unnamed session is its own name."""
    return f"{session}~{run}"


def session_of_entry(entry: str) -> str | None:
    """Return the session of an entry (:func:`session_entry`); None for any other name."""
    match = _ENTRY.fullmatch(entry)
    return match and match[1]


def session_of(name: str) -> str | None:
    """Return the session of a file in ``sessions/``; None for any other name."""
    entry = name.removesuffix(".json")
    return session_of_entry(entry) if entry != name else None


def new_job_name() -> str:
    """Return the name of a new batch job, by which the batch system finds it again."""
    return f"spool-worker-{os.urandom(8).hex()}"


def job_of(name: str) -> str | None:
    """Return the job of a record in ``jobs/``; None for any other name."""
    return _job_of(name, "json")


def ended_job_of(name: str) -> str | None:
    """Return the job of the record of an end in ``jobs/``; None for any other name."""
    return _job_of(name, "end")


def _job_of(name: str, suffix: str) -> str | None:
    match = _JOB_FILE.fullmatch(name)
    return match[1] if match and match[2] == suffix else None


def is_job_name(name: str) -> bool:
    """Return whether a text is the name of a batch job of a spool."""
    return job_of(f"{name}.json") is not None


class OutputFile(NamedTuple):
    """Name of a file of captured output: one rank of a worker group, with its tasks in order."""

    worker: str
    rank: int
    part: int = 0
    """Rises when the previous file grew too large."""

    @property
    def name(self) -> str:
        """Name of the file."""
        stem = f"{self.worker}.{self.rank}"
        return f"{stem}.{self.part}" if self.part else stem


def parse_output_file(name: str) -> OutputFile | None:
    """Parse :attr:`OutputFile.name`; None for any other name."""
    match = _OUTPUT_FILE.fullmatch(name)
    return match and OutputFile(match[1], int(match[2]), int(match[3] or 0))
