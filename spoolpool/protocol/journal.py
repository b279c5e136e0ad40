"""What happened: one append-only file of JSON lines per writer, for people and reports.

Nothing in the protocol depends on it. Lines are gathered for up to a second, so that a task costs no
system call for its line; a crash loses the last second of them.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

import msgspec

from spoolpool.format.names import submitted_at, writer_of
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.processes import ProcessId, hostname

_encode = msgspec.json.Encoder().encode

_PIECE = 1 << 20  # bytes that are read at a time
_SKEW = 86400.0  # seconds by which clocks may differ before an event goes unseen
_FEW = 16  # ids that are looked for as text, before a line is parsed


class Journal:
    """The journal of one writer: a worker, or the sessions of one account on one host. Not for several threads at once.

    ``by`` says who writes, where that is not the file's writer.
    """

    def __init__(self, spool: Spool, writer: str, by: str = "") -> None:
        self._path = f"{spool.layout.journal}/{writer}.jsonl"
        self._lines: list[bytes] = []
        self._flushed = time.monotonic()
        self._fd = -1
        self._mode = spool.rights.file
        self._who = {"by": by or writer, "uid": os.geteuid(), "host": hostname()}

    def write(self, event: str, **fields: object) -> None:
        """Note an event; ``fields`` are JSON values."""
        self._lines.append(_encode({"t": time.time(), "event": event, **self._who, **fields}))
        self.flush(age=0.0 if len(self._lines) >= 256 else 1.0)

    def flush(self, age: float = 0.0) -> bool:
        """Write what was gathered, if that was last done so many seconds ago; whether something is left to write.

        A journal that cannot be written is no reason to stop work.
        """
        if not self._lines or time.monotonic() - self._flushed < age:
            return bool(self._lines)
        self._flushed = time.monotonic()
        lines, self._lines = self._lines, []  # first: garbage may be collected meanwhile, and somebody write for it
        try:
            if self._fd < 0:
                self._fd = files.open_append(self._path, self._mode, exact=self._mode != 0o600)
            files.append(self._fd, b"\n".join(lines) + b"\n")
        except OSError as error:
            if error.errno not in files.DENIED:  # a dropbox has no journals of submitters
                self._lines = [*lines, *self._lines][-50_000:]  # the disk may stay full
        return bool(self._lines)

    def close(self) -> None:
        """Flush and close; harmless when repeated."""
        self.flush()
        if self._fd >= 0:
            files.close(self._fd)
            self._fd = -1


def submitters_journal() -> str:
    """The writer that this account's sessions on this host share for a month: one for each would be many files."""
    identity = ProcessId.of(os.getpid())
    kernel = identity.boot or "".join(filter(str.isalnum, identity.host))  # it keeps what is appended to a file apart
    return f"{os.geteuid()}-{kernel[:32]}-{time.strftime('%Y%m', time.gmtime())}"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a journal; what an event does not have keeps its default."""

    t: float
    """Seconds since the epoch, the writer's clock; so are the other times."""
    event: str
    """What happened."""
    by: str = ""
    """Who wrote it."""
    uid: int = -1
    """Account that it says it is."""
    host: str = ""
    task: str = ""
    name: str = ""
    session: str = ""
    lane: str = ""
    attempt: int = 0
    submitted: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    ran: float = 0.0
    """Seconds that all ranks needed for the call of a task."""
    published: bool = True
    kind: str = ""
    """How a task ended: the ``kind`` of its outcome."""
    type: str = ""
    """Class of the exception."""
    job: str = ""
    """Batch job of a worker that started."""
    ranks: int = 0
    """Its ranks."""
    text: str = ""
    """Of a task that was recovered: its id, and what was done."""

    @property
    def about(self) -> str:
        """The task that it tells of."""
        return self.task or self.text.partition(":")[0]


_decoder = msgspec.json.Decoder(Event)


def _events(lines: list[bytes]) -> Iterator[Event]:
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # half a line, or none of ours: nothing depends on it
            yield _decoder.decode(line)


def recent(spool: Spool, writer: str, limit: int = 1 << 17) -> tuple[list[Event], float]:
    """The last events of a writer, from so many bytes of its journal; and when it wrote, by the server's clock.

    None, and 0.0, where there is no journal or it cannot be read.
    """
    try:
        with files.reading(f"{spool.layout.journal}/{writer}.jsonl") as (fd, status):
            begin = max(0, status.st_size - limit)
            lines = os.pread(fd, limit, begin).split(b"\n")
            return list(_events(lines[1:] if begin else lines)), status.st_mtime
    except (OSError, ValueError):
        return [], 0.0


class Line(NamedTuple):
    """A line of a journal, with whose file it is in: what the line says about that is only said."""

    time: float
    """Seconds since the epoch, and no less than those of the line before it in the same journal."""
    event: Event
    text: bytes
    """The line as it was written: JSON."""
    owner: int
    """Account of the file."""


def lines(spool: Spool, since: float = 0.0) -> Iterator[Line]:
    """All lines of all journals that are not older, in the order of their times.

    So much of each journal is in memory that all together are some MiB; one file is open at a time.
    """
    writers = [name for name in files.list_names(spool.layout.journal) if writer_of(name)]
    piece = max(1 << 12, min(1 << 18, (1 << 25) // max(1, len(writers))))
    journals = [_follow(f"{spool.layout.journal}/{name}", piece, since) for name in sorted(writers)]
    return heapq.merge(*journals, key=_time)


def _time(line: Line) -> float:
    return line.time


def _follow(path: str, size: int, since: float) -> Iterator[Line]:
    """The lines of one journal; it ends where the file is gone, is not ours to read, or is another's all at once."""
    rest, position, latest, owner = b"", 0, 0.0, -1
    while True:
        try:
            with files.reading(path) as (fd, status):
                piece = b"" if status.st_mtime < since - _SKEW else os.pread(fd, size, position)
        except (OSError, ValueError):
            return
        if not piece or owner not in (-1, status.st_uid) or len(rest) > _PIECE:  # no journal has such a line
            return
        owner = status.st_uid
        position += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        for text in whole:
            for event in _events([text]):
                if event.t >= since and event.t < math.inf:
                    latest = max(latest, event.t)
                    yield Line(latest, event, text, owner)


def about(spool: Spool, tasks: Collection[str]) -> list[Event]:
    """All events that tell of these tasks, in the order of their times; reads the journals of their lifetime."""
    if not tasks:
        return []
    since = min(map(submitted_at, tasks)) - _SKEW
    found: list[Event] = []
    for name in files.list_names(spool.layout.journal):
        if writer_of(name):
            with contextlib.suppress(OSError, ValueError):  # gone, or not ours to read
                found += _search(f"{spool.layout.journal}/{name}", tasks, since)
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
            if len(rest) > _PIECE:  # no journal has such a line
                return
            if any(text in whole for text in texts):
                yield from (event for event in _events(whole.split(b"\n")) if event.about in wanted)
