"""Large files of a spool in memory: they lie in a second directory, on disk.

::

    outgoing/SESSION/NAME   header, and the size and checksum of ...  --->  OVERFLOW/DIGEST   the whole file

A temporary spool in a tmpfs is fast, but its files count as memory. A file of :data:`LARGE` bytes or more goes into the
second directory, named by a digest of its label, and so does one for which there is no room in memory. In the tree
of the spool there is a short file in its place, with the same header, which moves and is removed as any other.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable

import xxhash

from spoolpool.errors import BadTaskFile, NotTrusted
from spoolpool.format import envelope
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.temporary_names import new_temporary_name, parse_temporary_name
from spoolpool.security.permissions import why_replaceable
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files, memory, mounts
from spoolpool.system.accounts import account_name

LARGE = 1 << 18
"""Bytes from which on a file does not lie in memory."""

_MEDIUM = 1 << 14  # bytes from which on the room in memory is looked at
_RESERVE = 1 << 24  # bytes of room in memory that are left to smaller files
_MEMORY = 1 << 26  # the same of the memory that this process may use, its control group included
_LOOK = 1 << 24  # bytes that this process writes until it looks at that memory again, which takes half a millisecond
_MARK = b"spoolpool overflow\n"
_CONTENT = struct.Struct(f"<{len(_MARK)}sQ16s8s")

STUB_SIZE = sum(map(len, envelope.pack(b"{}", bytes(_CONTENT.size))))
"""Size of the short file of an object."""


class Overflow:
    """Second directory of a temporary spool. It belongs to the owner of the spool alone."""

    def __init__(self, path: str, root: str, spool: str, owner: int) -> None:
        """``root`` is the directory of the spool with this id. Raises :class:`NotTrusted` for another directory."""
        self.path = path
        self._root = root
        self._until_look = 0
        self._has_memory = True
        self._used: dict[str, str] = {}  # paths by the labels that this process has written, or read as outcomes
        name = parse_temporary_name(os.path.basename(path))
        if name is None or (name.kind, name.id) != ("values", spool):
            raise NotTrusted(f"{root}/spool.json names {path} for large values, which is no directory of this spool.")
        try:
            found = os.lstat(path)
        except OSError:  # it was removed; the first use will tell
            return
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or stat.S_IMODE(found.st_mode) & 0o077:
            raise NotTrusted(
                f"{path}, the directory of {root} for large values, is no directory of {account_name(owner)} alone. "
                "Nothing in it was read."
            )
        if reason := why_replaceable(path, owner):
            raise NotTrusted(f"Other accounts can replace {path}, the directory of {root} for large values: {reason}")

    @classmethod
    def create(cls, parent: str, spool: str) -> str:
        """Make the directory of the spool with this id; return its path. Raises ``OSError``."""
        path = f"{parent}/{new_temporary_name('values', spool)}"
        os.mkdir(path, 0o700)
        return path

    def create_file(self, path: str, label: str, parts: list[Buffer], write: Callable[[list[Buffer]], None]) -> None:
        """Create a file of the spool with ``write``, or here with a short one in its place."""
        size = sum(map(len, parts))
        if size < LARGE and (size < _MEDIUM or (self._room() >= size + _RESERVE and self._may_use_memory(size))):
            try:
                write(parts)
                return
            except OSError as error:
                if error.errno not in files.FULL or size <= envelope.PAGE:  # a short one would not fit either
                    raise
        header = envelope.header_of(parts)
        nonce = os.urandom(8)  # an object may be written anew while a file of the same content is removed
        target = self._path(label, nonce)
        try:
            files.create(target, parts)
            write(envelope.pack(header, _CONTENT.pack(_MARK, size, bytes(parts[-1])[-16:], nonce)))
        except BaseException:
            with contextlib.suppress(OSError):
                files.remove(target)
            raise
        self._used[label] = target

    def _room(self) -> int:
        try:
            return mounts.free_space(self._root)
        except OSError:
            return 0

    def _may_use_memory(self, size: int) -> bool:
        """Return whether memory is left for a file: a control group kills processes before its tmpfs is full."""
        self._until_look -= size
        if self._until_look < 0:
            usable = memory.usable()
            self._has_memory = usable is None or usable.available >= _MEMORY
            self._until_look = _LOOK
        return self._has_memory

    def read(self, path: str, label: str, content: Envelope, *, writable: bool, checksum: bool = True) -> Envelope:
        """Return the whole content of a file whose short content is given; most files are whole."""
        if not is_short(content):
            return content
        fd, size = self._open(path, label, content)
        try:
            return envelope.read(fd, size, path, writable=writable, checksum=checksum)
        finally:
            files.close(fd)

    def open_content(self, path: str, label: str, content: Envelope) -> int:
        """Return a descriptor of the whole file whose short content is given."""
        return self._open(path, label, content)[0]

    def _open(self, path: str, label: str, content: Envelope) -> tuple[int, int]:
        _, size, digest, nonce = _CONTENT.unpack(content.payload)
        target = self._path(label, nonce)
        try:
            fd = files.open_file(target)
        except FileNotFoundError as error:  # not passed on: it would look like a task that another worker has claimed
            raise BadTaskFile(f"{target}, the content of {path}, is missing: something has removed it.") from error
        try:
            same = Trust().check(fd, target).st_size == size and file_content.read_at(fd, 16, size - 16) == digest
        except BaseException:
            files.close(fd)
            raise
        if not same:
            files.close(fd)
            raise BadTaskFile(f"{target} is not the content of {path}: it is torn or was changed.")
        if label.startswith("outcome/"):
            self._used[label] = target
        return fd, size

    def remove(self, *labels: str) -> None:
        """Remove the files with these labels, as far as this process has used them."""
        for label in labels if self._used else ():
            if (target := self._used.pop(label, None)) is not None:
                files.remove(target)

    def find(self, path: str, label: str) -> str | None:
        """Return the path of the large file for which a file of the spool stands; None for another file."""
        with files.reading(path, Trust().check) as (fd, status):
            if status.st_size > _MEDIUM:
                return None
            try:
                content = envelope.read(fd, status.st_size, path)
            except BadTaskFile:
                return None
        return self._path(label, _CONTENT.unpack(content.payload)[-1]) if is_short(content) else None

    def remove_all(self) -> None:
        """Remove the directory with all its files."""
        files.remove_tree(self.path)

    def _path(self, label: str, nonce: bytes) -> str:
        return f"{self.path}/{xxhash.xxh3_128_hexdigest(label.encode() + nonce)}"


def is_short(content: Envelope) -> bool:
    """Return whether the rest of a file is in the second directory of its spool."""
    return len(content.payload) == _CONTENT.size and bytes(content.payload[: len(_MARK)]) == _MARK
