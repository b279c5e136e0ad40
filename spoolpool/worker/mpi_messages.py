"""The first message of an order or an answer among the ranks of a group: what is small travels inside it."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spoolpool.calls import pickling
from spoolpool.format.envelope import Buffer

FIRST = 4000
"""Bytes that a first message has at most: every MPI sends so few without asking (Open MPI: 4 KiB with its header)."""
PIECE = 1 << 30
"""Bytes of one transfer: MPI counts with 32 bits."""

_HEAD = struct.Struct("<qqqq?")

Content = tuple[Buffer, Sequence[Buffer]]
"""A pickle and its buffers."""

Take = Callable[[int], memoryview]
"""Gives the next part of a message, of so many bytes."""


class Head(NamedTuple):
    """How every first message begins."""

    what: int
    """What it is: orders, votes and verdicts have numbers."""
    serial: int
    """The task's number in this group."""
    mark: int = 0
    """Of a vote: how the rank ended. Of a verdict: whether all ended alike."""
    length: int = 0
    """Bytes of the first part."""
    inside: bool = True
    """Whether the parts are in this message; else they follow one by one."""

    @classmethod
    def of(cls, message: Buffer | bytearray) -> Head:
        """The head of a message that came."""
        return cls._make(_HEAD.unpack_from(message))

    def message(self, parts: Sequence[Buffer] = ()) -> tuple[bytes, Sequence[Buffer]]:
        """The first message, and the parts that must follow because they are too large for it."""
        inside = _HEAD.size + sum(map(len, parts)) <= FIRST
        head = _HEAD.pack(self.what, self.serial, self.mark, len(parts[0]) if parts else 0, inside)
        return (b"".join((head, *parts)), ()) if inside else (head, parts)


def parts(about: object, *contents: Content | None) -> list[Buffer]:
    """What a message has to carry: a description, with the lengths of what follows it, then the contents."""
    lengths = [content and [len(content[0]), *map(len, content[1])] for content in contents]
    following = [buffer for content in contents if content for buffer in (content[0], *content[1])]
    return [pickle.dumps((about, lengths), protocol=5), *following]


def unpack(message: bytearray, receive: Take) -> tuple[Any, list[Content | None]]:
    """What :func:`parts` made: the description, and the contents; ``receive`` gets parts that follow the message."""
    head, take = Head.of(message), receive
    if head.inside:
        inside = io.BytesIO(message)
        inside.seek(_HEAD.size)
        take = lambda length: memoryview(bytearray(inside.read(length)))  # noqa: E731  as short as it gets
    about, lengths = pickling.loads(take(head.length))
    contents: list[Content | None] = []
    for each in lengths:
        buffers = [take(length) for length in each or ()]
        contents.append((buffers[0], buffers[1:]) if buffers else None)
    return about, contents


def pieces(buffer: Buffer | bytearray) -> list[memoryview]:
    """A buffer in transfers."""
    view = memoryview(buffer)
    return [view[start : start + PIECE] for start in range(0, len(view), PIECE)]
