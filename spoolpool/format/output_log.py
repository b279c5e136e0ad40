"""Format of output logs, the files with the captured output of one rank; its writing and its reading.

::

    header | output of a task | header | output of the next task | ...

    a task that printed more than the limit:
    header | first part | note with the number of bytes that were cut out | last part | header | ...

A header contains its own offset in the file, so that a copy of a header in a task's output does not count as one. It is
written when a task begins, and completed in place when the task ends; the header of a task that printed nothing is
overwritten by the next one. All headers have one length, and so have all notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from spoolpool.format.names import TaskFile
from spoolpool.system import file_content
from spoolpool.system.patterns import lazy_pattern

_BEGIN = b"\n==> "
_HEADER = lazy_pattern(
    rb"\n==> (?P<offset>\d{15}) (?P<task>\d{3}-[0-9a-f]{14}-[0-9a-f]{10})\.(?P<claim>\d{6})\.(?P<attempt>\d{2}) "
    rb"(?P<started>\d{15}) (?P<cut>\d{15}|-{15}) (?P<length>\d{15}|-{15}) <==\n"
)
_UNKNOWN = b"-" * 15
_NEW = b"\n==> %015d %s.%06d.%02d %015d 000000000000000 --------------- <==\n"
_NOTE = b"\n[... %015d bytes were cut out here ...]\n"
_PIECE = 1 << 20  # bytes that are read at a time

HEADER_SIZE = len(_NEW % (0, b"499-00000000000000-0000000000", 1, 1, 0))
"""Bytes of a header."""
NOTE_SIZE = len(_NOTE % 0)
"""Bytes of a note."""

_TASK, _CUT, _LENGTH = 21, HEADER_SIZE - 36, HEADER_SIZE - 20  # offsets of fields in a header
_FIRST_SHARE, _LAST_SHARE = 2, 4  # of the limit: 1/2 from the beginning, 1/4 from the end by each cut


class OutputHeader(NamedTuple):
    """Header before the output of one claim of a task."""

    offset: int
    """Offset of the header in its file."""
    task_file: TaskFile
    """The claim, without its worker: the file is the worker's."""
    started: float
    """Seconds since the epoch, the rank's clock."""
    cut: int | None
    """Bytes that were cut out; None during a cut."""
    length: int | None
    """Bytes of the output in the file, with the note; None while the task runs, or if the rank died."""

    @property
    def start(self) -> int:
        """Offset of the output."""
        return self.offset + HEADER_SIZE


class NewOutput(NamedTuple):
    """Output that was not read before."""

    data: bytes
    seen: int
    """Bytes that the task has printed up to the end of ``data``, including the ones that were cut out."""
    started: float
    """Seconds since the epoch, the rank's clock."""
    complete: bool
    """Whether no more will come."""


class LogFile:
    """An opened output log. One rank writes it, and any process may read it meanwhile."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.offset = 0
        """Offset of the header that was begun last."""
        self._cut = 0  # bytes that were cut out of its output

    def end(self) -> int:
        """Return the offset of the end of the file."""
        return file_content.end_of(self.fd)

    # -- writing

    def begin_output(self, offset: int, task_file: TaskFile, started: float) -> None:
        """Write the header of a task that begins."""
        self.offset, self._cut = offset, 0
        header = _NEW % (offset, task_file.task.encode(), task_file.claim, task_file.attempt, started * 1000)
        file_content.write_at(self.fd, header, offset)

    def end_output(self, length: int) -> None:
        """Complete the header: its task has ended, and has this many bytes of output in the file."""
        file_content.write_at(self.fd, b"%015d" % length, self.offset + _LENGTH)

    def cut_output(self, end: int, limit: int) -> int:
        """Reduce the output of the running task to a first and a last part, in place.

        ``end`` is the present end of the file; returns the end after the cut. Output that the task prints during the
        cut is kept.
        """
        first, last = self.offset + HEADER_SIZE + limit // _FIRST_SHARE, end - limit // _LAST_SHARE
        cut = self._cut + last - first - (NOTE_SIZE if self._cut else 0)
        file_content.write_at(self.fd, _UNKNOWN, self.offset + _CUT)
        data, at = _NOTE % cut + file_content.read_at(self.fd, end - last, last), first
        for _ in range(3):  # the task may print meanwhile
            file_content.write_at(self.fd, data, at)
            at, last, end = at + len(data), end, file_content.end_of(self.fd)
            data = file_content.read_at(self.fd, end - last, last)
            if not data:
                break
        file_content.truncate(self.fd, at)
        self._cut = cut
        file_content.write_at(self.fd, b"%015d" % cut, self.offset + _CUT)
        return at

    # -- reading

    def header_at(self, offset: int) -> OutputHeader | None:
        """Return the header at an offset; None if there is none."""
        match = _HEADER.match(file_content.read_at(self.fd, HEADER_SIZE, offset))
        if match is None or int(match["offset"]) != offset:
            return None
        _, task, claim, attempt, started, cut, length = (each.decode() for each in match.groups())
        numbers = (int(each) if each.isdecimal() else None for each in (cut, length))
        return OutputHeader(offset, TaskFile(task, int(claim), int(attempt)), int(started) / 1000, *numbers)

    def headers(self, begin: int = 0, task: str = "") -> Iterator[OutputHeader]:
        """Yield the headers behind an offset: of one task, or of all."""
        text, before = (task.encode(), _TASK) if task else (_BEGIN, 0)
        rest = b""
        while piece := file_content.read_at(self.fd, _PIECE, begin + len(rest)):
            data = rest + piece
            at = data.find(text)
            while at >= 0:
                header = self.header_at(begin + at - before) if begin + at >= before else None
                if header is not None:
                    yield header
                at = data.find(text, at + 1)
            rest = data[-len(text) + 1 :]
            begin += len(data) - len(rest)

    def output_end(self, header: OutputHeader, known: int = 0) -> int:
        """Return the present end of an output, of which this many bytes are known to be there."""
        if header.length is not None:
            return header.start + header.length
        following = next(self.headers(header.start + known), None)
        return following.offset if following is not None else file_content.end_of(self.fd)

    def read(self, header: OutputHeader) -> Iterator[bytes]:
        """Yield an output in pieces."""
        at, end = header.start, self.output_end(header)
        while at < end and (piece := file_content.read_at(self.fd, min(_PIECE, end - at), at)):
            yield piece
            at += len(piece)

    def read_new(self, offset: int, task_file: TaskFile, seen: int, limit: int) -> NewOutput | None:
        """Return the output of a claim behind its first ``seen`` bytes; None if it has to be tried again.

        ``offset`` is that of the claim's header. A cut moves the bytes of the output, so the header is read before and
        after them.
        """
        before = self.header_at(offset)
        if before is None or before.cut is None:  # a cut is in progress: the bytes may be anything
            return None
        at = _position(seen, before.cut, limit)
        end = min(self.output_end(before, at), file_content.end_of(self.fd))  # a header can name any length
        data = file_content.read_at(self.fd, end - before.start - at, before.start + at)
        after = self.header_at(offset)
        if after is None or after.task_file[:2] != task_file[:2]:  # overwritten: this claim printed nothing
            return NewOutput(b"", seen, 0.0, complete=True)
        if after.cut != before.cut:
            return None
        complete = False
        if after.length is not None:
            data = data[: after.length - at]
            complete = at + len(data) >= after.length
        seen = at + len(data) + (after.cut - NOTE_SIZE if after.cut else 0)
        return NewOutput(data, seen, after.started, complete)


def _position(seen: int, cut: int, limit: int) -> int:
    """Return the position behind the header at which unread output begins: after a cut, there is a note in between."""
    first = limit // _FIRST_SHARE
    if not cut or seen <= first:
        return seen
    return first if seen <= first + cut else seen - cut + NOTE_SIZE
