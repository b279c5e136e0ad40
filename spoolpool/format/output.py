"""What stands in a file of captured output, byte by byte: marks, and between them what tasks printed.

::

    mark | what the task printed | mark | what the next one printed | ...

    a task that printed more than its share:
    mark | its first part | a note of how much was cut out | its last part | mark | ...

A mark says at which offset it stands, so that a copy of one in a task's output is none. It is written when a task
begins and completed, in place, when it ends; that of a task that printed nothing is overwritten by the next one's. All
marks have one length, and all notes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from spoolpool.format.names import TaskFile

BEGIN = b"\n==> "
"""How a mark begins."""
_MARK = re.compile(
    rb"\n==> (?P<offset>\d{15}) (?P<task>\d{3}-[0-9a-f]{14}-[0-9a-f]{10})\.(?P<claim>\d{6})\.(?P<attempt>\d{2}) "
    rb"(?P<started>\d{15}) (?P<cut>\d{15}|-{15}) (?P<length>\d{15}|-{15}) <==\n"
)
_OPEN = "-" * 15
_NEW = b"\n==> %015d %s.%06d.%02d %015d 000000000000000 --------------- <==\n"


class OutputHeader(NamedTuple):
    """Where the output of one claim of a task begins."""

    offset: int
    """Where the mark stands in its file."""
    task_file: TaskFile
    """The claim, without its worker: the file is the worker's."""
    started: float
    """Seconds since the epoch, the rank's clock."""
    cut: int | None
    """Bytes that were cut out; None while that is done."""
    length: int | None
    """Bytes of what is left, with the note; None while the task runs, or where the rank ended with it."""

    @property
    def start(self) -> int:
        """Where the output begins."""
        return self.offset + MARK


def encode_output_header(offset: int, task_file: TaskFile, started: float) -> bytes:
    """The mark of a task that begins, to be written at ``offset``."""
    return _NEW % (offset, task_file.task.encode(), task_file.claim, task_file.attempt, started * 1000)


def number(value: int | None) -> bytes:
    """What a number in a mark becomes; None: nothing is known."""
    return b"%015d" % value if value is not None else _OPEN.encode()


MARK = len(encode_output_header(0, TaskFile("499-00000000000000-0000000000", 1, 1), 0.0))
"""Bytes of a mark."""
TASK = 21
"""Where in a mark the task id stands."""
CUT = MARK - 36
"""Where in a mark the number of bytes stands that were cut out."""
LENGTH = MARK - 20
"""Where in a mark the length stands."""


def note(cut: int) -> bytes:
    """What stands in the place of bytes that were cut out."""
    return f"\n[... {cut:015d} bytes were cut out here ...]\n".encode()


NOTE = len(note(0))
"""Bytes of a note."""


def first_part(limit: int) -> int:
    """Bytes that are kept from the beginning of an output that is longer than ``limit``."""
    return limit // 2


def last_part(limit: int) -> int:
    """Bytes that are left of its end each time that it is cut; up to as many more come before the next time."""
    return limit // 4


def read_output_header(data: bytes, offset: int) -> OutputHeader | None:
    """The mark that these bytes, which stand at ``offset`` of a file, begin with; None if it is none."""
    match = _MARK.match(data)
    if match is None or int(match["offset"]) != offset:
        return None
    _, task, claim, attempt, started, cut, length = (each.decode() for each in match.groups())
    task_file = TaskFile(task, int(claim), int(attempt))
    numbers = (None if each == _OPEN else int(each) for each in (cut, length))
    return OutputHeader(offset, task_file, int(started) / 1000, *numbers)


def find_output_header(data: bytes, offset: int) -> OutputHeader | None:
    """The first mark in bytes that stand at ``offset`` of a file."""
    at = data.find(BEGIN)
    while at >= 0:
        found = read_output_header(data[at : at + MARK], offset + at)
        if found is not None:
            return found
        at = data.find(BEGIN, at + 1)
    return None
