"""Cache of the objects that one rank opened last, for the calls that refer to them."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from spoolpool.errors import BadTaskFile, DependencyFailed
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.protocol.object_removal import restore
from spoolpool.protocol.objects import open_object, read_opened
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import object_label
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files
from spoolpool.system.backoff import Backoff

_KEPT = 32
"""Objects that a rank keeps open, with two descriptors each if it has the content, because a mapping has its own."""
_COPIED = 1 << 30
"""Bytes of objects that a rank keeps in a signed spool, in which they are read and not mapped."""


@dataclass
class _Opened:
    """An open object. Its file never changes: a content that was checked once need not be checked again."""

    fd: int
    path: str
    name: str
    """Id of the object."""
    content: Envelope | None = None
    """Read-only content, once it was asked for."""
    is_checked: bool = False


def _removed(fd: int) -> bool:
    """Return whether an opened file was removed."""
    try:
        return os.fstat(fd).st_nlink == 0
    except OSError:  # ESTALE
        return True


class ObjectCache:
    """The objects that one rank opened last, for the calls that refer to them.

    All processes of a node share the memory of a mapped object. It is unpickled for each call, so that no call sees
    the changes that another one made to a list or a dict.
    """

    def __init__(self, spool: Spool, trust: Trust) -> None:
        self._spool = spool
        self._trust = trust
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def content(self, name: str) -> Envelope:
        """Return the content of an object by the name of its file; arrays in it are read-only.

        Raises :class:`DependencyFailed` if it cannot be read, and :class:`NotTrusted` or :class:`BadTaskFile` if it
        must not be used.
        """
        with self._lock:
            opened = self._get(name)
            if opened.content is None:
                opened.content = read_opened(self._spool, opened.fd, opened.path, opened.name, writable=False)
                opened.is_checked = True
            return opened.content

    def fill(self, places: Mapping[str, Sequence[int]], buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return the buffers of a call, with those from objects at their places, writable for this call alone."""
        shared: dict[int, Buffer] = {}
        for name, each in places.items():
            if each:
                shared.update(self._private(name, each))
        if not shared:
            return buffers
        given = iter(buffers)
        try:
            return [shared[place] if place in shared else next(given) for place in range(len(shared) + len(buffers))]
        except StopIteration:
            raise BadTaskFile("The header of the call places more buffers than the call has.") from None

    def _private(self, name: str, places: Sequence[int]) -> Iterator[tuple[int, Buffer]]:
        """Yield the buffers of an object with their places; a large one is copied on write page by page.

        An object may have several times as many places as buffers, if a call has its content several times.
        """
        with self._lock:
            opened = self._get(name)
            # not closed by another thread meanwhile
            contents = [self._read_private(opened)]
            count = len(contents[0].buffers)
            if not count or len(places) % count:
                raise BadTaskFile(
                    f"{opened.path} holds {count} buffers, and the call has {len(places)} places for them."
                )
            contents += [self._read_private(opened) for _ in range(len(places) // count - 1)]
        yield from zip(places, (buffer for content in contents for buffer in content.buffers), strict=True)

    def _read_private(self, opened: _Opened) -> Envelope:
        if opened.is_checked and self._spool.signature is None:
            label = object_label(opened.name)
            return self._spool.read(opened.fd, file_content.size(opened.fd), opened.path, label, checksum=False)
        content = read_opened(self._spool, opened.fd, opened.path, opened.name, writable=True)
        opened.is_checked = True
        return content

    def _get(self, name: str) -> _Opened:
        """Return an open object, under the lock."""
        found = self._opened.get(name)
        if found is not None and _removed(found.fd):  # it was put again: pages of the old file may be lost
            found = None
        if found is None:
            # the space of removed files is not free before
            for each in [each for each, opened in self._opened.items() if _removed(opened.fd)]:
                files.close(self._opened.pop(each).fd)
            found = self._opened[name] = self._wait_for(name)
        self._opened.move_to_end(name)
        while len(self._opened) > _KEPT or (self._copied() > _COPIED and len(self._opened) > 1):
            files.close(self._opened.popitem(last=False)[1].fd)
        return found

    def _copied(self) -> int:
        if self._spool.signature is None:
            return 0
        contents = [each.content for each in self._opened.values() if each.content is not None]
        return sum(len(buffer) for content in contents for buffer in content.buffers)

    def _wait_for(self, name: str) -> _Opened:
        """Open an object; if it is missing, try as long as a cache may hide it."""
        digest, _, owner = name.partition("@")
        if bool(owner) != self._spool.shared:
            raise BadTaskFile(f"{name} is no name of an object of this spool.")
        backoff = Backoff(0.01, 1.0)
        end = time.monotonic() + self._spool.config.caches
        while True:
            try:
                return _Opened(*open_object(self._spool, digest, self._trust, int(owner) if owner else None), digest)
            except OSError as error:
                if error.errno not in files.GONE or time.monotonic() > end:
                    raise DependencyFailed(
                        f"The object {self._spool.layout.objects}/{name}, which the call needs, cannot be read: "
                        f"{error.strerror}. Put it again, and submit the call again."
                    ) from error
            files.refresh(self._spool.layout.objects)
            if not restore(self._spool, name):
                backoff.sleep()
