"""Task files of packs: several calls, each in a record of its own after that of the header."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from spoolpool.errors import BadTaskFile
from spoolpool.format import envelope, headers
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.headers import CallHeader, TaskHeader
from spoolpool.format.names import TaskFile
from spoolpool.protocol import record_files
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import task_label
from spoolpool.system import file_content

_MOST_BYTES = 1 << 31
"""Size of a pack, at most: it is read as a whole, and the sparse file of another account takes no space on disk."""


class PackedCall(NamedTuple):
    """Pickle of ``(function, args, kwargs)``, and its buffers."""

    payload: Buffer
    buffers: Sequence[Buffer]
    task: str = ""
    """Id of the call, which ``current_task()`` has; empty for that of the pack."""
    label: str = ""
    """Label of the call, for people."""
    arguments: str = ""
    """Preview of the arguments, for people."""

    def header(self, number: int) -> CallHeader:
        """Return the header of the record of the call with this number in its pack."""
        return CallHeader(call=number, task=self.task, label=self.label, arguments=self.arguments)


def parts_of(spool: Spool, header: TaskHeader, calls: Sequence[PackedCall]) -> list[Buffer]:
    """Return the parts of the task file of a pack, with the signatures of a signed spool."""
    label = task_label(header.task)
    parts = record_files.pack(spool, label, 0, envelope.pack(headers.encode(header), b""))
    for number, call in enumerate(calls):
        record = envelope.pack(headers.encode(call.header(number)), call.payload, call.buffers)
        parts += record_files.pack(spool, label, number + 1, record)
    return parts


def read_calls(spool: Spool, fd: int, path: str, task_file: TaskFile) -> tuple[Envelope, list[PackedCall]]:
    """Return the first record of an opened pack, with its header, and its calls.

    Raises :class:`BadTaskFile` if a record is missing or torn, and :class:`NotTrusted` for a wrong signature.
    """
    found = list(_records(spool, fd, path, task_file))
    if len(found) <= task_file.calls:
        raise BadTaskFile(
            f"{path} has {max(0, len(found) - 1)} complete calls; its name says that it has {task_file.calls}: it is "
            "torn, or not written by spoolpool."
        )
    return found[0], [_call(each, path) for each in found[1 : task_file.calls + 1]]


def _call(record: Envelope, path: str) -> PackedCall:
    header = headers.decode_call(record.header, path)
    return PackedCall(record.payload, record.buffers, header.task, header.label, header.arguments)


def size_of(fd: int, path: str) -> int:
    """Return the size of an opened pack; raise :class:`BadTaskFile` if it is too large to be read."""
    size = file_content.size(fd)
    if size > _MOST_BYTES:
        raise BadTaskFile(
            f"{path} has {size} bytes; a pack has at most {_MOST_BYTES}: it was not written by spoolpool."
        )
    return size


def _records(spool: Spool, fd: int, path: str, task_file: TaskFile) -> Iterator[Envelope]:
    data = file_content.read_at(fd, size_of(fd, path), 0)
    return (each.content for each in record_files.split(spool, data, path, task_label(task_file.task)))
