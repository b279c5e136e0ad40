"""Objects that are stored once and passed by reference; their name is the hash of what is in them.

A session that uses an object *holds* it: an empty file in ``needs/`` says so. An object goes when nobody holds it any
more and no task names it.
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
"""Objects that a rank keeps open, with two descriptors each: a mapping has its own."""
_COPIED = 1 << 30
"""Bytes of objects that a rank keeps, where they are not mapped but read: in signed spools."""


def object_id(payload: Buffer, buffers: Sequence[Buffer]) -> str:
    """The name of what has this content."""
    digest = xxhash.xxh3_128(payload)
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


def object_file(spool: Spool, name: str) -> str:
    """What the file of this account's object is called."""
    return os.path.basename(spool.layout.object(name, spool.account))


# -- writing


def put_object(spool: Spool, payload: Buffer, buffers: Sequence[Buffer], writer: str) -> str:
    """Store an object, once per account and content; returns its id.

    Nobody else may write under the name ``writer`` at the same time. Hold it first: nothing else keeps it. Raises
    :class:`SpoolFull`, after which nothing is left, and :class:`NotTrusted` where another account has put something
    in its place.
    """
    name = object_id(payload, buffers)
    target = spool.layout.object(name, spool.account)
    parts = envelope.pack(b"{}", payload, buffers)
    with files.translate_errors(f"put an object into {spool.path}"):
        if not _is_there(target, sum(map(len, parts))):
            source = f"{spool.layout.tmp}/{name}.{writer}"
            spool.write(source, object_label(name), parts)
            files.move(source, target, durability=spool.config.durability)
    return name


def _is_there(path: str, size: int) -> bool:
    """Whether an object of this account's is there, which then counts as new; one that is cut short is taken away."""
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
        if error.errno in files.GONE:  # collected just now
            return False
        raise
    return True


# -- reading


def read_object(spool: Spool, name: str, trust: Trust, owner: int | None = None) -> Envelope:
    """Read an object of a trusted account's and check that it is what its name says.

    In a shared spool it must belong to ``owner``, that of the task which names it: a hash that is quick is no proof
    against people, so that nobody else's object is taken for it.
    """
    fd, content = _open(spool, name, trust, owner, writable=True)
    files.close(fd)
    return content


def _open(spool: Spool, name: str, trust: Trust, owner: int | None, *, writable: bool = False) -> tuple[int, Envelope]:
    """An object's descriptor, and what is in it."""
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
        raise NotTrusted(f"{path} belongs to {account_name(status.st_uid)}, and {account_name(owner)}'s is asked for.")
    content = spool.read(fd, status.st_size, path, object_label(name), writable=writable)
    if object_id(content.payload, content.buffers) != name:
        raise BadTaskFile(f"{path} does not hold what its name says.")
    return content


class _Opened(NamedTuple):
    fd: int
    content: Envelope


def _removed(fd: int) -> bool:
    """Whether an opened file has no name any more."""
    try:
        return os.fstat(fd).st_nlink == 0
    except OSError:  # ESTALE
        return True


class ObjectCache:
    """The objects that one rank has opened, the last ones of them, for the calls that name them.

    What is mapped is the same memory for all processes of a node. It is unpickled anew for each call, so that none
    sees what another one did to a list or a dict.
    """

    def __init__(self, spool: Spool, trust: Trust) -> None:
        self._spool = spool
        self._trust = trust
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def content(self, name: str) -> Envelope:
        """What is in an object, by the name of its file; arrays in it are read-only.

        Raises :class:`DependencyFailed` where it cannot be had, :class:`NotTrusted` or :class:`BadTaskFile` where it
        is not what it should be.
        """
        return self._get(name).content

    def fill(self, places: Mapping[str, Sequence[int]], buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """The buffers of a call, with those that stand in objects at their places, for this call alone to write to."""
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
            raise BadTaskFile("The call names buffers that it does not have.") from None

    def _private(self, name: str) -> Buffer:
        """The one buffer of an object, copied page by page when it is written to."""
        opened = self._get(name)
        path = f"{self._spool.layout.objects}/{name}"
        label = object_label(name.partition("@")[0])
        content = self._spool.read(opened.fd, files.size(opened.fd), path, label)
        if len(content.buffers) != 1:
            raise BadTaskFile(f"{path} is not one buffer.")
        return content.buffers[0]

    def _get(self, name: str) -> _Opened:
        with self._lock:
            found = self._opened.get(name)
            if found is not None and _removed(found.fd):  # and then put anew: pages of the old file may be lost
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
        """Open an object; one that is not there may be hidden by a cache, for as long as caches last."""
        digest, _, owner = name.partition("@")
        if bool(owner) != self._spool.shared:
            raise BadTaskFile(f"An object of this spool cannot be called {name}.")
        backoff = Backoff(0.01, 1.0)
        end = time.monotonic() + self._spool.config.caches
        while True:
            try:
                return _Opened(*_open(self._spool, digest, self._trust, int(owner) if owner else None))
            except OSError as error:
                if error.errno not in files.GONE or time.monotonic() > end:
                    raise DependencyFailed(
                        f"The object {self._spool.layout.objects}/{name}, which the call needs, cannot be read: "
                        f"{error.strerror}. Put it there again, and submit the call again."
                    ) from error
            files.refresh(self._spool.layout.objects)
            backoff.sleep()


# -- who holds them


def acquire(spool: Spool, session: str, mine: ObjectLease) -> None:
    """Say that a session uses an object, or say it anew; harmless when repeated."""
    directory = f"{spool.layout.needs}/{session}"

    def create() -> None:
        path = f"{spool.directory(directory)}/{mine.name}"
        try:
            files.create(path, [])
        except FileExistsError:
            files.touch(path)

    spool.in_directory(directory, create)


def release(spool: Spool, session: str, mine: ObjectLease) -> None:
    """A session uses an object no longer."""
    with contextlib.suppress(FileNotFoundError):
        place = spool.directory(f"{spool.layout.needs}/{session}")
        files.remove(f"{place}/{mine.name}")


def leases(spool: Spool, *, anew: bool = False) -> dict[str, set[str]]:
    """Paths, below the spool, of what says that somebody holds an object, by the names of the objects' files.

    ``anew``: also what an earlier listing may hide.
    """
    found: dict[str, set[str]] = {}
    for session in filter(is_session, files.list_names(spool.layout.needs)):
        if anew:
            files.refresh(f"{spool.layout.needs}/{session}")
        for each in map(parse_lease, files.list_names(f"{spool.layout.needs}/{session}")):
            if each is not None:
                found.setdefault(each.object, set()).add(f"needs/{session}/{each.name}")
    return found


def named_by_tasks(spool: Spool, places: Iterable[str]) -> set[str]:
    """Objects that the tasks in these directories name; their headers are read for it."""
    found: set[str] = set()
    for directory in places:
        for task_file in map(parse_task_file, files.list_names(directory)):
            if task_file is None:
                continue
            try:
                header = read_task(spool, f"{directory}/{task_file.name}", task_file)
            except NoKey:
                raise
            except (OSError, SpoolpoolError):  # it moved on, and is found where it went; or nobody can run it
                continue
            found.update(header.objects)
            if header.init:
                lane = parse_lane(header.lane)
                found.add(os.path.basename(spool.layout.object(header.init, lane.user if lane else None)))
    return found


def remove_object(spool: Spool, name: str, stamp: int | None = None) -> bool:
    """Remove an object that nobody holds, by the name of its file; whether it went.

    Whoever puts it anew meanwhile says first that he holds it, then looks whether it is there and sets its time. So it
    is put aside, and comes back if somebody holds it by then, or if its time (in ns) is not ``stamp`` any more.
    """
    path = f"{spool.layout.objects}/{name}"
    aside = f"{spool.layout.tmp}/{name.partition('@')[0]}.{new_submitter_id()}"
    try:
        files.move(path, aside)
    except OSError as error:
        if (
            error.errno in files.GONE | files.DENIED
        ):  # another one collects too; or, in a dropbox, it is somebody else's
            return False
        raise
    used = name in leases(spool, anew=True) or stamp not in (None, files.mtime_ns(aside))
    if used and not files.exists(path):
        files.move(aside, path)
        return False
    return files.remove(aside)
