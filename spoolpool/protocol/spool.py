"""Spool: the directory tree that is the whole queue. Create it, open it, read and write its files."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable

import msgspec

from spoolpool import settings
from spoolpool.errors import BadRequest, NotASpool, NotTrusted
from spoolpool.format import envelope
from spoolpool.format.config import LONGEST, Config, read_config
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.layout import Layout
from spoolpool.format.names import FORMAT, parse_lane
from spoolpool.security import permissions
from spoolpool.security.directories import DirectoryHandles
from spoolpool.security.permissions import Mode
from spoolpool.security.signing import Signature
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.quantities import read_count, read_seconds

_LEAST_OUTPUT = 4096


class Spool:
    """An opened spool. Opening reads ``spool.json`` and checks owners and modes; it needs no closing.

    ``keys`` are those of a signed spool, from :meth:`secrets`; without them the key file is read when a key is needed.
    Raises :class:`NotASpool`, :class:`SpoolVersion`, :class:`SpoolDenied`, or :class:`NotTrusted` if other users
    could have changed the spool.
    """

    __module__ = "spoolpool"

    def __init__(self, path: str | os.PathLike[str], *, keys: bytes = b"") -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.layout = Layout(self.path)
        self.config, status = read_config(self.layout)
        self.signature = Signature(self.config.id, keys) if self.config.signed else None
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
        self._handles = DirectoryHandles(self.path)
        permissions.check_parents(self.path, self.owner)
        permissions.check_tree(self.path, self.config.mode, status, (*Layout.DIRECTORIES, *Layout.ON_DEMAND))

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        mode: Mode = "private",
        group: str | None = None,
        durability: files.Durability = "data",
        lease: float = settings.LEASE,
        max_attempts: int = settings.MAX_ATTEMPTS,
        caches: float = settings.CACHE_SECONDS,
        output: int = settings.OUTPUT,
        temporary: bool = False,
        signed: bool = False,
        max_waiting: int | None = None,
    ) -> Spool:
        """Create a spool in a directory that is empty or does not exist yet, and open it.

        ``group`` names the group whose members use a spool of mode ``group``; in a ``dropbox``, the owner's own group,
        which must have no other members.
        """
        lease = read_seconds("lease", lease, most=LONGEST)
        caches = read_seconds("caches", caches, most=LONGEST)
        max_attempts = read_count("max_attempts", max_attempts, 1, 99)
        output = read_count("output", output, 0, 1 << 40, note=" (bytes)")
        max_waiting = None if max_waiting is None else read_count("max_waiting", max_waiting, 1)
        root = os.path.abspath(os.fspath(path))
        gid = permissions.group_for(mode, group)
        rights = permissions.RIGHTS[mode]
        config = Config(
            format=FORMAT,
            id=os.urandom(8).hex(),
            mode=mode,
            durability=durability,
            lease=lease,
            max_attempts=max_attempts,
            caches=caches,
            output=output,
            temporary=temporary,
            signed=signed,
            max_waiting=max_waiting,
        )
        if not lease:
            raise BadRequest("A spool needs a lease of more than 0 s.")
        if output and output < _LEAST_OUTPUT:
            raise BadRequest(f"A spool keeps at least {_LEAST_OUTPUT} bytes of a task's output, or none; not {output}.")
        permissions.check_parents(root, os.geteuid())
        with files.translate_errors(f"make the spool {root}"):
            files.make_parents(root)
            made = files.make_directory(root)
            if found := files.list_names(root):
                what = "is a spool already" if "spool.json" in found else f"is not empty (it has {found[0]!r})"
                raise BadRequest(f"Cannot make the spool {root}: it {what}. Name another directory.")
            if (owner := os.lstat(root).st_uid) != os.geteuid():
                raise NotTrusted(
                    f"Cannot make the spool {root}: the directory belongs to {account_name(owner)}, and this process "
                    f"runs as {account_name(os.geteuid())}. Name a directory of your own; if it is yours, the "
                    "filesystem maps accounts (root squash, a mapped mount), and the owner of a file cannot be told "
                    "there: use another filesystem."
                )
            # other accounts use these directories later, and cannot make them
            names = (*Layout.DIRECTORIES, *(() if gid is None else Layout.ON_DEMAND))
            # no other account has access before all of it is made
            files.set_mode(root, 0o700 if gid is None else 0o2700, -1 if gid is None else gid)
            try:
                for name in names:
                    files.make_directory(f"{root}/{name}", rights.of(name))
                # last, by rename: without this file the directory is no spool
                source = f"{root}/tmp/spool.json"
                data = msgspec.json.encode(config)
                files.create(source, [data], mode=rights.shown, exact=True, durability=durability)
                files.move(source, f"{root}/spool.json", durability=durability)
                files.set_mode(root, rights.root)
            except OSError as error:
                if error.errno in files.FULL:  # a part of it would make the next try fail
                    for name in (*names, *([""] if made else [])):
                        files.remove_directory(f"{root}/{name}")
                raise
        return cls(root)

    def write(self, path: str, label: str, parts: list[Buffer], mode: int | None = None) -> None:
        """Create a file with the durability of this spool, signed under its label in a signed spool.

        The default mode is that of task files.
        """
        if self.signature is not None:
            parts = [*parts, self.signature.sign(label, parts)]
        mode = self.rights.file if mode is None else mode
        files.create(path, parts, mode=mode, exact=self.shared, durability=self.config.durability)

    def write_public(self, path: str, parts: list[Buffer]) -> None:
        """Create a small file that all users of the spool may read, as in a worker's entry."""
        files.create(path, parts, mode=self.rights.shown, exact=self.shared)

    def read(self, fd: int, size: int, path: str, label: str, *, writable: bool = True) -> Envelope:
        """Read and check an opened file as :func:`envelope.read`, with its signature in a signed spool."""
        return envelope.read(fd, size, path, self._check(label), writable=writable)

    def read_header(self, fd: int, size: int, path: str, label: str) -> bytes:
        """Return the header alone; in a signed spool the whole file is read, and its signature checked."""
        return envelope.read_header(fd, size, path, self._check(label))

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
        files.touch(self.layout.tmp)  # as heartbeats do; a new file could not be made on a full disk
        return (files.mtime_ns(self.layout.tmp) or 0) / 1e9

    def make_directories(self, path: str) -> None:
        """Make a directory of the spool, with its parents below the root of the spool."""
        if os.path.dirname(path) != self.path:
            self.make_directories(os.path.dirname(path))
        elif files.is_missing(self.layout.config):  # only a directory is left, such as a mount point
            raise NotASpool(f"The spool {self.path} is gone: it was removed, or is not mounted any more.")
        self.close_directory(path)
        with contextlib.suppress(FileExistsError):
            self._make_directory(path)

    def _make_directory(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        if parent == self.path:
            files.make_directory(path, self.rights.of(name))
        elif parent == self.layout.workers:
            files.make_directory(path, self.rights.entry)
        elif os.path.dirname(parent) == self.path:
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

    def directory(self, path: str, owner: int | None = None) -> files.Place:
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

    def bucket(self, lane: str, bucket: str) -> files.Place:
        """Return the directory of a bucket; its lane's directory must belong to the account that the lane names."""
        if self.shared:
            wanted = parse_lane(lane)
            self.directory(self.layout.lane(lane), wanted.user if wanted else None)
        return self.directory(self.layout.bucket(lane, bucket))

    def outgoing(self, session: str, owner: int | None) -> files.Place:
        """Return the directory of a session's outcomes; in a shared spool it must belong to ``owner``."""
        assert owner is not None or not self.shared
        return self.directory(f"{self.layout.outgoing}/{session}", owner)

    def results(self, session: str, owner: int | None) -> files.Place:
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
                if isinstance(found, files.Directory) and found.removed():
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
