"""Records in the headers of task and outcome files. Reading a record never unpickles anything."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from spoolpool import settings
from spoolpool.errors import BadRequest, BadTaskFile
from spoolpool.format.names import (
    MOST_CALLS,
    TaskFile,
    is_bucket,
    is_cache_key,
    is_object_file,
    is_object_id,
    is_session,
    is_task_id,
    parse_lane,
    session_of_entry,
)
from spoolpool.system import records
from spoolpool.system.bounds import Bytes, Count, Positive, Seconds, Timeout
from spoolpool.system.records import BadRecord
from spoolpool.system.user_code import printable

Kind = Literal["result", "error", "cancelled", "lost"]
"""End of a task: with a value, with an exception, by cancellation, or by the death of its workers."""


NO_ENTRIES: dict[str, Any] = {}
"""Empty value for the dicts of a header, which never change: headers of pending tasks share it, to save memory."""


class TaskHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Requirements and origin of a task."""

    task: str
    """Task id."""
    session: str
    """Session that gets the outcome."""
    lane: str
    """Name of the lane."""
    bucket: str
    """Bucket of the task, to which it also returns when it is queued again."""
    name: str = ""
    """Name of the function, for display."""
    label: str = ""
    """Label that the submitter gave, for display."""
    arguments: str = ""
    """Preview of the arguments, for display; empty for a task with a label, or if the submitter sends none."""
    user: str = ""
    """Name of the submitting account, unverified: the owner of the file decides."""
    host: str = ""
    """Submitting host."""
    submitted: Seconds = 0.0
    """Seconds since the epoch on the submitting host's clock."""
    max_attempts: Positive = settings.MAX_ATTEMPTS
    """Claims that may end with the death of the worker."""
    retries: Count = 0
    """Further attempts after the call raised."""
    retry_delay: Timeout = 1.0
    """Seconds before the first retry; doubled for each further one."""
    time_limit: Timeout = 0.0
    """Seconds after which the call is interrupted; 0: no limit."""
    cwd: str = ""
    """Working directory of the call, created if missing; empty: the next field decides."""
    directory: str = ""
    """Working directory of the submitter, in which the call runs without ``cwd``; empty: in that of the worker."""
    init: str = ""
    """Object id of the session's ``init_function``."""
    spool: str = ""
    """Id of the spool of the task; workers of other spools do not run it."""
    needs: dict[str, tuple[str, ...]] = {}
    """Dependencies: tasks with results that the arguments refer to, by their sessions."""
    key: str = ""
    """Fingerprint of the call, by which a resumed session finds the task; empty: it is not found."""

    objects: dict[str, tuple[Count, ...]] = {}
    """Objects that the arguments refer to, by the names of their files. An object that replaces buffers of the call has
    the positions of these buffers."""
    not_before: Seconds = 0.0
    """Earliest start: seconds since the epoch, by the clock that dates the files of the spool."""
    env: dict[str, str] = {}
    """Environment variables of the function."""
    memory: Bytes = 0
    """Requested memory per rank in bytes, for information; 0: not specified."""
    error_log_file: str = ""
    """File to which a rank appends function, arguments and traceback when the function raises; empty: none."""
    cache: str = ""
    """Key under which the collector caches the result; empty: it does not."""
    calls: Annotated[int, Meta(ge=0, le=MOST_CALLS)] = 0
    """Number of calls of a pack, each in a record of its own after this header; 0 for a task with one call. The name of
    the file decides: a pack to which calls were appended has 1 here."""
    entry: str = ""
    """Entry in ``sessions/`` of the process that appends to an open pack."""

    @property
    def delayed(self) -> bool:
        """Whether the task is delayed at its submission: for dependencies, or until its earliest start."""
        return bool(self.needs) or self.not_before > 0

    def first_file(self, claim: int = 1) -> TaskFile:
        """Return the name of the task file for its first attempt."""
        first = TaskFile(self.task, claim, 1, calls=self.calls)
        return first.needing(self.time_limit) if self.time_limit else first

    def dependencies(self) -> Iterator[tuple[str, str]]:
        """Yield session and id of each task that this task depends on."""
        return ((session, each) for session, tasks in self.needs.items() for each in tasks)


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Description of an exception in text."""

    type: str
    """Qualified name of the class."""
    message: str
    """Text of the exception, at most 4 KiB."""
    traceback: str = ""
    """Traceback on the worker, at most 64 KiB."""
    rank: Count = 0
    """Lowest rank that raised the exception."""
    host: str = ""
    """Host of that rank."""


class CallHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One call of a pack."""

    call: Count
    """Number of the call in its pack, from 0."""
    task: str = ""
    """Id of the call, which ``current_task()`` has."""
    label: str = ""
    """Label of the call, as of a task."""
    arguments: str = ""
    """Preview of the arguments, as of a task."""


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Resources that a call has used, with the children that it has waited for."""

    cpu: Seconds = 0.0
    """CPU time in seconds, of all ranks together."""
    cpu_max: Seconds = 0.0
    """The longest CPU time of a rank, for several ranks."""
    wall: Seconds = 0.0
    """Duration in seconds."""
    memory: Bytes = 0
    """Peak memory in bytes, of the largest process of a rank; of several ranks the greatest."""
    memory_sum: Bytes = 0
    """Sum of the peaks of the ranks, for several ranks."""
    of_process: bool = False
    """Whether the peak is that of the worker since its start, because the call's own could not be measured."""


class OutcomeHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """End of one claim of a task, or of one call of a pack."""

    task: str
    """Task id."""
    kind: Kind
    """Kind of the end."""
    worker: str
    """Worker that wrote the outcome."""
    host: str = ""
    """Host of its rank 0."""
    attempt: Positive = 1
    """Number of the attempt, from 1."""
    started: Seconds = 0.0
    """Seconds since the epoch, the worker host's clock."""
    ended: Seconds = 0.0
    """Seconds since the epoch, the worker host's clock."""
    ranks: Positive = 1
    """Ranks whose return values the payload holds."""
    failure: Failure | None = None
    """Description of the exception, if there is one."""
    usage: Usage | None = None
    """Resources used; None if they were not measured."""
    call: Count | None = None
    """Number of the call in its pack, from 0; None for a task with one call, and for all calls of a pack without an
    outcome of their own."""


_encoder = msgspec.json.Encoder()
_task_decoder = msgspec.json.Decoder(TaskHeader)
_outcome_decoder = msgspec.json.Decoder(OutcomeHeader)
_call_decoder = msgspec.json.Decoder(CallHeader)

Header = TypeVar("Header")


def attempts(header: TaskHeader) -> int:
    """Return the limit of attempts of a task: claims that may end with a worker's death, plus retries; at most 99.

    Both are counted together, by the two digits in the name of a task file.
    """
    return min(header.max_attempts + header.retries, 99)


def label_of(header: TaskHeader | CallHeader) -> str:
    """Return the label of a task or call for display, else the preview of its arguments in parentheses."""
    return header.label or (f"({header.arguments})" if header.arguments else "")


def title_of(header: TaskHeader) -> str:
    """Return name and label of a task for display."""
    return f"{header.name} {label_of(header)}".rstrip()


def encode(header: TaskHeader | OutcomeHeader | CallHeader) -> bytes:
    """Encode a header as JSON; raise :class:`BadRequest` for a text that cannot be encoded as UTF-8."""
    try:
        return _encoder.encode(header)
    except UnicodeEncodeError:  # a path may contain bytes that are no text
        name, value = next(
            (name, value) for name, value in msgspec.structs.asdict(header).items() if not is_text(value)
        )
        raise BadRequest(
            f"The field {name!r} of a call contains bytes that are not UTF-8: {printable(str(value))}. Use another "
            "name of the file or directory, or a link to it. In a directory of this kind, submit with a link as cwd."
        ) from None


def is_text(value: object) -> bool:
    """Return whether a value can be encoded as UTF-8."""
    try:
        _encoder.encode(value)
    except UnicodeEncodeError:
        return False
    return True


def decode(decoder: msgspec.json.Decoder[Header], data: bytes, path: str) -> Header:
    """Decode the header of the file at ``path``; raise :class:`BadTaskFile` if it cannot be decoded."""
    try:
        return records.decode(decoder, data, path)
    except BadRecord as error:
        raise BadTaskFile(
            f"The header of {path} cannot be read: {error.reason}. It was not written by spoolpool, or by a version "
            "that this one does not know."
        ) from None


def decode_task(data: bytes, path: str) -> TaskHeader:
    """Decode the header of a task; every name in it is checked before it can become part of a path."""
    header = decode(_task_decoder, data, path)
    if not (header.init or header.objects or header.cache or header.needs or header.entry) and (
        is_task_id(header.task) and is_session(header.session) and parse_lane(header.lane) and is_bucket(header.bucket)
    ):  # the usual case
        return header
    wrong = [
        f"{field} {reprlib.repr(value)}"
        for field, value, good in (
            ("task", header.task, is_task_id(header.task)),
            ("session", header.session, is_session(header.session)),
            ("lane", header.lane, parse_lane(header.lane)),
            ("bucket", header.bucket, is_bucket(header.bucket)),
            ("init", header.init, not header.init or is_object_id(header.init)),
            ("objects", list(header.objects), all(map(is_object_file, header.objects))),
            ("cache", header.cache, not header.cache or is_cache_key(header.cache)),
            ("entry", header.entry, not header.entry or session_of_entry(header.entry)),
            ("needs", header.needs, all(is_session(s) and is_task_id(t) for s, t in header.dependencies())),
        )
        if not good
    ]
    if wrong:
        raise BadTaskFile(f"The header of {path} has the invalid name {', '.join(wrong)}.")
    return header


def decode_outcome(data: bytes, path: str) -> OutcomeHeader:
    """Decode the header of an outcome."""
    return decode(_outcome_decoder, data, path)


def decode_call(data: bytes, path: str) -> CallHeader:
    """Decode the header of a call of a pack."""
    return decode(_call_decoder, data, path)
