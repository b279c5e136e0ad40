"""File format: prefix, header, pickle, out-of-band buffers, checksum.

========  =====================================================================
bytes     meaning
========  =====================================================================
8         magic
2         format version
2         number of out-of-band buffers
4         length of the header
8         length of the pickle
8         length of the whole file
8 each    lengths of the buffers
..        header: JSON
..        pickle, protocol 5
..        buffers, each at the next multiple of 4096, so that it can be mapped
16        xxh3-128 over everything before: finds torn files, is no proof of origin
40        in signed spools: the signature (see :mod:`spoolpool.security.signing`)
========  =====================================================================

All numbers are little-endian. The prefix and the header contain all information about a task except its code and data.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import xxhash

from spoolpool.errors import BadRequest, BadTaskFile, NotTrusted, SpoolVersion
from spoolpool.format.names import FORMAT
from spoolpool.security import signing
from spoolpool.system import file_content

MAGIC = b"\x93SPOOL\r\n"
PAGE = 4096
_PREFIX = struct.Struct("<8sHHIQQ")
_DIGEST = 16
_SMALL = 1 << 16
_HEADER_LIMIT = 1 << 20
_MAP_FROM = 1 << 22  # smaller files are read: a page of a mapping costs ten times as much at the first write to it
_SHARE_FROM = 1 << 20  # files whose buffers are read-only are mapped from here on, so that processes share their memory
_MALLOC_BELOW = 1 << 25  # blocks of memory that malloc keeps for the next use; the pages of others are new each time

Buffer = bytes | memoryview

Check = Callable[[str, memoryview, bytes], None]
"""Function that raises unless a signature (last argument) is valid for the file at a path with this content."""


class Envelope(NamedTuple):
    """Content of a file: the bytes of the header, the pickle, and its buffers."""

    header: bytes
    payload: Buffer
    buffers: Sequence[Buffer]


def pack(header: bytes, payload: Buffer, buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the parts of a file, to be written one after another. No buffer is copied."""
    if len(header) > _HEADER_LIMIT:
        raise BadRequest(
            f"The header of a call would have {len(header)} bytes; the limit is {_HEADER_LIMIT}. The call refers to "
            "too many tasks or objects, for instance to more than 30 000 futures. Join them in several steps."
        )
    lengths = [len(buffer) for buffer in buffers]
    end = _PREFIX.size + 8 * len(lengths) + len(header) + len(payload)
    total = end
    for length in lengths:
        total = -(-total // PAGE) * PAGE + length
    total += _DIGEST
    prefix = _PREFIX.pack(MAGIC, FORMAT, len(lengths), len(header), len(payload), total)
    if end < _SMALL and not lengths:
        whole = b"".join((prefix, header, payload))
        return [whole, xxhash.xxh3_128_digest(whole)]
    parts: list[Buffer] = [prefix + struct.pack(f"<{len(lengths)}Q", *lengths) + header, payload]
    for buffer, length in zip(buffers, lengths, strict=True):
        parts.append(bytes(-end % PAGE))
        parts.append(buffer)
        end += -end % PAGE + length
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    parts.append(digest.digest())
    return parts


def header_of(parts: Sequence[Buffer]) -> bytes:
    """Return the header in the parts of a file, as :func:`pack` returned them."""
    _, _, count, length, _, _ = _PREFIX.unpack_from(parts[0])
    position = _PREFIX.size + 8 * count
    return bytes(parts[0][position : position + length])


def _sizes(data: Buffer, size: int, path: str) -> tuple[int, int, int, int]:
    """Return the number of buffers and the lengths of header, pickle and file, checked against the real size."""
    if len(data) < _PREFIX.size or data[:8] != MAGIC:
        raise BadTaskFile(f"{path} does not begin like a file of spoolpool: it is foreign or torn.")
    _, version, count, header, payload, total = _PREFIX.unpack_from(data)
    if version > FORMAT:
        raise SpoolVersion(f"{path} has format {version}; this spoolpool reads up to {FORMAT}. Install a newer one.")
    least = _PREFIX.size + 8 * count + header + payload + _DIGEST
    if header > _HEADER_LIMIT or least > total or total != size:
        raise BadTaskFile(f"{path} should have {total} bytes and has {size}: it is torn, or not written by spoolpool.")
    return count, header, payload, total


def _lengths(front: Buffer, count: int, end: int, total: int, path: str) -> list[tuple[int, int]]:
    """Return the lengths of the buffers, each behind that of its padding, checked against the length of the file.

    ``front`` is the file up to its padding, at ``end``.
    """
    found = []
    for length in struct.unpack_from(f"<{count}Q", front, _PREFIX.size):
        padding = -end % PAGE
        end += padding + length
        if end > total - _DIGEST:
            raise BadTaskFile(f"{path} has a buffer beyond its end: it was not written by spoolpool.")
        found.append((padding, length))
    if end != total - _DIGEST:
        raise BadTaskFile(f"The lengths in {path} do not add up to its size: it was not written by spoolpool.")
    return found


def _wrong_checksum(path: str) -> BadTaskFile:
    return BadTaskFile(f"The checksum of {path} is wrong: it is torn or was changed.")


def _read_private(fd: int, size: int, path: str) -> memoryview:
    """Return this many bytes of a file, or all up to its end, in memory of this process that can be written to."""
    try:
        memory = memoryview(bytearray(size) if size < _MALLOC_BELOW else mmap.mmap(-1, size))
    except (OSError, OverflowError, MemoryError) as error:
        raise BadTaskFile(f"{path} has {size} bytes, and there is no memory for them here ({error}).") from error
    return memory[: file_content.read_into(fd, [memory], 0)]


def _read_apart(fd: int, size: int, path: str, *, checksum: bool) -> Envelope:
    """Read a file with one buffer or more. Each gets memory of its own: it is not copied, and keeps no other one."""
    front = file_content.read_at(fd, PAGE, 0)
    count, header, payload, total = _sizes(front, size, path)
    end = _PREFIX.size + 8 * count + header + payload
    front = front[:end] if end <= PAGE else front + file_content.read_at(fd, end - PAGE, PAGE)
    places = [bytearray(length) for each in _lengths(front, count, end, total, path) for length in each]
    expected = bytearray(_DIGEST)
    if end + file_content.read_into(fd, [*places, expected], end) != total:
        raise _wrong_checksum(path)
    if checksum:
        digest = xxhash.xxh3_128(front)
        for place in places:
            digest.update(place)
        if digest.digest() != expected:
            raise _wrong_checksum(path)
    buffers = [memoryview(each) for each in places[1::2]]
    return Envelope(front[end - payload - header : end - payload], front[end - payload :], buffers)


def _map(fd: int, size: int, *, writable: bool) -> memoryview:
    allowed = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=allowed))


def read(
    fd: int, size: int, path: str, check: Check | None = None, *, writable: bool = True, checksum: bool = True
) -> Envelope:
    """Read and check an opened file of ``size`` bytes. No large buffer is copied; a large file is mapped.

    The mapping is private. If it is ``writable``, changes of the arrays in it do not change the file; otherwise all
    processes of this host share its memory. ``check`` is for files of signed spools, which are never mapped: another
    process could change the file after its check. Without ``checksum`` the content is left to be checked by the caller.
    Raises :class:`BadTaskFile` for a torn or foreign file,
    :class:`SpoolVersion` for a newer one, and the exceptions of ``check``.
    """
    small = size < (_SMALL if writable else _SHARE_FROM)
    start = file_content.read_at(fd, size if small else _PREFIX.size, 0)
    signed = signing.SIZE if check else 0
    if check and len(start) >= _PREFIX.size and _PREFIX.unpack_from(start)[-1] == size:
        raise NotTrusted(f"{path} is not signed, but files of this spool must be. It was not unpickled.")
    count, header_length, payload_length, total = _sizes(start, size - signed, path)
    whole: Buffer = start
    if not small:
        if check is None and writable and count and size < _MAP_FROM:
            return _read_apart(fd, size, path, checksum=checksum)
        may_map = check is None and size >= _SHARE_FROM
        whole = _map(fd, size, writable=writable) if may_map else _read_private(fd, size, path)
    body = memoryview(whole)[: size - signed]
    if len(body) != total or (checksum and xxhash.xxh3_128_digest(body[:-_DIGEST]) != bytes(body[-_DIGEST:])):
        raise _wrong_checksum(path)
    if check:
        check(path, body, bytes(whole[size - signed :]))
        count, header_length, payload_length, total = _sizes(body[: _PREFIX.size], total, path)  # authentic now
    position = _PREFIX.size + 8 * count
    if not (count or check) and size < _SMALL and total == position + header_length + payload_length + _DIGEST:
        end = position + header_length  # the usual case: nothing is aligned, no views are needed
        return Envelope(start[position:end], start[end:-_DIGEST], ())
    return _parse(body, path, writable=writable, copies=small and writable)


def _parse(body: memoryview, path: str, *, writable: bool, copies: bool = False) -> Envelope:
    """Return the content of a whole file, with views of its buffers; ``copies``: of bytes, which are read-only."""
    count, header_length, payload_length, total = _sizes(body, len(body), path)
    position = _PREFIX.size + 8 * count
    header = bytes(body[position : position + header_length])
    position += header_length
    payload = body[position : position + payload_length]
    position += payload_length
    buffers: list[Buffer] = []
    for padding, length in _lengths(body, count, position, total, path):
        position += padding
        piece = body[position : position + length]
        buffers.append(memoryview(bytearray(piece)) if copies else piece if writable else piece.toreadonly())
        position += length
    return Envelope(header, payload, buffers)


def record_length(data: Buffer, *, signed: bool) -> int:
    """Return the length of the record with which these bytes begin; 0 where none begins, or where it is not complete.

    A file of records has one file of this format after another.
    """
    if len(data) < _PREFIX.size or data[:8] != MAGIC:
        return 0
    length = int(_PREFIX.unpack_from(data)[-1]) + (signing.SIZE if signed else 0)
    return length if _PREFIX.size < length <= len(data) else 0


def parse(data: memoryview, path: str, check: Check | None = None) -> Envelope:
    """Check and return one record of the file at ``path``; raises as :func:`read`. Its buffers are copied."""
    size = len(data) - (signing.SIZE if check else 0)
    body = data[:size]
    _sizes(body, size, path)
    if xxhash.xxh3_128_digest(body[:-_DIGEST]) != bytes(body[-_DIGEST:]):
        raise _wrong_checksum(path)
    if check:
        check(path, body, bytes(data[size:]))
    return _parse(body, path, writable=True, copies=True)


def read_header(fd: int, size: int, path: str, check: Check | None = None) -> bytes:
    """Return the header alone; of the rest of the file only the length is checked, unless a signature is checked."""
    if check:
        return read(fd, size, path, check).header
    start = file_content.read_at(fd, min(size, _SMALL), 0)
    count, length, _, _ = _sizes(start, size, path)
    position = _PREFIX.size + 8 * count
    if position + length > len(start):
        return file_content.read_at(fd, length, position)
    return start[position : position + length]
