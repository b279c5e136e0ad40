"""Format of the messages among the ranks of a group: small contents are part of the first message."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spoolpool.calls import pickling
from spoolpool.format.envelope import Buffer

FIRST = 4000
"""Most bytes of a first message: each MPI sends so few without a handshake (Open MPI: 4 KiB with its header)."""
PIECE = 1 << 30
"""Most bytes of one transfer: MPI counts with 32 bits."""

_HEAD = struct.Struct("<qqqq??ddq?")

Content = tuple[Buffer, Sequence[Buffer]]
"""A pickle and its buffers."""

Take = Callable[[int], memoryview]
"""Function that returns the next part of a message, which has this number of bytes."""


class Head(NamedTuple):
    """Beginning of each first message."""

    kind: int
    """Kind of the message: a number of an order, a vote or a verdict."""
    serial: int
    """Number of the task in this group."""
    mark: int = 0
    """In a vote, the number for the way in which the rank ended; in a verdict, whether all ended alike."""
    length: int = 0
    """Length of the first part in bytes."""
    inside: bool = True
    """Whether the parts are in this message; otherwise they follow one by one."""
    suspicious: bool = False
    """In a vote, whether the task may have left something on the rank that cannot be restored."""
    cpu: float = 0.0
    """In a vote, the CPU time that the rank has used in seconds."""
    wall: float = 0.0
    """In a vote, the duration of the call on the rank in seconds."""
    memory: int = 0
    """In a vote, the peak memory of the rank in bytes."""
    of_process: bool = False
    """In a vote, whether that is the peak of the process."""

    @classmethod
    def of(cls, message: Buffer | bytearray) -> Head:
        """Return the head of a received message."""
        return cls._make(_HEAD.unpack_from(message))

    def message(self, parts: Sequence[Buffer] = ()) -> tuple[bytes, Sequence[Buffer]]:
        """Return the first message, and the parts that must follow it because they are too large."""
        inside = _HEAD.size + sum(map(len, parts)) <= FIRST
        head = _HEAD.pack(*self._replace(length=len(parts[0]) if parts else 0, inside=inside))
        return (b"".join((head, *parts)), ()) if inside else (head, parts)


def parts(about: object, *contents: Content | None) -> list[Buffer]:
    """Return the parts of a message: a description with the lengths of the contents, then the contents."""
    lengths = [content and [len(content[0]), *map(len, content[1])] for content in contents]
    following = [buffer for content in contents if content for buffer in (content[0], *content[1])]
    return [pickle.dumps((about, lengths), protocol=5), *following]


def unpack(message: bytearray, receive: Take) -> tuple[Any, list[Content | None]]:
    """Return the description and the contents of :func:`parts`; ``receive`` gets the parts that follow the message."""
    head, take = Head.of(message), receive
    if head.inside:
        inside = io.BytesIO(message)
        inside.seek(_HEAD.size)
        take = lambda length: memoryview(bytearray(inside.read(length)))  # noqa: E731  shorter than a function
    about, lengths = pickling.loads(take(head.length))
    contents: list[Content | None] = []
    for each in lengths:
        buffers = [take(length) for length in each or ()]
        contents.append((buffers[0], buffers[1:]) if buffers else None)
    return about, contents


def pieces(buffer: Buffer | bytearray) -> list[memoryview]:
    """Divide a buffer into transfers."""
    view = memoryview(buffer)
    return [view[start : start + PIECE] for start in range(0, len(view), PIECE)]
