"""Journals: append-only files of JSON lines for people and reports, in pieces of a bounded size per writer.

Nothing in the protocol depends on them. Beyond the bound of :mod:`~spoolpool.protocol.journal_pieces` the oldest pieces
are replaced by lines with the event ``dropped``, which have the numbers of their ends. Lines are buffered for up to a
second, so that a short task costs no system call for its line; a crash loses the last second of them.
:class:`spoolpool.worker.task_journal.TaskJournal` writes the buffer before a call that can be long.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Annotated, NamedTuple, get_args

import msgspec
from msgspec import Meta

from spoolpool.format.headers import Kind
from spoolpool.format.journal_names import JournalName, writer_of
from spoolpool.format.name_groups import ID_LENGTH
from spoolpool.format.names import MOST_CALLS, is_worker_id, submitted_at
from spoolpool.protocol import journal_pieces
from spoolpool.protocol.journal_pieces import Piece
from spoolpool.protocol.spool import Spool
from spoolpool.system import file_content, files, records
from spoolpool.system.bounds import Bytes, Count, Seconds
from spoolpool.system.processes import ProcessId, hostname
from spoolpool.system.records import BadRecord

_encode = msgspec.json.Encoder().encode

DROPPED = "dropped"
"""Event in the place of a piece ``name``: ``calls`` of its tasks, until ``ended``, had an end of the event ``type`` and
this ``kind``."""

_FOREIGN = 10  # names in a row that another account may have taken
_LOOK = 60.0  # seconds between two looks at the size of a shared piece
_ENDS_WITHOUT_KIND = frozenset(("task", "cancelled", "set aside", "vanished"))
_ENDS = _ENDS_WITHOUT_KIND | {"recovered", "given back"}
_KINDS = frozenset(("", "set aside", *get_args(Kind)))
_UNKNOWN = "unknown"  # for any other kind: another account may have written any number of them
_MOST_TASKS = 100_000  # whose ends are known one by one
_MOST_KINDS = 8  # of outcomes, of the calls of a pack
_PIECE = 1 << 20  # bytes that are read at a time
_TOO_LONG = f"a line of it has more than {_PIECE} bytes; the rest is not read"
_SKEW = 86400.0  # seconds by which clocks may differ before an event is missed
_MOST, _MOST_OF_A_TASK = 10_000, 10  # events of one journal that are returned at once
_FEW = 16  # ids up to which lines are searched as text before they are parsed


class Journal:
    """Journal of one writer: a worker, or the sessions and commands of one account on one host. For any thread.

    ``by`` names the session or command, if the writer stands for several.
    """

    def __init__(self, spool: Spool, writer: str, by: str = "") -> None:
        self._spool = spool
        self._name = JournalName(writer)
        self._is_shared = not is_worker_id(writer)
        self._full = journal_pieces.piece_size(spool.config)
        self._size = 0  # of the piece, as far as this process knows
        self._looked = 0.0  # when the size was asked for
        self._lock = threading.RLock()  # reentrant: a garbage collection meanwhile may call write
        self._lines: list[bytes] = []
        self._flushed = time.monotonic()
        self._fd = -1
        self._mode = spool.rights.file
        self._who = {"by": by or writer, "uid": os.geteuid(), "host": hostname()}

    def write(self, event: str, **fields: object) -> None:
        """Record an event; ``fields`` are JSON values."""
        with self._lock:
            self._lines.append(self._encode(event, fields))
            self.flush(age=0.0 if len(self._lines) >= 256 else 1.0)

    def _encode(self, event: str, fields: dict[str, object]) -> bytes:
        return _encode({"t": time.time(), "event": event, **self._who, **fields})

    def flush(self, age: float = 0.0) -> bool:
        """Write the buffered lines if the last time was ``age`` seconds ago; return whether lines are left.

        A journal that cannot be written is no reason to stop work.
        """
        with self._lock:
            if self._lines and time.monotonic() - self._flushed >= age:
                self._flushed = time.monotonic()
                self._write()
            return bool(self._lines)

    def _write(self) -> None:
        lines, self._lines = self._lines, []  # first: a garbage collection meanwhile may call write
        try:
            self._choose_piece()
            data = b"\n".join(lines) + b"\n"
            file_content.append(self._fd, data)
            self._size += len(data)
        except OSError as error:
            if error.errno not in files.DENIED:  # a dropbox has no journals of submitters
                self._lines = [*lines, *self._lines][-50_000:]  # the disk may stay full

    def _choose_piece(self) -> None:
        """Open the piece to be written. Of a full one, begin the next, and drop the oldest pieces beyond the bound.

        Other processes may write a shared piece as well, so its size is asked for once a minute: a process that has not
        seen for so long that a piece is full writes no more to it.
        """
        if self._fd >= 0 and self._is_shared and time.monotonic() - self._looked >= _LOOK:
            self._size, self._looked = file_content.size(self._fd), time.monotonic()
        if self._fd >= 0 and self._size < self._full:
            return
        part = self._name.part
        if self._fd < 0 and self._is_shared and not part and not os.path.lexists(self._path(0)):
            part = self._latest_part()  # the first one may have been dropped
        begun = False
        while self._fd < 0 or self._size >= self._full:
            if self._fd >= 0:
                files.close(self._fd)
                self._fd = -1
                part, begun = max(part + 1, self._latest_part() if self._is_shared else 0), True
            for _ in range(_FOREIGN):
                if journal_pieces.is_foreign(self._spool, self._name._replace(part=part)):
                    part += 1
            self._fd = files.open_append(self._path(part), self._mode, exact=self._mode != 0o600)
            self._size, self._looked = file_content.size(self._fd), time.monotonic()
        self._name = self._name._replace(part=part)
        if begun and not self._size:  # else another process has begun this piece, and drops others
            with contextlib.suppress(OSError):  # the next piece drops more
                for event, fields in drop_excess(self._spool):
                    file_content.append(self._fd, self._encode(event, fields) + b"\n")

    def _latest_part(self) -> int:
        return journal_pieces.latest_part(self._spool, self._name.writer, own=True)

    def _path(self, part: int) -> str:
        return f"{self._spool.layout.journal}/{self._name._replace(part=part).name}"

    def close(self) -> None:
        """Flush and close; harmless when repeated."""
        with self._lock:
            self.flush()
            if self._fd >= 0:
                files.close(self._fd)
                self._fd = -1


def drop_excess(spool: Spool) -> Iterator[tuple[str, dict[str, object]]]:
    """Remove the oldest pieces beyond the bound; yield the events that are to be written before each removal.

    A piece goes when the next event is asked for. A process that dies in between leaves the piece and its lines:
    :func:`lines` ignores the lines as long as the piece is there, and a reader counts equal lines once.
    """
    for piece in journal_pieces.excess(spool, spool.server_time()):
        yield from dropped_lines(spool, piece)
        files.remove(f"{spool.layout.journal}/{piece.name.name}")  # only the spool's owner can replace the directory


def dropped_lines(spool: Spool, piece: Piece) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the events that take the place of a piece, with their fields."""
    name = piece.name.name
    for (event, kind), number in sorted(count_ends(f"{spool.layout.journal}/{name}").items()):
        yield DROPPED, {"name": name, "type": event, "kind": kind, "calls": number, "ended": piece.mtime}


def count_ends(path: str) -> Counter[tuple[str, str]]:
    """Return the number of tasks by the event and kind of their last end in a piece, and in those dropped before it.

    Of a pack its calls are counted. Another account may have written the piece: it can have any size and content.
    """
    counts: Counter[tuple[str, str]] = Counter()
    ends: dict[str, dict[tuple[str, str], int]] = {}
    earlier: dict[tuple[str, str, str], int] = {}
    for line in _follow(path, _PIECE, 0.0):
        event, task = line.event, line.event.about[:ID_LENGTH]
        if event.event == DROPPED:
            if len(earlier) < _MOST and event.type in _ENDS and writer_of(event.name):
                earlier[event.name, event.type, _known(event.kind)] = event.calls
        elif event.event == "retried":
            ends.pop(task, None)
        elif event.event in _ENDS and event.published and (event.kind or event.event in _ENDS_WITHOUT_KIND):
            calls = min(event.calls, MOST_CALLS) or 1
            known = len(event.ends) <= _MOST_KINDS and sum(event.ends.values()) == calls
            kinds = event.ends if known else {event.kind: calls}
            ends[task] = {}
            for kind, number in kinds.items():
                key = event.event, _known(kind)
                ends[task][key] = ends[task].get(key, 0) + number
            if len(ends) >= _MOST_TASKS:
                for each in list(ends)[: _MOST_TASKS // 2]:
                    counts.update(ends.pop(each))
    for kinds_of_task in ends.values():
        counts.update(kinds_of_task)
    for (_, kind_of_event, kind), number in earlier.items():
        counts[kind_of_event, kind] += number
    return counts


def _known(kind: str) -> str:
    return kind if kind in _KINDS else _UNKNOWN


def submitters_journal() -> str:
    """Return the writer that sessions of this account on this host share for a month: one each would be many files.

    Commands, supervisors, and ranks of workers other than 0 share it as well.
    """
    identity = ProcessId.of(os.getpid())
    # by kernel: only one kernel keeps concurrent appends to a file apart
    kernel = identity.boot or "".join(filter(str.isalnum, identity.host))
    return f"{os.geteuid()}-{kernel[:32]}-{time.strftime('%Y%m', time.gmtime())}"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a journal; fields that an event does not have keep their defaults."""

    t: Seconds
    """Seconds since the epoch, by the writer's clock, as for the other times."""
    event: str
    """Kind of the event."""
    by: str = ""
    """Worker or session that wrote it."""
    uid: Annotated[int, Meta(ge=-1, le=2**32 - 1)] = -1
    """Account of the writer, by its own word."""
    host: str = ""
    task: str = ""
    name: str = ""
    label: str = ""
    """Label of a task, or a preview of its arguments in parentheses."""
    session: str = ""
    lane: str = ""
    worker: str = ""
    """Worker that died, of a task that was recovered."""
    attempt: Count = 0
    attempts: Count = 0
    """Limit of the attempts."""
    reason: str = ""
    """How a worker died, or why a task was set aside or released."""
    submitted: Seconds = 0.0
    started: Seconds = 0.0
    ended: Seconds = 0.0
    ran: Seconds = 0.0
    """Seconds that the call took on all ranks."""
    cpu: Seconds = 0.0
    """CPU time of the call on all ranks, in seconds."""
    cores: Count = 0
    """Cores that the call had."""
    memory: Bytes = 0
    """Peak memory of a rank, in bytes; 0 if it is unknown."""
    asked: Bytes = 0
    """Requested memory of a rank, in bytes; 0 if none was requested."""
    calls: Count = 0
    """Number of calls of a pack; 0 for a task with one call."""
    ends: dict[str, Count] = {}
    """Numbers of the calls of a pack by the ``kind`` of their outcomes."""
    published: bool = True
    kind: str = ""
    """How a task ended: the ``kind`` of its outcome."""
    type: str = ""
    """Class of the exception."""
    job: str = ""
    """Batch job of a worker that started."""
    ranks: Count = 0
    """Its ranks."""
    text: str = ""
    """Line of text about a recovered task; it begins with the id."""

    @property
    def about(self) -> str:
        """Id of the task of this event."""
        return self.task or self.text.partition(":")[0]


_decoder = msgspec.json.Decoder(Event)


def _events(lines: list[bytes], path: str) -> Iterator[Event]:
    for line in filter(None, lines):
        try:
            event = records.decode(_decoder, line, path)
        except BadRecord as error:  # half a line, or a foreign one: nothing depends on it
            records.report(path, BadRecord(path, f"a line of it is invalid ({error.reason})"))
        else:
            yield event


def check(spool: Spool, name: str) -> None:
    """Read a whole journal, by the name of its file.

    Raises ``OSError`` as open(2), and :class:`BadRecord` if a line of it is invalid.
    """
    path = f"{spool.layout.journal}/{name}"
    rest, position = b"", 0
    try:
        with files.reading(path) as (fd, _):
            while piece := os.pread(fd, _PIECE, position):
                position += len(piece)
                *whole, rest = (rest + piece).split(b"\n")
                if len(rest) > _PIECE:
                    break
                for line in filter(None, whole):
                    records.decode(_decoder, line, path)
    except BadRecord as error:
        raise BadRecord(path, f"a line of it is invalid ({error.reason})") from None
    except ValueError as error:
        raise BadRecord(path, str(error)) from None
    if len(rest) > _PIECE:
        raise BadRecord(path, _TOO_LONG)


def _is_too_long(line: bytes, path: str) -> bool:
    """Return whether the begin of a line is longer than any line of a journal, which is reported."""
    if len(line) <= _PIECE:
        return False
    records.report(path, BadRecord(path, _TOO_LONG))
    return True


def recent(spool: Spool, writer: str, limit: int = 1 << 17) -> tuple[list[Event], float]:
    """Return the events in the last ``limit`` bytes of a journal, and its modification time by the server's clock.

    Without a readable journal, returns no events and 0.0.
    """
    first = f"{spool.layout.journal}/{JournalName(writer).name}"
    try:
        is_only = os.lstat(first).st_size < journal_pieces.piece_size(spool.config)
    except OSError:  # dropped, or there is no journal
        is_only = False
    part = 0 if is_only else journal_pieces.latest_part(spool, writer)
    events, modified, size = _tail(spool, JournalName(writer, part), limit)
    if part and size < limit:  # begun a moment ago
        events = [*_tail(spool, JournalName(writer, part - 1), limit - size)[0], *events]
    return events, modified


def _tail(spool: Spool, name: JournalName, limit: int) -> tuple[list[Event], float, int]:
    """Return the events in the last bytes of a piece, its modification time and its size."""
    path = f"{spool.layout.journal}/{name.name}"
    try:
        with files.reading(path) as (fd, status):
            begin = max(0, status.st_size - limit)
            *lines, _ = os.pread(fd, limit, begin).split(b"\n")  # the last one is empty, or being written
            return list(_events(lines[1:] if begin else lines, path)), status.st_mtime, status.st_size
    except (OSError, ValueError):
        return [], 0.0, 0


class Line(NamedTuple):
    """A line of a journal, with the owner of its file; the line's own statements about its writer are unverified."""

    time: float
    """Seconds since the epoch, not less than those of the line before it in the same journal."""
    event: Event
    text: bytes
    """The line as it was written: JSON."""
    owner: int
    """Account of the file."""


def lines(spool: Spool, since: float = 0.0) -> Iterator[Line]:
    """Return all lines of all journals since a time, in the order of their times.

    A piece of each journal is in memory, some MiB altogether; one file is open at a time.
    """
    names = {name for name in files.list_names(spool.layout.journal) if writer_of(name)}
    piece = max(1 << 12, min(1 << 18, (1 << 25) // max(1, len(names))))
    journals = [_follow(f"{spool.layout.journal}/{name}", piece, since) for name in sorted(names)]
    for line in heapq.merge(*journals, key=_time):
        if line.event.event != DROPPED or line.event.name not in names:  # else it is about to be dropped, or to be read
            yield line


def _time(line: Line) -> float:
    return line.time


def _follow(path: str, size: int, since: float) -> Iterator[Line]:
    """Return the lines of one journal; it ends if the file is gone, unreadable, or suddenly has another owner."""
    rest, position, latest, owner = b"", 0, 0.0, -1
    while True:
        try:
            with files.reading(path) as (fd, status):
                piece = b"" if status.st_mtime < since - _SKEW else os.pread(fd, size, position)
        except (OSError, ValueError):
            return
        if not piece or owner not in (-1, status.st_uid) or _is_too_long(rest, path):
            return
        owner = status.st_uid
        position += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        for text in whole:
            for event in _events([text], path):
                if event.t >= since:
                    latest = max(latest, event.t)
                    yield Line(latest, event, text, owner)


def about(spool: Spool, tasks: Collection[str]) -> list[Event]:
    """Return the events of these tasks, in the order of their times; reads the journals of their lifetime.

    Of each journal no more events are read than a task can have, since another account may have written it.
    """
    if not tasks:
        return []
    since = min(map(submitted_at, tasks)) - _SKEW
    most = _MOST + _MOST_OF_A_TASK * len(tasks)
    found: list[Event] = []
    for name in files.list_names(spool.layout.journal):
        if writer_of(name):
            with contextlib.suppress(OSError, ValueError):  # gone, or unreadable for this account
                found += itertools.islice(_search(f"{spool.layout.journal}/{name}", tasks, since), most)
    return sorted(found, key=lambda event: event.t)


def _search(path: str, tasks: Collection[str], since: float) -> Iterator[Event]:
    wanted = frozenset(tasks)
    texts = [each.encode() for each in wanted] if len(wanted) <= _FEW else [b""]
    with files.reading(path) as (fd, status):
        rest, position = b"", 0
        while status.st_mtime >= since and (piece := os.pread(fd, _PIECE, position)):
            position += len(piece)
            piece = rest + piece
            whole, _, rest = piece.rpartition(b"\n")
            if _is_too_long(rest, path):
                return
            if any(text in whole for text in texts):
                yield from (event for event in _events(whole.split(b"\n"), path) if event.about in wanted)
