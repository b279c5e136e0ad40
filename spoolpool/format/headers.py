"""The records: what the headers of task and outcome files say. Reading one never unpickles anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeVar

import msgspec

from spoolpool import settings
from spoolpool.errors import BadTaskFile
from spoolpool.format.names import (
    is_bucket,
    is_cache_key,
    is_object_file,
    is_object_id,
    is_session,
    is_task_id,
    parse_lane,
)

Kind = Literal["result", "error", "cancelled", "lost"]
"""How a task ended: with a value, with an exception, not at all since it was cancelled, or with the
death of its workers."""


class TaskHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a task asks for and where it came from."""

    task: str
    """Task id."""
    session: str
    """Inbox that gets the result."""
    lane: str
    """Name of the lane."""
    bucket: str
    """Directory in the lane to which the task also returns when it must wait again."""
    name: str = ""
    """What is called, for people."""
    user: str = ""
    """Account that says it submitted (the file's owner is what counts)."""
    host: str = ""
    """Where it was submitted."""
    submitted: float = 0.0
    """Seconds since the epoch on the submitting host's clock."""
    max_attempts: int = settings.MAX_ATTEMPTS
    """Claims that may end with the death of the worker."""
    retries: int = 0
    """Times that it is tried again after it raised."""
    retry_delay: float = 1.0
    """Seconds before the first of these; each further one waits twice as long."""
    time_limit: float = 0.0
    """Seconds after which the call is interrupted; none if 0."""
    cwd: str = ""
    """Working directory of the call; the worker's own if empty."""
    init: str = ""
    """Object id of the session's ``init_function``."""
    spool: str = ""
    """Id of the spool for which it was made; no worker of another runs it."""
    needs: dict[str, tuple[str, ...]] = {}
    """Tasks whose outcomes the call's arguments refer to, by their sessions."""
    key: str = ""
    """Fingerprint of the call, by which its session finds it again; empty where it is not to be."""

    objects: dict[str, tuple[int, ...]] = {}
    """Objects that the call's arguments refer to, by their files' names; with the places of the call's buffers that
    stand in them, if any."""
    not_before: float = 0.0
    """Seconds since the epoch before which it does not start, by the clock that dates the spool's files."""
    env: dict[str, str] = {}
    """Variables that the function finds in its environment."""
    memory: int = 0
    """Bytes of memory per rank that were asked for, as information; nothing was said if 0."""
    error_log_file: str = ""
    """File to which a rank appends function, arguments and traceback when the function raises; none if empty."""
    cache: str = ""
    """Key under which its result is kept in a cache, by whoever collects it; not at all if empty."""

    @property
    def held(self) -> bool:
        """Whether it is held back when it is submitted: for others, or until its time has come."""
        return bool(self.needs) or self.not_before > 0

    def needed(self) -> Iterator[tuple[str, str]]:
        """Session and id of each task that it needs."""
        return ((session, each) for session, tasks in self.needs.items() for each in tasks)


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An exception in words."""

    type: str
    """Qualified name of its class."""
    message: str
    """Its text, at most 4 KiB."""
    traceback: str = ""
    """The remote traceback with rank and host, at most 64 KiB."""
    rank: int = 0
    """Lowest rank that raised it."""
    host: str = ""
    """Where that rank ran."""


class OutcomeHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How one claim of a task ended."""

    task: str
    """Task id."""
    kind: Kind
    """How it ended."""
    worker: str
    """Worker that says so."""
    host: str = ""
    """Host of its rank 0."""
    attempt: int = 1
    """Which attempt it was."""
    started: float = 0.0
    """Seconds since the epoch, the worker host's clock."""
    ended: float = 0.0
    """Seconds since the epoch, the worker host's clock."""
    ranks: int = 1
    """Ranks whose return values the payload holds."""
    failure: Failure | None = None
    """The exception, where there is one."""


_encoder = msgspec.json.Encoder()
_task_decoder = msgspec.json.Decoder(TaskHeader)
_outcome_decoder = msgspec.json.Decoder(OutcomeHeader)

Header = TypeVar("Header")


def attempts(header: TaskHeader) -> int:
    """All attempts that a task has: those that may end with a worker's death, and those that may raise.

    They are counted together, to 99: a name has two digits for them.
    """
    return min(header.max_attempts + header.retries, 99)


def encode(header: TaskHeader | OutcomeHeader) -> bytes:
    """A header as JSON."""
    return _encoder.encode(header)


def decode(decoder: msgspec.json.Decoder[Header], data: bytes, path: str) -> Header:
    """Decode the header of the file at ``path``; raise :class:`BadTaskFile` where it is no such header."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadTaskFile(
            f"The header of {path} cannot be read: {error}. It was written by something else, or by a "
            "version of spoolpool that this one does not know."
        ) from None


def decode_task(data: bytes, path: str) -> TaskHeader:
    """Read a task's header, with every name in it checked before it can become part of a path."""
    header = decode(_task_decoder, data, path)
    if not (header.init or header.objects or header.cache or header.needs) and (
        is_task_id(header.task) and is_session(header.session) and parse_lane(header.lane) and is_bucket(header.bucket)
    ):  # as most
        return header
    wrong = [
        f"{field} {value!r}"
        for field, value, good in (
            ("task", header.task, is_task_id(header.task)),
            ("session", header.session, is_session(header.session)),
            ("lane", header.lane, parse_lane(header.lane)),
            ("bucket", header.bucket, is_bucket(header.bucket)),
            ("init", header.init, not header.init or is_object_id(header.init)),
            ("objects", list(header.objects), all(map(is_object_file, header.objects))),
            ("cache", header.cache, not header.cache or is_cache_key(header.cache)),
            ("needs", header.needs, all(is_session(s) and is_task_id(t) for s, t in header.needed())),
        )
        if not good
    ]
    if wrong:
        raise BadTaskFile(f"The header of {path} names {', '.join(wrong)}: not a name of a spool's.")
    return header


def decode_outcome(data: bytes, path: str) -> OutcomeHeader:
    """Read an outcome's header."""
    return decode(_outcome_decoder, data, path)
