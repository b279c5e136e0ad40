"""Spool: the directory tree that is the whole queue. Create it, open it, read and write its files."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import time
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from spoolpool import settings
from spoolpool.errors import BadRequest, BrokenSpool, NotASpool
from spoolpool.format import envelope
from spoolpool.format.config import Config, read_id
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.layout import Layout
from spoolpool.format.names import FORMAT, parse_lane
from spoolpool.protocol.overflow import Overflow
from spoolpool.protocol.spool_root import forget_root, open_layout
from spoolpool.protocol.spool_tree import Undo, make_tree
from spoolpool.security import known_spools, permissions
from spoolpool.security.directories import DirectoryHandles
from spoolpool.security.known_spools import SpoolIdentity
from spoolpool.security.permissions import Mode
from spoolpool.security.signing import Signature, has_key, key_path
from spoolpool.security.trust import Trust
from spoolpool.system import defaults, files, open_directory
from spoolpool.system.quantities import read_count, read_seconds
from spoolpool.system.user_code import printable

log = logging.getLogger(__name__)

_LEAST_OUTPUT = 4096


class Spool:
    """An opened spool. Opening reads ``spool.json`` and checks owners and modes; it needs no closing.

    ``keys`` are those of a signed spool, from :meth:`secrets`; without them the key file is read when a key is needed.
    ``trust`` names the accounts that may own a spool which other accounts can replace; a known spool, one below
    protected directories and one of this account need no name. ``read_only`` opens it all the same, to be read.
    Raises :class:`NotASpool`, :class:`SpoolVersion`, :class:`SpoolDenied`, or :class:`NotTrusted` if other users
    could have changed the spool.
    """

    __module__ = "spoolpool"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keys: bytes = b"",
        trust: Trust | None = None,
        read_only: bool = False,
        accept: bool = False,
    ) -> None:
        """``accept``: accept the spool with the present owner from now on, whatever was at its path before."""
        self.path = _absolute(path)
        self.layout, self.config, status = open_layout(self.path)
        self.owner = status.st_uid
        """Account that owns the spool."""
        self.rights = permissions.RIGHTS[self.config.mode]
        """Permission bits of its files and directories."""
        self.shared = self.config.mode != "private"
        """Whether several accounts write to it."""
        self.account = os.geteuid() if self.shared else None
        """Account of this process, as it occurs in the names of its lanes; None in a private spool."""
        self.sees_all = self.config.mode != "dropbox" or self.account == self.owner
        """Whether this account may list files of other accounts; in a dropbox only the owner may."""
        self._handles = DirectoryHandles(self.layout.root)
        directories = (*Layout.DIRECTORIES, *Layout.ON_DEMAND)
        permissions.check_tree(self.layout.place, self.path, self.config.mode, status, directories)
        self.replaceable = self.layout.root != self.path
        """Whether other accounts can replace its directory, so that all paths lead through the opened one."""
        self.identity = self._identify(keys, trust, read_only=read_only, accept=accept)
        """Owner, id and guards of the spool, which do not change while it is open."""
        self.signature = Signature(self.config.id, keys) if self.identity.signed else None
        self.temporary = self.identity.temporary
        """Whether the spool belongs to one executor, which removes it. Not from ``spool.json``, which may be forged."""
        self.overflow: Overflow | None = None
        """Directory for the large files of a spool in memory."""
        if self.config.overflow and not self.shared and self.signature is None:
            self.overflow = Overflow(self.config.overflow, self.path, self.config.id, self.owner)

    def _identify(self, keys: bytes, trust: Trust | None, *, read_only: bool, accept: bool) -> SpoolIdentity:
        """Compare the spool with the one that was at its path before; remember and return its identity."""
        found = SpoolIdentity(path=self.path, id=self.config.id, owner=self.owner, mode=self.config.mode)
        self._is_doubtful = False
        if parents := known_spools.inherited(self.path):
            known_spools.check_inherited(found, parents)
            return replace(parents, signed=parents.signed or self.config.signed or bool(keys))
        with_key = bool(keys) or has_key(self.config.id)
        known = None if accept else known_spools.recall(self.path)
        reason = "" if accept or known else self._doubt(trust)
        if known is not None:
            known_spools.check_known(found, known)
        elif reason and not read_only:
            known_spools.check_first_use(found, reason)
        found = replace(found, signed=with_key or (known is not None and known.signed))
        if found.signed and not self.config.signed:
            log.warning(
                "%s/spool.json says that the spool is not signed, but this account has a key for it, or had one at an "
                "earlier use: signatures are required. If spool.json is right, remove the key file %s, and then accept "
                "the spool with 'spool accept'.",
                self.path,
                key_path(self.config.id),
            )
        self._is_doubtful = bool(reason)
        if not (reason or self.config.temporary):
            known_spools.remember(found, replace=known is not None or accept)
        return replace(found, signed=found.signed or self.config.signed)

    def _doubt(self, trust: Trust | None) -> str:
        """Return the reason why an unknown spool may not be the intended one; empty if there is none."""
        if self.owner in (0, os.geteuid()) or (trust is not None and trust.covers(self.owner)):
            return ""
        return permissions.why_replaceable(self.path, self.owner)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        mode: Mode = "private",
        group: str | None = None,
        durability: files.Durability = "data",
        lease: float | None = None,
        max_attempts: int = settings.MAX_ATTEMPTS,
        caches: float | None = None,
        output: int = settings.OUTPUT,
        journal: int = settings.JOURNAL,
        temporary: bool = False,
        signed: bool = False,
        max_waiting: int | None = None,
        overflow_in: str | None = None,
        ident: str | None = None,
    ) -> Spool:
        """Create a spool in a directory that is empty or does not exist yet, and open it. A failure leaves nothing.

        ``group`` names the group whose members use a spool of mode ``group``; in a ``dropbox``, the owner's own group,
        which must have no other members. ``overflow_in`` is the directory in which the large files of a temporary spool
        in memory get a directory. The ``ident`` of a spool is random by default. Without a ``lease`` or ``caches`` they
        are the defaults of the user, of the site or of :mod:`spoolpool.settings`.
        """
        lease = defaults.find("lease").value if lease is None else lease
        caches = defaults.find("caches").value if caches is None else caches
        lease = read_seconds("lease", lease, most=settings.LONGEST_LEASE)
        caches = read_seconds("caches", caches, most=settings.LONGEST_LEASE)
        max_attempts = read_count("max_attempts", max_attempts, 1, 99)
        output = read_count("output", output, 0, 1 << 40, note=" (bytes)")
        journal = read_count("journal", journal, settings.LEAST_JOURNAL, 1 << 50, note=" (bytes)")
        max_waiting = permissions.read_waiting_limit(mode, max_waiting)
        root = _absolute(path)
        gid = permissions.group_for(mode, group)
        config = Config(
            format=FORMAT,
            id=ident or os.urandom(8).hex(),
            mode=mode,
            durability=durability,
            lease=lease,
            max_attempts=max_attempts,
            caches=caches,
            output=output,
            journal=journal,
            temporary=temporary,
            signed=signed,
            max_waiting=max_waiting,
        )
        if not lease:
            raise BadRequest("A spool needs a lease of more than 0 s.")
        if output and output < _LEAST_OUTPUT:
            raise BadRequest(f"A spool keeps at least {_LEAST_OUTPUT} bytes of a task's output, or none; not {output}.")
        with Undo() as undo, files.translate_errors(f"make the spool {root}"):
            if overflow_in is not None:
                config = replace(config, overflow=Overflow.create(overflow_in, config.id))
                undo.add(files.remove_directory, config.overflow)
            make_tree(root, config, gid, undo)
            identity = SpoolIdentity(path=root, id=config.id, owner=os.geteuid(), mode=mode)
            with_key = not temporary and has_key(config.id)
            known_spools.inherit(known_spools.encode(replace(identity, signed=with_key, temporary=temporary)))
            undo.callback(known_spools.forget, root)
            made = cls(root)
            undo.pop_all()
        if not temporary:
            known_spools.forget(root)
            known_spools.remember(replace(identity, signed=with_key), replace=True)
        return made

    def restore(self) -> None:
        """Open the spool's directory again if a function has closed all descriptors. Raises ``OSError``."""
        if isinstance(self.layout.place, open_directory.Directory) and self.layout.place.restore(self.path):
            self._handles.close_all()

    def remove(self) -> None:
        """Remove the spool with all its content."""
        if self.overflow is not None:
            self.overflow.remove_all()
        files.remove_tree(self.layout.root)
        files.remove_directory(self.path)
        forget_root(self.layout.place)
        known_spools.forget(self.path)

    def write(self, path: str, label: str, parts: list[Buffer], mode: int | None = None) -> None:
        """Create a file with the durability of this spool, signed under its label in a signed spool.

        The default mode is that of task files.
        """
        if self.signature is not None:
            parts = [*parts, self.signature.sign(label, parts)]
        mode = self.rights.file if mode is None else mode
        if self.overflow is None:
            files.create(path, parts, mode=mode, exact=self.shared, durability=self.config.durability)
        else:
            self.overflow.create_file(path, label, parts, lambda parts: files.create(path, parts, mode=mode))

    def write_public(self, path: str, parts: list[Buffer]) -> None:
        """Create a small file that all users of the spool may read, as in a worker's entry."""
        files.create(path, parts, mode=self.rights.shown, exact=self.shared)

    def write_own(self, path: str, parts: list[Buffer]) -> None:
        """Create a small file as :meth:`write_public`; a file of another account that took the name is replaced."""
        try:
            self.write_public(path, parts)
        except FileExistsError:
            if files.owner(path) in (None, os.geteuid()):
                raise
            files.remove(path)
            self.write_public(path, parts)

    def read(
        self, fd: int, size: int, path: str, label: str, *, writable: bool = True, checksum: bool = True
    ) -> Envelope:
        """Read and check an opened file as :func:`envelope.read`, with its signature in a signed spool."""
        content = envelope.read(fd, size, path, self._check(label), writable=writable, checksum=checksum)
        if self.overflow is None:
            return content
        return self.overflow.read(path, label, content, writable=writable, checksum=checksum)

    def read_header(self, fd: int, size: int, path: str, label: str) -> bytes:
        """Return the header alone; in a signed spool the whole file is read, and its signature checked."""
        return envelope.read_header(fd, size, path, self._check(label))

    def parse(self, data: memoryview, path: str, label: str) -> Envelope:
        """Check a record of a file as :func:`envelope.parse`, with its signature in a signed spool."""
        return envelope.parse(data, path, self._check(label))

    def write_signed(self, path: str, parts: list[Buffer]) -> None:
        """Create a task file whose parts have their signatures, with the durability of this spool."""
        files.create(path, parts, mode=self.rights.file, exact=self.shared, durability=self.config.durability)

    def _check(self, label: str) -> envelope.Check | None:
        return None if self.signature is None else functools.partial(self.signature.check, label)

    def secrets(self) -> bytes:
        """Return the keys of a signed spool, for :class:`Spool` in another process of this account; else nothing."""
        return b"" if self.signature is None else self.signature.secrets()

    def need_key(self) -> None:
        """Raise :class:`NoKey` if the spool is signed and its key is missing on this host."""
        if self.signature is not None:
            self.signature.load()

    def server_time(self) -> float:
        """Return seconds since the epoch by the clock that dates the files of this spool, on whichever host."""
        if self._is_doubtful:  # nothing is written to it
            return time.time()
        files.touch(self.layout.tmp)  # as heartbeats do; a new file could not be made on a full disk
        return (files.mtime_ns(self.layout.tmp) or 0) / 1e9

    def find_server_time(self) -> float | None:
        """Return :meth:`server_time`; None where the spool cannot be written to (a read-only mount), or is away."""
        try:
            return self.server_time()
        except OSError:
            return None

    def shown_time(self) -> float:
        """Return :meth:`server_time`, or the clock of this host where that is unknown.

        It is for what people are told; nothing may be removed by it.
        """
        found = self.find_server_time()
        return time.time() if found is None else found

    def write_config(self, path: str) -> None:
        """Write ``spool.json`` once more; only its owner may."""
        data = msgspec.json.encode(self.config)
        files.create(path, [data], mode=self.rights.shown, exact=True, durability=self.config.durability)

    def check_id(self) -> bool:
        """Return whether the path of the spool leads to it; False if there is no ``spool.json`` any more.

        Raises ``OSError`` where that is unknown, and :class:`BrokenSpool` if another spool is there.
        """
        found = read_id(f"{self.path}/spool.json")
        if found not in (None, self.config.id):
            raise BrokenSpool(
                f"The spool {self.path} was replaced while it was in use: its id was {self.config.id}, and the spool "
                f"at this path now has the id {found}. The tasks of the former one are not in it. Start new processes "
                "to use it, and submit the calls again."
            )
        return found is not None

    def check_presence(self) -> None:
        """Raise :class:`NotASpool` if the spool is certain to be gone, and :class:`BrokenSpool` if it was replaced."""
        present = True
        with contextlib.suppress(OSError):  # unknown
            present = self.check_id()
        if not present:
            raise NotASpool(f"The spool {self.path} is gone: it was removed, or is not mounted any more.")

    def make_directories(self, path: str) -> None:
        """Make a directory of the spool, with its parents below the root of the spool.

        Raises :class:`NotASpool` or :class:`BrokenSpool` if the spool was removed or replaced.
        """
        if os.path.dirname(path) != self.layout.root:
            self.make_directories(os.path.dirname(path))
        else:
            self.check_presence()  # perhaps only a directory is left, such as a mount point
        self.close_directory(path)
        with contextlib.suppress(FileExistsError):
            self._make_directory(path)

    def _make_directory(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        if parent == self.layout.root:
            if os.geteuid() != self.owner and not files.is_directory(path):
                raise PermissionError(errno.EPERM, "It is missing, and only the owner of the spool can make it", path)
            files.make_directory(path, self.rights.of(name))
        elif parent == self.layout.workers:
            files.make_directory(path, self.rights.entry)
        elif os.path.dirname(parent) == self.layout.root:
            lane = parse_lane(name) if parent == self.layout.ready else None
            if lane is not None and lane.user != self.account:  # it would not belong to the lane's user
                raise FileNotFoundError(errno.ENOENT, "It is missing, and only its account can make it", path)
            files.make_directory(path, self.rights.made)
        else:
            above = self.directory(parent)
            if self.sees_all:
                files.make_directory(f"{above}/{name}", self.rights.made)
            elif not files.is_directory(f"{above}/{name}"):
                self._make_bucket(f"{self.layout.tmp}/{name}", f"{above}/{name}")

    def _make_bucket(self, source: str, target: str) -> None:
        """Make a bucket of this account in another account's dropbox.

        It is made in ``tmp/`` and moved. Made in place, below a directory that does not belong to the spool's owner, it
        would not get the owner's group, and this account cannot set a group of which it is no member. A rename
        replaces an empty directory at most.
        """
        files.make_directory(source, self.rights.made)
        try:
            files.move(source, target)
        except OSError:
            files.remove_directory(source)
            if not files.is_directory(target):  # else another thread was first, and has filled its own
                raise

    def in_directory(self, path: str, act: Callable[[], None]) -> None:
        """Call ``act``; if the directory at ``path`` is missing, make it and call ``act`` again."""
        try:
            act()
        except FileNotFoundError:
            self.make_directories(path)
            act()

    # -- directories that other users could swap

    def directory(self, path: str, owner: int | None = None) -> open_directory.Place:
        """Return the directory of a lane, bucket, session or worker, which is kept open in a shared spool.

        As :meth:`spoolpool.security.directories.DirectoryHandles.open`.
        """
        return self._handles.open(path, owner) if self.shared else path

    def close_directory(self, path: str) -> None:
        """Close a directory, so that its next use opens it again: it may have been removed and made again."""
        if self.shared:
            self._handles.close(path)

    def close_directories(self) -> None:
        """Close all directories at the end of a use; the next use opens them again."""
        self._handles.close_all()

    def bucket(self, lane: str, bucket: str) -> open_directory.Place:
        """Return the directory of a bucket; its lane's directory must belong to the account that the lane names."""
        if self.shared:
            wanted = parse_lane(lane)
            self.directory(self.layout.lane(lane), wanted.user if wanted else None)
        return self.directory(self.layout.bucket(lane, bucket))

    def outgoing(self, session: str, owner: int | None) -> open_directory.Place:
        """Return the directory of a session's outcomes; in a shared spool it must belong to ``owner``."""
        assert owner is not None or not self.shared
        return self.directory(f"{self.layout.outgoing}/{session}", owner)

    def results(self, session: str, owner: int | None) -> open_directory.Place:
        """Return the directory of a session's committed task files; ``owner`` as for :meth:`outgoing`."""
        assert owner is not None or not self.shared
        return self.directory(f"{self.layout.results}/{session}", owner)

    def has_session(self, session: str, owner: int) -> bool:
        """Return whether a session of a shared spool is open; raises :class:`NotTrusted` if it is not ``owner``'s.

        A directory that is open already is checked by its descriptor, at no cost for the filesystem's server.
        """
        for find in (self.outgoing, self.results):
            try:
                found = find(session, owner)
                if isinstance(found, open_directory.Directory) and found.removed():
                    self.close_directory(f"{self.layout.outgoing}/{session}")
                    self.close_directory(f"{self.layout.results}/{session}")
                    find(session, owner)
            except FileNotFoundError:
                return False
        return True

    def open_for_lock(self, path: str) -> int:
        """Open a task file so that it can be locked, if possible: for writing, if this account may.

        In a shared spool no account may write to files of another. A filesystem that locks only files open for
        writing (NFS) then gives no lock, and the lease alone tells whether the holder lives.
        """
        try:
            return files.open_file(path, write=True)
        except PermissionError:
            if not self.shared:
                raise
            return files.open_file(path)

    # -- sessions

    def open_session(self, session: str, owner: int | None = None) -> None:
        """Make the directories of a session for outcomes and results, or check that they belong to ``owner``.

        The default is this account. In a shared spool no other account can make them.
        """
        owner = self.account if owner is None else owner
        with files.translate_errors(f"open the session {session} of {self.path}"):
            for path in (f"{self.layout.results}/{session}", f"{self.layout.outgoing}/{session}"):
                if not self.shared or owner == self.account:
                    self.make_directories(path)
                self.directory(path, owner)

    def close_session(self, session: str) -> None:
        """Remove the directories of a session that are empty; outcomes that were not collected stay."""
        with contextlib.suppress(OSError):
            files.remove_directory(f"{self.layout.needs}/{session}")
            if files.remove_directory(f"{self.layout.results}/{session}"):
                files.remove_directory(f"{self.layout.outgoing}/{session}")
                files.remove(f"{self.layout.sessions}/{session}.json")


def _absolute(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a spool; records of its files contain it as text."""
    root = os.path.abspath(os.fspath(path))
    if printable(root) != root:
        raise BadRequest(
            f"The path of a spool must be text in UTF-8, and {printable(root)} contains other bytes. Use another "
            "directory, or a link to it with another name."
        )
    return root
