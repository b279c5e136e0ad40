"""Content of opened files: read and write all of it, however few bytes the kernel takes or gives at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence

_PARTS = 512  # fewer than IOV_MAX (1024) on every system


def write_all(fd: int, parts: Sequence[bytes | memoryview]) -> None:
    """Write all bytes of ``parts`` in order, with gathered writes, however few the kernel takes at a time."""
    size = sum(map(len, parts))
    done = os.writev(fd, parts) if size and len(parts) <= _PARTS else 0
    if done == size:  # the usual case
        return
    views = _remaining([memoryview(part) for part in parts if len(part)], done)
    while views:
        views = _remaining(views, os.writev(fd, views[:_PARTS]))


def _remaining(views: list[memoryview], done: int) -> list[memoryview]:
    """Return the views without their first ``done`` bytes."""
    for number, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[number + 1 :]]
        done -= len(view)
    return []


def append(fd: int, data: bytes) -> None:
    """Append to a file to which only processes of this host append: the kernel does not mix their pieces."""
    write_all(fd, [data])


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Overwrite a file of this account at ``offset``."""
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Return the bytes at ``offset``, in whatever pieces the filesystem gives them; fewer where the file ends."""
    data = os.pread(fd, max(length, 0), offset)  # also for no bytes: ESPIPE tells a FIFO from an empty file
    while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def read_into(fd: int, places: Sequence[bytearray | memoryview], offset: int) -> int:
    """Fill ``places`` with the bytes at ``offset``, without a copy; return their number, fewer where the file ends."""
    views = [memoryview(place) for place in places if len(place)]
    begin = offset
    while views and (done := os.preadv(fd, views[:_PARTS], offset)):
        offset += done
        views = _remaining(views, done)
    return offset - begin


def end_of(fd: int) -> int:
    """Return the size of an opened file in the cheapest way; moves the position of the descriptor."""
    return os.lseek(fd, 0, os.SEEK_END)


def truncate(fd: int, size: int) -> None:
    """Truncate a file of this account."""
    os.ftruncate(fd, size)


def sync(fd: int) -> None:
    """Make the content of a file visible to other clients and durable against the crash of this node."""
    os.fdatasync(fd)


def size(fd: int) -> int:
    """Return the size of an opened file in bytes."""
    return os.fstat(fd).st_size
