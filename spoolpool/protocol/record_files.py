"""Files of records: the calls of a pack, and their outcomes. Each record is a file of the format by itself.

A file of records has one writer, which only appends. What follows after its last complete record was torn by the end
of the writer, and counts as not written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from spoolpool.errors import BadTaskFile
from spoolpool.format import envelope
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import record_label
from spoolpool.system import file_content

_FIRST = 1 << 14  # bytes that hold the first record of most files
_MOST_FIRST = 1 << 21  # bytes that hold that of any pack: it has the header alone


class Record(NamedTuple):
    """One record of a file."""

    content: Envelope
    data: memoryview
    """The bytes of the record, with its signature in a signed spool."""


def pack(spool: Spool, label: str, number: int, parts: list[Buffer]) -> list[Buffer]:
    """Return the parts of a record, signed in a signed spool as the record of this number in a file with a label."""
    if spool.signature is None:
        return parts
    return [*parts, spool.signature.sign(record_label(label, number), parts)]


def split(spool: Spool, data: bytes, path: str, label: str, number: int = 0) -> Iterator[Record]:
    """Yield the complete records in bytes of the file at ``path``, of which the first has this number.

    It ends before a record that is torn. Raises :class:`NotTrusted` for a record with a wrong signature.
    """
    left = memoryview(data)
    while length := envelope.record_length(left, signed=spool.signature is not None):
        try:
            content = spool.parse(left[:length], path, record_label(label, number))
        except BadTaskFile:
            return
        yield Record(content, left[:length])
        left = left[length:]
        number += 1


def is_torn(spool: Spool, fd: int) -> bool:
    """Return whether an opened file ends before the end of its first record."""
    data = file_content.read_at(fd, min(_MOST_FIRST, file_content.size(fd)), 0)
    return not envelope.record_length(memoryview(data), signed=spool.signature is not None)


def read_first(spool: Spool, fd: int, path: str, label: str) -> Envelope:
    """Return the content of the first record. Raises :class:`BadTaskFile` where there is none."""
    size = file_content.size(fd)
    for length in (_FIRST, _MOST_FIRST):
        for record in split(spool, file_content.read_at(fd, min(length, size), 0), path, label):
            return record.content
    raise BadTaskFile(f"{path} has no complete record: it is torn, or not written by spoolpool.")
