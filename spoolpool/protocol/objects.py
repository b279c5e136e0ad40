"""Objects: large arguments that are stored once and passed by reference. Their id is the hash of the content.

A session that uses an object has a lease on it, an empty file in ``needs/``. An object is removed when there is no
lease on it any more and no task refers to it. A task that cannot be read may refer to any object.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from spoolpool.errors import BadTaskFile, DependencyFailed, NoKey, NotTrusted, SpoolpoolError
from spoolpool.format import envelope
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import (
    ObjectLease,
    TaskFile,
    is_session,
    is_task_id,
    name_aside,
    parse_lane,
    parse_lease,
    parse_task_file,
)
from spoolpool.protocol.overflow import STUB_SIZE
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task, task_directories
from spoolpool.security.signing import SIZE, object_label
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.backoff import Backoff

_KEPT = 32
"""Objects that a rank keeps open, with two descriptors each if it has the content, because a mapping has its own."""
_COPIED = 1 << 30
"""Bytes of objects that a rank keeps in a signed spool, in which they are read and not mapped."""


def object_id(payload: Buffer, buffers: Sequence[Buffer]) -> str:
    """Return the id of an object with this content."""
    digest = xxhash.xxh3_128(payload)
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


def object_file(spool: Spool, name: str) -> str:
    """Return the name of the file of this account's object."""
    return os.path.basename(spool.layout.object(name, spool.account))


# -- writing


def put_object(spool: Spool, payload: Buffer, buffers: Sequence[Buffer], writer: str, name: str = "") -> str:
    """Store an object, once per account and content; return its id, which is ``name`` where it is known.

    Acquire a lease first: nothing else keeps the object. No other process may write under the name ``writer`` at the
    same time. Raises :class:`SpoolFull`, after which nothing is left, and :class:`NotTrusted` if another account has
    put a file in its place.
    """
    name = name or object_id(payload, buffers)
    target = spool.layout.object(name, spool.account)
    parts = envelope.pack(b"{}", payload, buffers)
    with files.translate_errors(f"put an object into {spool.path}"):
        if not _exists(spool, target, sum(map(len, parts))):
            source = f"{spool.layout.tmp}/{name}.{writer}"
            spool.in_directory(spool.layout.tmp, lambda: spool.write(source, object_label(name), parts))
            durability = spool.config.durability
            spool.in_directory(spool.layout.objects, lambda: files.move(source, target, durability=durability))
    return name


def _exists(spool: Spool, path: str, size: int) -> bool:
    """Return whether an object of this account exists, and set its time; remove it if it is cut short.

    The directory is not listed, since it may have very many names: an object that a stale cache hides is written again.
    """
    try:
        with files.reading(path, Trust().check) as (_, status):
            found = status.st_size
        if found - size not in (0, SIZE) and not (spool.overflow is not None and found == STUB_SIZE):
            files.remove(path)
            return False
        files.touch(path)
    except OSError as error:
        if error.errno in files.GONE:  # also if it was removed as garbage just now
            return False
        raise
    return True


# -- reading


def read_object(spool: Spool, name: str, trust: Trust, owner: int | None = None) -> Envelope:
    """Read an object of a trusted account, and check that its content matches its name.

    In a shared spool it must belong to ``owner``, the account of the task that refers to it. The hash is fast and not
    cryptographic, so that another account could make an object with the same name.
    """
    fd, path = _open(spool, name, trust, owner)
    try:
        return _read(spool, fd, path, name, writable=True)
    finally:
        files.close(fd)


def _open(spool: Spool, name: str, trust: Trust, owner: int | None) -> tuple[int, str]:
    """Return the descriptor and the path of an object of the right account."""
    assert owner is not None or not spool.shared
    path = spool.layout.object(name, owner if spool.shared else None)
    fd = files.open_file(path)
    try:
        _check_owner(trust.check(fd, path).st_uid, path, owner if spool.shared else None)
    except BaseException:
        files.close(fd)
        raise
    return fd, path


def _check_owner(found: int, path: str, owner: int | None) -> None:
    if owner not in (None, found):
        raise NotTrusted(
            f"{path} belongs to {account_name(found)} and should be {account_name(owner)}'s. It was not read."
        )


def _read(spool: Spool, fd: int, path: str, name: str, *, writable: bool) -> Envelope:
    # its id is the checksum of its content
    content = spool.read(fd, files.size(fd), path, object_label(name), writable=writable, checksum=False)
    if object_id(content.payload, content.buffers) != name:
        raise BadTaskFile(f"The content of {path} does not match its name. Remove it, and put the object again.")
    return content


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
                opened.content = _read(self._spool, opened.fd, opened.path, opened.name, writable=False)
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
            return self._spool.read(opened.fd, files.size(opened.fd), opened.path, label, checksum=False)
        content = _read(self._spool, opened.fd, opened.path, opened.name, writable=True)
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
                return _Opened(*_open(self._spool, digest, self._trust, int(owner) if owner else None), digest)
            except OSError as error:
                if error.errno not in files.GONE or time.monotonic() > end:
                    raise DependencyFailed(
                        f"The object {self._spool.layout.objects}/{name}, which the call needs, cannot be read: "
                        f"{error.strerror}. Put it again, and submit the call again."
                    ) from error
            files.refresh(self._spool.layout.objects)
            if not _restore(self._spool, name):
                backoff.sleep()


# -- leases


def acquire(spool: Spool, session: str, lease: ObjectLease) -> None:
    """Create or renew a lease of a session on an object; harmless when repeated."""
    directory = f"{spool.layout.needs}/{session}"

    def create() -> None:
        path = f"{spool.directory(directory)}/{lease.name}"
        try:
            files.create(path, [])
        except FileExistsError:
            files.touch(path)

    spool.in_directory(directory, create)


def release(spool: Spool, session: str, lease: ObjectLease) -> None:
    """Remove a lease of a session on an object."""
    with contextlib.suppress(FileNotFoundError):
        place = spool.directory(f"{spool.layout.needs}/{session}")
        files.remove(f"{place}/{lease.name}")


def leases(spool: Spool, *, refresh: bool = False) -> dict[str, set[str]]:
    """Return the paths of the leases, below the spool, by the names of the objects' files.

    ``refresh`` touches the directories, so that an earlier listing in the cache of an NFS client hides no lease. Raises
    ``OSError`` where a directory cannot be listed: that does not mean that it is empty.
    """
    found: dict[str, set[str]] = {}
    for session in filter(is_session, files.list_names(spool.layout.needs, certain=True)):
        if refresh:
            files.refresh(f"{spool.layout.needs}/{session}")
        for each in map(parse_lease, files.list_names(f"{spool.layout.needs}/{session}", certain=True)):
            if each is not None:
                found.setdefault(each.object, set()).add(f"needs/{session}/{each.name}")
    return found


# -- references of tasks


def objects_of(spool: Spool, header: TaskHeader) -> set[str]:
    """Return the names of the files of the objects that a task needs."""
    found = set(header.objects)
    if header.init:
        lane = parse_lane(header.lane)
        found.add(os.path.basename(spool.layout.object(header.init, lane.user if lane else None)))
    return found


class References(NamedTuple):
    """Objects that tasks need, as their headers say."""

    objects: set[str]
    """Names of the objects' files."""
    unreadable: dict[str, str]
    """Task files and directories that cannot be read, with the reasons. They may need any object."""


def read_references(spool: Spool) -> References:
    """Read the headers of all tasks, also of those whose submitter is about to move them out of ``tmp/``.

    A task may move to a directory that was listed before. So a caller looks more than once. Raises :class:`NoKey`.
    """
    found = References(set(), {})
    try:
        for directory in (spool.layout.tmp, *task_directories(spool)):
            for name in files.list_names(directory, certain=True):
                task_file = TaskFile(name, 1, 1) if is_task_id(name) else parse_task_file(name)
                if task_file is not None:
                    _add_references(spool, f"{directory}/{name}", task_file, found)
    except OSError as error:
        found.unreadable[str(error.filename)] = error.strerror or str(error)
    return found


def _add_references(spool: Spool, path: str, task_file: TaskFile, found: References) -> None:
    try:
        header = read_task(spool, path, task_file)
    except NoKey:
        raise
    except OSError as error:
        # it moved, and is found in its new place; but ESTALE alone does not say that
        if error.errno not in files.GONE or (error.errno == errno.ESTALE and not _is_gone(path)):
            found.unreadable[path] = error.strerror or str(error)
    except BadTaskFile as error:
        # a file in tmp/ that is not complete has a live writer with a lease, or none
        if os.path.dirname(path) != spool.layout.tmp:
            found.unreadable[path] = str(error)
    except SpoolpoolError as error:  # of a newer version, or not signed
        found.unreadable[path] = str(error)
    else:
        found.objects.update(objects_of(spool, header))


def _is_gone(path: str) -> bool:
    directory, name = os.path.split(path)
    return name not in files.list_names(directory, certain=True)


# -- removal


def is_stored(spool: Spool, name: str) -> bool:
    """Return whether an object exists, by the name of its file; acquire a lease first.

    An object that another process has put aside is put back: that process may have died since.
    """
    path = f"{spool.layout.objects}/{name}"
    return files.exists(path) or _restore(spool, name) or files.exists(path)


def _restore(spool: Spool, name: str) -> bool:
    """Put back an object that was put aside; return whether there was one."""
    where = spool.layout.objects
    with contextlib.suppress(OSError):  # in a dropbox only its owner can list them
        for each in files.list_names(where):
            aside = parse_lease(each)
            if aside is not None and aside.object == name:
                files.move(f"{where}/{each}", f"{where}/{name}")  # race: it was put back, or removed as not needed
                return True
    return False


def remove_object(spool: Spool, name: str) -> bool:
    """Remove an object on which there is no lease, by the name of its file; return whether it was removed.

    For a caller that knows of no task that needs the object without a lease.
    """
    return remove_objects(spool, {name: None}, lambda: leases(spool, refresh=True)) == 1


def remove_objects(spool: Spool, stamps: Mapping[str, int | None], find_needed: Callable[[], Container[str]]) -> int:
    """Remove objects, by the names of their files and their times in ns; return the number of removed ones.

    All are put aside before ``find_needed`` looks for the needed ones. Those are put back, and those with another time
    than in ``stamps``. A process that acquires an object meanwhile creates its lease before it looks for the object: it
    finds the object, here or aside, or ``find_needed`` finds the lease. If this process dies, an object stays aside:
    whoever needs it puts it back, or 'spool gc' does. If ``find_needed`` raises, all are put back.
    """
    aside: dict[str, str] = {}
    removed = 0
    try:
        for name in stamps:
            path = f"{spool.layout.objects}/{name_aside(name)}"
            try:
                files.move(f"{spool.layout.objects}/{name}", path)
            except OSError as error:
                # another process removes it too; or, in a dropbox, it belongs to another account
                if error.errno not in files.GONE | files.DENIED:
                    raise
            else:
                aside[name] = path
        needed = find_needed() if aside else ()
        for name, path in list(aside.items()):
            with contextlib.suppress(OSError):  # it cannot be opened, as another account's: it stays
                if name not in needed and stamps[name] in (None, files.mtime_ns(path)):
                    large = None
                    if spool.overflow is not None:
                        large = spool.overflow.find(path, object_label(name.partition("@")[0]))
                    removed += files.remove(path)
                    del aside[name]
                    if large is not None:
                        files.remove(large)
    finally:
        for name, path in aside.items():
            with contextlib.suppress(OSError):  # race: a process that needs it has put it back; or 'spool gc' will
                if files.exists(f"{spool.layout.objects}/{name}"):
                    files.remove(path)
                else:
                    files.move(path, f"{spool.layout.objects}/{name}")
    return removed
