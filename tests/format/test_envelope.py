"""File format: a packed file is read back, and every other file is refused."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolpool.errors import BadTaskFile, SpoolVersion
from spoolpool.format import envelope
from spoolpool.format.envelope import PAGE, Buffer, Envelope
from spoolpool.system import file_content, files

LARGE = 1 << 22
"""Bytes from which a file is mapped."""

PREFIX = struct.Struct("<8sHHIQQ")
"""The prefix of ``docs/format.md``: magic, version, number of buffers, lengths of header, pickle and file."""


def packed(header: bytes = b'{"a": 1}', payload: bytes = b"payload", buffers: Sequence[Buffer] = ()) -> bytes:
    return b"".join(bytes(part) for part in envelope.pack(header, payload, buffers))


def read(path: Path, data: bytes | None = None) -> Envelope:
    if data is not None:
        path.write_bytes(data)
    fd = files.open_file(str(path))
    try:
        return envelope.read(fd, file_content.size(fd), str(path))
    finally:
        files.close(fd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


parts = st.binary(max_size=300)


@settings(max_examples=80, deadline=None)
@given(parts, parts, st.lists(st.binary(max_size=3 * PAGE), max_size=5))
def test_a_packed_file_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, payload: bytes, buffers: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("envelope") / "file"
    files.create(str(path), envelope.pack(header, payload, buffers))
    content = read(path)
    assert content.header == header
    assert bytes(content.payload) == payload
    assert [bytes(buffer) for buffer in content.buffers] == buffers
    fd = files.open_file(str(path))
    try:
        assert envelope.read_header(fd, file_content.size(fd), str(path)) == header
    finally:
        files.close(fd)


def test_a_header_of_a_megabyte_is_read_whole(path: Path) -> None:
    header = b"x" * (1 << 20)
    content = read(path, packed(header=header))
    assert content.header == header
    fd = files.open_file(str(path))
    try:
        assert envelope.read_header(fd, file_content.size(fd), str(path)) == header
    finally:
        files.close(fd)


def test_packing_copies_no_buffer() -> None:
    buffer = memoryview(bytearray(LARGE))
    assert any(part is buffer for part in envelope.pack(b"{}", b"", [buffer]))


@pytest.mark.parametrize("size", [PAGE, 40_000, LARGE, LARGE + 12345])
def test_every_buffer_begins_at_a_page_of_the_file(size: int) -> None:
    buffers = [bytes([number]) * (size + number) for number in (1, 2, 3)]
    whole = packed(buffers=buffers)
    for buffer in buffers:
        assert whole.index(buffer) % PAGE == 0


def address(buffer: Buffer) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # raises for a read-only buffer


def test_buffers_of_a_large_file_are_mapped_at_pages_and_not_copied(path: Path) -> None:
    content = read(path, packed(buffers=[bytes(LARGE), b"x" * 50_000]))
    for buffer in content.buffers:
        assert address(buffer) % PAGE == 0
        assert isinstance(buffer, memoryview) and isinstance(buffer.obj, mmap.mmap)


@pytest.mark.parametrize("size", [1000, 100_000, 2 << 20, LARGE])
def test_buffers_are_writable_and_the_file_stays_unchanged(size: int, path: Path) -> None:
    data = packed(buffers=[bytes(size)])
    content = read(path, data)
    content.buffers[0][0] = 7  # type: ignore[index]  # must be possible
    assert content.buffers[0][0] == 7
    assert path.read_bytes() == data
    assert read(path).buffers[0][0] == 0


@pytest.mark.parametrize("size", [70_000, 2 << 20])
def test_buffer_of_a_file_that_is_read_keeps_no_other_buffer_in_memory(size: int, path: Path) -> None:
    content = read(path, packed(payload=b"p" * 5000, buffers=[bytes(size), b"x" * 40_000]))
    owners = [memoryview(buffer).obj for buffer in content.buffers]
    assert [type(owner) for owner in owners] == [bytearray, bytearray]
    assert [len(owner) for owner in owners] == [size, 40_000]
    assert [address(buffer) % 16 for buffer in content.buffers] == [0, 0]
    assert bytes(content.payload) == b"p" * 5000


def test_file_with_hundreds_of_buffers_is_read_back(path: Path) -> None:
    buffers = [bytes([number % 256]) * (number % 7) for number in range(900)]  # with paddings more than IOV_MAX
    content = read(path, packed(buffers=buffers))
    assert [bytes(buffer) for buffer in content.buffers] == buffers


def test_a_mapped_file_is_whole_after_it_was_removed(path: Path) -> None:
    content = read(path, packed(buffers=[b"x" * LARGE]))
    path.unlink()
    assert bytes(content.buffers[0]) == b"x" * LARGE


def test_a_file_torn_at_any_byte_is_refused(path: Path) -> None:
    small, with_buffers = packed(), packed(buffers=[b"abc", bytes(10)])
    torn = [small[:length] for length in range(len(small))]
    torn += [with_buffers[:length] for length in range(0, len(with_buffers), 61)]
    for data in torn:
        with pytest.raises(BadTaskFile, match=str(path)):
            read(path, data)


def test_a_file_with_any_byte_changed_is_refused(path: Path) -> None:
    whole = packed(payload=b"payload" * 3)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1
        with pytest.raises((BadTaskFile, SpoolVersion), match=str(path)):
            read(path, bytes(changed))


@pytest.mark.parametrize("end", [b"\0", b"x" * 100, bytes(PAGE)])
def test_a_file_with_trailing_bytes_is_refused(end: bytes, path: Path) -> None:
    with pytest.raises(BadTaskFile, match=str(path)):
        read(path, packed() + end)


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"#!/bin/sh\n" * 10, b"\x80\x05K\x01.", bytes(2 * LARGE)])
def test_a_foreign_file_is_refused(data: bytes, path: Path) -> None:
    with pytest.raises(BadTaskFile, match="foreign or torn"):
        read(path, data)
    fd = files.open_file(str(path))
    try:
        with pytest.raises(BadTaskFile, match="foreign or torn"):
            envelope.read_header(fd, file_content.size(fd), str(path))
    finally:
        files.close(fd)


def test_a_file_of_a_later_version_raises_spool_version(path: Path) -> None:
    whole = packed()
    later = whole[:8] + struct.pack("<H", 2) + whole[10:]
    with pytest.raises(SpoolVersion, match="format 2"):
        read(path, later)


ABSURD = {
    "buffers": (2, [0, 2, 512, 65535]),
    "header": (3, [1 << 20, 1 << 31, (1 << 32) - 1]),
    "payload": (4, [1 << 20, 1 << 40, 1 << 63, (1 << 64) - 1]),
    "total": (5, [0, 1, 1 << 40, 1 << 63, (1 << 64) - 1]),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in ABSURD for value in ABSURD[field][1]])
def test_absurd_lengths_are_refused(field: str, value: int, path: Path) -> None:
    whole = packed(buffers=[bytes(100)])
    fields = list(PREFIX.unpack_from(whole))
    fields[ABSURD[field][0]] = value
    lying = PREFIX.pack(*fields) + whole[PREFIX.size :]
    for data in (lying, with_checksum(lying)):  # also with a valid checksum
        with pytest.raises(BadTaskFile, match=str(path)):
            read(path, data)


@pytest.mark.parametrize("value", [0, 99, 101, 1 << 25, 1 << 40, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("size", [100, 100_000, LARGE])
def test_a_buffer_that_does_not_end_with_its_file_is_refused(value: int, size: int, path: Path) -> None:
    whole = packed(buffers=[bytes(size)])
    lying = whole[: PREFIX.size] + struct.pack("<Q", value) + whole[PREFIX.size + 8 :]
    with pytest.raises(BadTaskFile, match=str(path)):
        read(path, with_checksum(lying))


def with_checksum(data: bytes) -> bytes:
    """Return a file with a valid checksum."""
    import xxhash

    return data[:-16] + xxhash.xxh3_128_digest(data[:-16])


@pytest.mark.parametrize("hole", [100_000, 3 * LARGE])
def test_a_file_of_zeros_as_after_a_power_loss_is_refused(hole: int, path: Path) -> None:
    whole = packed(buffers=[b"x" * hole])
    path.write_bytes(whole[:100])
    os.truncate(path, len(whole))
    assert path.stat().st_blocks * 512 < len(whole)
    with pytest.raises(BadTaskFile, match="checksum"):
        read(path)


def test_a_sparse_file_with_a_header_of_a_terabyte_costs_nothing(path: Path) -> None:
    prefix = PREFIX.pack(envelope.MAGIC, 1, 0, 1 << 30, 0, 1 << 40)
    path.write_bytes(prefix)
    try:
        os.truncate(path, 1 << 40)
    except OSError as error:
        pytest.skip(f"no sparse file of a terabyte here: {error.strerror}")
    with pytest.raises(BadTaskFile, match=str(path)):
        read(path)


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that reads and writes a few bytes at a time, as POSIX allows."""

    class Slow:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def pread(self, fd: int, count: int, offset: int) -> bytes:
            return os.pread(fd, min(count, 10), offset)

        def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
            return os.preadv(fd, [views[0][:777]], offset)

        def writev(self, fd: int, views: Sequence[memoryview]) -> int:
            return os.write(fd, views[0][:7])

    monkeypatch.setattr(file_content, "os", Slow())


@pytest.mark.usefixtures("few_at_a_time")
@pytest.mark.parametrize("size", [5000, 70_000])
def test_short_reads_and_writes_are_continued(size: int, path: Path) -> None:
    header, payload, buffers = b"h" * 50, b"p" * 3000, [b"b" * size]
    files.create(str(path), envelope.pack(header, payload, buffers))
    content = read(path)
    assert (content.header, bytes(content.payload), bytes(content.buffers[0])) == (header, payload, buffers[0])
    fd = files.open_file(str(path))
    try:
        assert envelope.read_header(fd, file_content.size(fd), str(path)) == header
    finally:
        files.close(fd)
