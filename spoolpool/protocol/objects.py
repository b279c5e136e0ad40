"""Objects: large arguments that are stored once and passed by reference. Their id is the hash of the content.

A session that uses an object has a lease on it, an empty file in ``needs/``. An object is removed when there is no
lease on it any more and no task refers to it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import xxhash

from spoolpool.errors import BadTaskFile, DependencyFailed, NoKey, NotTrusted, SpoolpoolError
from spoolpool.format import envelope
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.names import ObjectLease, is_session, new_submitter_id, parse_lane, parse_lease, parse_task_file
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task
from spoolpool.security.signing import SIZE, object_label
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.backoff import Backoff

_KEPT = 32
"""Objects that a rank keeps open, with two descriptors each, because a mapping has its own."""
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


def put_object(spool: Spool, payload: Buffer, buffers: Sequence[Buffer], writer: str) -> str:
    """Store an object, once per account and content; return its id.

    Acquire a lease first: nothing else keeps the object. No other process may write under the name ``writer`` at the
    same time. Raises :class:`SpoolFull`, after which nothing is left, and :class:`NotTrusted` if another account has
    put a file in its place.
    """
    name = object_id(payload, buffers)
    target = spool.layout.object(name, spool.account)
    parts = envelope.pack(b"{}", payload, buffers)
    with files.translate_errors(f"put an object into {spool.path}"):
        if not _exists(target, sum(map(len, parts))):
            source = f"{spool.layout.tmp}/{name}.{writer}"
            spool.write(source, object_label(name), parts)
            files.move(source, target, durability=spool.config.durability)
    return name


def _exists(path: str, size: int) -> bool:
    """Return whether an object of this account exists, and set its time; remove it if it is cut short."""
    if not files.exists(path):
        return False
    try:
        with files.reading(path, Trust().check) as (_, status):
            found = status.st_size
        if found - size not in (0, SIZE):
            files.remove(path)
            return False
        files.touch(path)
    except OSError as error:
        if error.errno in files.GONE:  # removed as garbage just now
            return False
        raise
    return True


# -- reading


def read_object(spool: Spool, name: str, trust: Trust, owner: int | None = None) -> Envelope:
    """Read an object of a trusted account, and check that its content matches its name.

    In a shared spool it must belong to ``owner``, the account of the task that refers to it. The hash is fast and not
    cryptographic, so that another account could make an object with the same name.
    """
    fd, content = _open(spool, name, trust, owner, writable=True)
    files.close(fd)
    return content


def _open(spool: Spool, name: str, trust: Trust, owner: int | None, *, writable: bool = False) -> tuple[int, Envelope]:
    """Return the descriptor and the content of an object."""
    assert owner is not None or not spool.shared
    path = spool.layout.object(name, owner if spool.shared else None)
    fd = files.open_file(path)
    try:
        return fd, _read(spool, fd, path, name, trust, owner, writable=writable)
    except BaseException:
        files.close(fd)
        raise


def _read(spool: Spool, fd: int, path: str, name: str, trust: Trust, owner: int | None, *, writable: bool) -> Envelope:
    status = trust.check(fd, path)
    if spool.shared and owner is not None and status.st_uid != owner:
        raise NotTrusted(
            f"{path} belongs to {account_name(status.st_uid)} and should be {account_name(owner)}'s. It was not read."
        )
    content = spool.read(fd, status.st_size, path, object_label(name), writable=writable)
    if object_id(content.payload, content.buffers) != name:
        raise BadTaskFile(f"The content of {path} does not match its name. Remove it, and put the object again.")
    return content


class _Opened(NamedTuple):
    fd: int
    content: Envelope


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
        return self._get(name).content

    def fill(self, places: Mapping[str, Sequence[int]], buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return the buffers of a call, with those from objects at their places, writable for this call alone."""
        shared = {place: name for name, each in places.items() for place in each}
        if not shared:
            return buffers
        given = iter(buffers)
        try:
            return [
                self._private(shared[place]) if place in shared else next(given)
                for place in range(len(shared) + len(buffers))
            ]
        except StopIteration:
            raise BadTaskFile("The header of the call places more buffers than the call has.") from None

    def _private(self, name: str) -> Buffer:
        """Return the one buffer of an object, copied on write page by page."""
        opened = self._get(name)
        path = f"{self._spool.layout.objects}/{name}"
        label = object_label(name.partition("@")[0])
        content = self._spool.read(opened.fd, files.size(opened.fd), path, label)
        if len(content.buffers) != 1:
            raise BadTaskFile(f"{path} holds {len(content.buffers)} buffers; one was expected.")
        return content.buffers[0]

    def _get(self, name: str) -> _Opened:
        with self._lock:
            found = self._opened.get(name)
            if found is not None and _removed(found.fd):  # it was put again: pages of the old file may be lost
                files.close(self._opened.pop(name).fd)
                found = None
            if found is None:
                found = self._opened[name] = self._wait_for(name)
            self._opened.move_to_end(name)
            while len(self._opened) > _KEPT or (self._copied() > _COPIED and len(self._opened) > 1):
                files.close(self._opened.popitem(last=False)[1].fd)
            return found

    def _copied(self) -> int:
        if self._spool.signature is None:
            return 0
        return sum(len(buffer) for each in self._opened.values() for buffer in each.content.buffers)

    def _wait_for(self, name: str) -> _Opened:
        """Open an object; if it is missing, try as long as a cache may hide it."""
        digest, _, owner = name.partition("@")
        if bool(owner) != self._spool.shared:
            raise BadTaskFile(f"{name} is no name of an object of this spool.")
        backoff = Backoff(0.01, 1.0)
        end = time.monotonic() + self._spool.config.caches
        while True:
            try:
                return _Opened(*_open(self._spool, digest, self._trust, int(owner) if owner else None))
            except OSError as error:
                if error.errno not in files.GONE or time.monotonic() > end:
                    raise DependencyFailed(
                        f"The object {self._spool.layout.objects}/{name}, which the call needs, cannot be read: "
                        f"{error.strerror}. Put it again, and submit the call again."
                    ) from error
            files.refresh(self._spool.layout.objects)
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

    ``refresh`` touches the directories, so that an earlier listing in the cache of an NFS client hides no lease.
    """
    found: dict[str, set[str]] = {}
    for session in filter(is_session, files.list_names(spool.layout.needs)):
        if refresh:
            files.refresh(f"{spool.layout.needs}/{session}")
        for each in map(parse_lease, files.list_names(f"{spool.layout.needs}/{session}")):
            if each is not None:
                found.setdefault(each.object, set()).add(f"needs/{session}/{each.name}")
    return found


def referenced_objects(spool: Spool, places: Iterable[str]) -> set[str]:
    """Return the objects to which the tasks in these directories refer, as their headers say."""
    found: set[str] = set()
    for directory in places:
        for task_file in map(parse_task_file, files.list_names(directory)):
            if task_file is None:
                continue
            try:
                header = read_task(spool, f"{directory}/{task_file.name}", task_file)
            except NoKey:
                raise
            except (OSError, SpoolpoolError):  # it moved, and is found in its new place; or no worker can run it
                continue
            found.update(header.objects)
            if header.init:
                lane = parse_lane(header.lane)
                found.add(os.path.basename(spool.layout.object(header.init, lane.user if lane else None)))
    return found


def remove_object(spool: Spool, name: str, stamp: int | None = None) -> bool:
    """Remove an object without a lease, by the name of its file; return whether it was removed.

    A session that puts the object meanwhile acquires a lease first, then checks whether the object exists and sets its
    time. So it is moved aside, and moved back if there is a lease by then or its time (in ns) is not ``stamp`` any
    more.
    """
    path = f"{spool.layout.objects}/{name}"
    aside = f"{spool.layout.tmp}/{name.partition('@')[0]}.{new_submitter_id()}"
    try:
        files.move(path, aside)
    except OSError as error:
        # another process removes it too; or, in a dropbox, it belongs to another account
        if error.errno in files.GONE | files.DENIED:
            return False
        raise
    used = name in leases(spool, refresh=True) or stamp not in (None, files.mtime_ns(aside))
    if used and not files.exists(path):
        files.move(aside, path)
        return False
    return files.remove(aside)
