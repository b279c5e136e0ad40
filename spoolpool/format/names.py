"""Names and paths of a spool, and nothing else: no disk is touched here.

Every name on disk is made by one function in this module and read by the regular expression beside
it. What does not parse is not ours, and is left alone. ``docs/format.md`` describes the tree.
"""

from __future__ import annotations

import functools
import os
import re
import time
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from spoolpool import settings
from spoolpool.errors import BadRequest

FORMAT = 1
"""Version of the tree and of the file format."""

NAME_LIMIT = 254
"""Bytes of a lane's name: less than what every filesystem takes for one name (255)."""

AUTOSCALE_LOCK = "autoscale.lock"
"""In ``jobs/``: whoever holds its lock scales the spool."""

CANCELLED = "cancelled"
"""Stands in the place of a worker in the name of a task that was cancelled before anybody claimed it."""

# ASCII: \d would take the digits of every script, which are not the ones that are written
_ID = r"\d{3}-[0-9a-f]{14}-[0-9a-f]{10}"
_TASK = rf"(?P<task>{_ID})"
_TOKEN = re.compile(
    _TASK + r"\.(?P<claim>\d{6})\.(?P<attempt>\d{2})(?:\.(?P<worker>[0-9a-f]{16}|cancelled))?", re.ASCII
)
_TASK_ID = re.compile(_TASK, re.ASCII)
_EDGE = re.compile(rf"({_ID})\.({_ID})", re.ASCII)
_WORKER = re.compile(r"[0-9a-f]{16}")
_BUCKET = re.compile(r"(?P<priority>\d{3})-(?P<time>[0-9a-f]{14})-(?P<submitter>[0-9a-f]{8})", re.ASCII)
_LANE = re.compile(
    r"(?P<queue>[A-Za-z0-9][A-Za-z0-9_-]{0,31})"
    r"\.r(?P<ranks>[1-9]\d{0,6})t(?P<threads>[1-9]\d{0,3})g(?P<gpus>0|[1-9]\d{0,2})"
    r"\.py(?P<python>\d\.\d{1,2})"
    r"(?P<tags>(?:\+[A-Za-z0-9][A-Za-z0-9_.=-]{0,63})*)"
    r"(?:@(?P<user>0|[1-9]\d{0,9}))?",
    re.ASCII,
)
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,63}")
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_OBJECT = re.compile(r"[0-9a-f]{32}")
_OBJECT_FILE = re.compile(rf"{_OBJECT.pattern}(?:@(?:0|[1-9]\d{{0,9}}))?", re.ASCII)
_CACHE_KEY = re.compile(r"[0-9a-f]{64}")
_HOLD = re.compile(rf"({_OBJECT_FILE.pattern})\.([0-9a-f]{{8}})", re.ASCII)
_UNFINISHED = re.compile(
    rf"spool\.json|{_TASK}|{_WORKER.pattern}\.info|{_OBJECT.pattern}\.{_SESSION.pattern}|{_CACHE_KEY.pattern}\.{_WORKER.pattern}",
    re.ASCII,
)
_PART = re.compile(r"[0-9a-f]{2}")
_ACCOUNT = re.compile(r"0|[1-9][0-9]{0,9}")
_MEETING = re.compile(r"spoolpool-doctor-[0-9a-f]{8}")
_JOB_FILE = re.compile(r"(?P<job>spool-worker-[0-9a-f]{16})\.(?P<what>json|out)")
_LOG = re.compile(r"(?P<worker>[0-9a-f]{16})\.(?P<rank>0|[1-9]\d{0,6})(?:\.(?P<part>[1-9]\d{0,8}))?", re.ASCII)


class TaskFile(NamedTuple):
    """The name of a task file: which task, which claim of it, which attempt, and whose it is.

    ``claim`` rises at every requeue, take-over and give-back, so that no name is ever made twice and a
    late or repeated request finds no source. ``attempt`` rises only when a worker died.
    """

    task: str
    claim: int
    attempt: int
    worker: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return _task_file_name(self)

    def claimed_by(self, worker: str) -> TaskFile:
        """This claim in the hands of a worker (or of :data:`CANCELLED`)."""
        return TaskFile(self.task, self.claim, self.attempt, worker)

    def released(self) -> TaskFile:
        """Waiting again, at no cost in attempts."""
        return TaskFile(self.task, self.claim + 1, self.attempt)

    def requeued(self) -> TaskFile:
        """Waiting again after a worker died."""
        return TaskFile(self.task, self.claim + 1, min(self.attempt + 1, 99))

    def reassigned_to(self, worker: str) -> TaskFile:
        """In the hands of a recoverer."""
        return TaskFile(self.task, self.claim + 1, self.attempt, worker)


@functools.lru_cache(maxsize=64)
def _task_file_name(task_file: TaskFile) -> str:
    """Remembered, since each of the two sides needs it about ten times for one task."""
    stem = f"{task_file.task}.{task_file.claim:06d}.{task_file.attempt:02d}"
    return f"{stem}.{task_file.worker}" if task_file.worker else stem


def parse_task_file(name: str) -> TaskFile | None:
    """Read what :attr:`Token.name` made; None if it did not."""
    match = _TOKEN.fullmatch(name)
    if match is None:
        return None
    task, claim, attempt, worker = match.groups()
    return TaskFile(task, int(claim), int(attempt), worker or "")


def new_task_id(priority: int = settings.PRIORITY) -> str:
    """A new task's id: sorts by priority (greater first), then by time, and is unique.

    ``time`` is this host's clock in microseconds: it orders, and nothing else is concluded from it.
    """
    if not -499 <= priority <= 499:
        raise BadRequest(f"The priority of a task is {priority}; it must lie between -499 and 499.")
    return f"{499 - priority:03d}-{time.time_ns() // 1000:014x}-{os.urandom(5).hex()}"


def is_task_id(text: str) -> bool:
    """Whether this is a whole task id."""
    return _TASK_ID.fullmatch(text) is not None


def submitted_at(task: str) -> float:
    """When a task was submitted, as its id says: seconds since the epoch, by the submitting host's clock."""
    return int(task[4:18], 16) / 1e6


class DependencyLink(NamedTuple):
    """The name of a file in ``needs/SESSION/``: a task of that session, and one that needs its outcome."""

    task: str
    needed_by: str

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.task}.{self.needed_by}"


def parse_link(name: str) -> DependencyLink | None:
    """Read what :attr:`Edge.name` made; None if it did not."""
    match = _EDGE.fullmatch(name)
    return None if match is None else DependencyLink(*match.groups())


class ObjectLease(NamedTuple):
    """The name of a file in ``needs/SESSION/``: an object's file, and the life of the session that uses it."""

    object: str
    life: str

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.object}.{self.life}"


def parse_lease(name: str) -> ObjectLease | None:
    """Read what :attr:`Hold.name` made; None if it did not."""
    match = _HOLD.fullmatch(name)
    return None if match is None else ObjectLease(*match.groups())


def new_worker_id() -> str:
    """One incarnation of a worker: never used again."""
    return os.urandom(8).hex()


def is_worker_id(text: str) -> bool:
    """Whether :func:`new_worker_id` could have made it."""
    return _WORKER.fullmatch(text) is not None


def new_submitter_id() -> str:
    """Part of the names of the buckets that one submitter fills."""
    return os.urandom(4).hex()


def submitter_of(session: str) -> str:
    """The same for all processes that submit to a named session, one after the other."""
    return f"{zlib.crc32(session.encode()):08x}"


def bucket_name(task: str, submitter: str) -> str:
    """The bucket that begins with this task: buckets sort as their first tasks do."""
    return f"{task[:18]}-{submitter}"


def is_bucket(text: str) -> bool:
    """Whether :func:`bucket_name` could have made it."""
    return _BUCKET.fullmatch(text) is not None


def series_of(bucket: str) -> tuple[str, str]:
    """The buckets that one submitter fills, one after the other, with tasks of one priority."""
    priority, _, submitter = bucket.split("-")
    return priority, submitter


class Lane(NamedTuple):
    """What tasks ask for: those that ask for the same thing wait together."""

    queue: str
    ranks: int
    threads: int
    gpus: int
    python: str
    tags: tuple[str, ...] = ()
    """What a group must be tagged with; sorted, each once."""
    user: int | None = None
    """Account whose tasks they are, as whoever made the directory says; None in private spools."""

    @property
    def name(self) -> str:
        """The directory's name."""
        return _lane_name(self)


@functools.lru_cache(maxsize=256)
def _lane_name(lane: Lane) -> str:
    shape = f"{lane.queue}.r{lane.ranks}t{lane.threads}g{lane.gpus}.py{lane.python}"
    by = "" if lane.user is None else f"@{lane.user}"
    return "+".join((shape, *lane.tags)) + by


@functools.lru_cache(maxsize=256)
def parse_lane(name: str) -> Lane | None:
    """Read what :attr:`Lane.name` made; None if it did not."""
    match = _LANE.fullmatch(name)
    if match is None or len(name) > NAME_LIMIT:
        return None
    queue, ranks, threads, gpus, python, tagged, user = match.groups()
    tags = tuple(tagged.split("+")[1:])
    if tags != tuple(sorted(set(tags))):
        return None
    return Lane(queue, int(ranks), int(threads), int(gpus), python, tags, None if user is None else int(user))


@functools.lru_cache(maxsize=256)
def check_lane(lane: Lane) -> Lane:
    """Return a lane, or raise :class:`BadRequest` where its tags are none, or too many for a directory's name."""
    check_tags(lane.tags)
    if len(lane.name) > NAME_LIMIT:
        raise BadRequest(
            f"The queue and the tags of a task make a name of {len(lane.name)} bytes ({lane.name}); a directory's may "
            f"have {NAME_LIMIT}. Ask for fewer tags, or for one that stands for several."
        )
    return lane


def is_session(text: str) -> bool:
    """Whether it can name a session's directories."""
    return _SESSION.fullmatch(text) is not None


def check_session(name: str) -> str:
    """Return a session's name, or raise :class:`BadRequest` where it cannot name a directory."""
    if not is_session(name):
        raise BadRequest(
            f"A session cannot be called {name!r}: use up to 64 letters, digits, '_', '-' and '.', "
            "and begin with a letter or digit."
        )
    return name


def check_queue(name: str) -> str:
    """Return a queue's name, or raise :class:`BadRequest` where it cannot be part of a directory's."""
    if _QUEUE.fullmatch(name) is None:
        raise BadRequest(
            f"A queue cannot be called {name!r}: use up to 32 letters, digits, '_' and '-', "
            "and begin with a letter or digit."
        )
    return name


def check_tags(names: Iterable[str]) -> tuple[str, ...]:
    """Return tags as a lane has them, or raise :class:`BadRequest` where one cannot be part of a directory's name."""
    tags = tuple(sorted(set(names)))
    for name in tags:
        if _TAG.fullmatch(name) is None:
            raise BadRequest(
                f"A tag cannot be called {name!r}: use up to 64 letters, digits, '_', '.', '-' and '=', "
                "and begin with a letter or digit."
            )
    return tags


def is_object_id(text: str) -> bool:
    """Whether it names an object: the 128-bit hash of what is in it, in hex."""
    return _OBJECT.fullmatch(text) is not None


def is_object_file(text: str) -> bool:
    """Whether :meth:`Layout.object` could have made it."""
    return _OBJECT_FILE.fullmatch(text) is not None


def is_cache_key(text: str) -> bool:
    """Whether it names a kept result: the 256-bit hash of its call, in hex."""
    return _CACHE_KEY.fullmatch(text) is not None


def is_cache_part(text: str) -> bool:
    """Whether it is a directory of kept results: the first two digits of their keys."""
    return _PART.fullmatch(text) is not None


def is_account(text: str) -> bool:
    """Whether it is the number of an account."""
    return _ACCOUNT.fullmatch(text) is not None


def is_unfinished(text: str) -> bool:
    """Whether it can stand in ``tmp/`` while something is written: spool.json, a task, a worker's entry, an object."""
    return _UNFINISHED.fullmatch(text) is not None


def rendezvous_name() -> str:
    """A new directory in which the two sides of ``spool doctor`` talk."""
    return f"spoolpool-doctor-{os.urandom(4).hex()}"


def is_rendezvous(text: str) -> bool:
    """Whether :func:`meeting_name` could have made it."""
    return _MEETING.fullmatch(text) is not None


def session_of(text: str) -> str | None:
    """The session of a file in ``sessions/``; None if it is none."""
    name = text.removesuffix(".json")
    return name if name != text and is_session(name) else None


def writer_of(text: str) -> str | None:
    """The writer of a journal; None if it is none."""
    name = text.removesuffix(".jsonl")
    return name if name != text and is_session(name) else None


def new_job_name() -> str:
    """The name of a new batch job: it is found again by it."""
    return f"spool-worker-{os.urandom(8).hex()}"


def job_of(text: str) -> str | None:
    """The job of a record in ``jobs/``; None if it is none."""
    match = _JOB_FILE.fullmatch(text)
    return match["job"] if match and match["what"] == "json" else None


def is_job_file(text: str) -> bool:
    """Whether it is the record of a batch job, or what one printed."""
    return _JOB_FILE.fullmatch(text) is not None


class OutputFile(NamedTuple):
    """A file of captured output: what one rank of a worker group printed, in the order of its tasks."""

    worker: str
    rank: int
    part: int = 0
    """Rises when the file before grew too large."""

    @property
    def name(self) -> str:
        """The file's name."""
        stem = f"{self.worker}.{self.rank}"
        return f"{stem}.{self.part}" if self.part else stem


def parse_output_file(name: str) -> OutputFile | None:
    """Read what :attr:`Log.name` made; None if it did not."""
    match = _LOG.fullmatch(name)
    return match and OutputFile(match["worker"], int(match["rank"]), int(match["part"] or 0))
