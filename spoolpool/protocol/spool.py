"""A spool: one directory tree that is the whole queue; making it, opening it, and its directories."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
from collections.abc import Callable

import msgspec

from spoolpool import settings
from spoolpool.errors import BadRequest, NotASpool, NotTrusted
from spoolpool.format import envelope
from spoolpool.format.config import Config, read_config
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.layout import Layout
from spoolpool.format.names import FORMAT, parse_lane
from spoolpool.security import permissions
from spoolpool.security.directories import DirectoryHandles
from spoolpool.security.permissions import Mode
from spoolpool.security.signing import Signature
from spoolpool.system import files
from spoolpool.system.accounts import account_name

_LEAST_OUTPUT = 4096


class Spool:
    """An opened spool. Opening reads ``spool.json``, and looks at owners and modes; it needs no closing.

    ``keys`` are those of a signed spool, from :meth:`secrets`; without them they are looked for when they are
    needed. Raises :class:`NotASpool`, :class:`SpoolVersion`, :class:`SpoolDenied`, or :class:`NotTrusted` where others
    could have changed it.
    """

    __module__ = "spoolpool"

    def __init__(self, path: str | os.PathLike[str], *, keys: bytes = b"") -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.layout = Layout(self.path)
        self.config, status = read_config(self.layout)
        self.signature = Signature(self.config.id, keys) if self.config.signed else None
        self.owner = status.st_uid
        """Account to which it belongs."""
        self.rights = permissions.RIGHTS[self.config.mode]
        """Permission bits of what is in it."""
        self.shared = self.config.mode != "private"
        """Whether other accounts put files into it."""
        self.account = os.geteuid() if self.shared else None
        """This process's account, as the names of its lanes have it."""
        self.sees_all = self.config.mode != "dropbox" or self.account == self.owner
        """Whether this account may list what is not its own; in a dropbox the owner alone may."""
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
        """Make a spool in a directory that is empty or does not exist yet, and open it.

        ``group`` is whose members use one of mode ``group``; the owner's own group, without other members, in a
        ``dropbox``.
        """
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
        if not (0 < lease < math.inf and 0 <= caches < math.inf and 1 <= max_attempts <= 99):
            raise BadRequest(
                f"A spool needs a lease of more than 0 s (not {lease}), caches of 0 s or more (not {caches}) and 1 to "
                f"99 attempts (not {max_attempts})."
            )
        if output and output < _LEAST_OUTPUT:
            raise BadRequest(f"A spool keeps {_LEAST_OUTPUT} bytes of a task's output at least, or none, not {output}.")
        if max_waiting is not None and max_waiting < 1:
            raise BadRequest(f"A spool in which {max_waiting} tasks may wait is of no use: at least 1 must.")
        permissions.check_parents(root, os.geteuid())
        with files.translate_errors(f"make the spool {root}"):
            files.make_parents(root)
            made = files.make_directory(root)
            if found := files.list_names(root):
                what = "is a spool already" if "spool.json" in found else f"is not empty (it has {found[0]!r})"
                raise BadRequest(f"Cannot make the spool {root}: it {what}. Name another directory.")
            if (owner := os.lstat(root).st_uid) != os.geteuid():
                raise NotTrusted(
                    f"Cannot make the spool {root}: the directory belongs to {account_name(owner)}, and this "
                    f"process runs "
                    f"as {account_name(os.geteuid())}. Either it is somebody else's, or the filesystem maps "
                    f"accounts (root "
                    "squash, a mapped mount), and nobody can tell there whose a file is."
                )
            # others may use a directory later that they cannot make
            names = (*Layout.DIRECTORIES, *(() if gid is None else Layout.ON_DEMAND))
            # nobody else gets in before all is as it should be
            files.set_mode(root, 0o700 if gid is None else 0o2700, -1 if gid is None else gid)
            try:
                for name in names:
                    files.make_directory(f"{root}/{name}", rights.of(name))
                # last, by rename: until it stands there, the directory is no spool
                source = f"{root}/tmp/spool.json"
                data = msgspec.json.encode(config)
                files.create(source, [data], mode=rights.shown, exact=True, durability=durability)
                files.move(source, f"{root}/spool.json", durability=durability)
                files.set_mode(root, rights.root)
            except OSError as error:
                if error.errno in files.FULL:  # half of it would be in the way of another try
                    for name in (*names, *([""] if made else [])):
                        files.remove_directory(f"{root}/{name}")
                raise
        return cls(root)

    def write(self, path: str, label: str, parts: list[Buffer], mode: int | None = None) -> None:
        """Make a new file with the durability of this spool, signed under its label where files are.

        It has the rights of a task's file if none are given.
        """
        if self.signature is not None:
            parts = [*parts, self.signature.sign(label, parts)]
        mode = self.rights.file if mode is None else mode
        files.create(path, parts, mode=mode, exact=self.shared, durability=self.config.durability)

    def show(self, path: str, parts: list[Buffer]) -> None:
        """Make a small file that everybody who uses the spool may read: part of a worker's entry."""
        files.create(path, parts, mode=self.rights.shown, exact=self.shared)

    def read(self, fd: int, size: int, path: str, label: str, *, writable: bool = True) -> Envelope:
        """Read and check an opened file, as :func:`envelope.read` does, with its signature where files have one."""
        return envelope.read(fd, size, path, self._check(label), writable=writable)

    def read_header(self, fd: int, size: int, path: str, label: str) -> bytes:
        """The header alone; where files are signed, all of the file is read, and checked."""
        return envelope.read_header(fd, size, path, self._check(label))

    def _check(self, label: str) -> envelope.Check | None:
        return None if self.signature is None else functools.partial(self.signature.check, label)

    def secrets(self) -> bytes:
        """The keys of a signed spool, for :class:`Spool` in another process of ours; empty for others."""
        return b"" if self.signature is None else self.signature.secrets()

    def need_key(self) -> None:
        """Raise :class:`NoKey` where the spool is signed and its key is not here."""
        if self.signature is not None:
            self.signature.load()

    def server_time(self) -> float:
        """Seconds since the epoch by the clock that dates the files of this spool, whichever host's that is."""
        files.touch(self.layout.tmp)  # as signs of life are; a new file would find no room on a full disk
        return (files.mtime_ns(self.layout.tmp) or 0) / 1e9

    def make_directories(self, path: str) -> None:
        """Make a directory of the spool with those above it, below the spool's root."""
        if os.path.dirname(path) != self.path:
            self.make_directories(os.path.dirname(path))
        elif files.is_missing(self.layout.config):  # the directory alone is no spool, as where one was mounted
            raise NotASpool(f"The spool {self.path} is gone: it was removed, or is not mounted any more.")
        self.let_go(path)
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
            if lane is not None and lane.user != self.account:  # it would not be his
                raise FileNotFoundError(errno.ENOENT, "It is not there, and its account alone can make it", path)
            files.make_directory(path, self.rights.made)
        else:
            above = self.held(parent)
            if self.sees_all:
                files.make_directory(f"{above}/{name}", self.rights.made)
            elif not files.is_directory(f"{above}/{name}"):
                self._make_bucket(f"{self.layout.tmp}/{name}", f"{above}/{name}")

    def _make_bucket(self, source: str, target: str) -> None:
        """Make a bucket of one's own in somebody else's dropbox.

        Made in place, below a directory that is not the spool's owner's, it would not get his group, and nobody can
        give a group away that he is not in. A directory moves into the place of an empty one at most.
        """
        files.make_directory(source, self.rights.made)
        try:
            files.move(source, target)
        except OSError:
            files.remove_directory(source)
            if not files.is_directory(target):  # else another thread was first, and has put something into its own
                raise

    def in_directory(self, path: str, act: Callable[[], None]) -> None:
        """Call ``act``; if the directory at ``path`` is missing, make it and call ``act`` again."""
        try:
            act()
        except FileNotFoundError:
            self.make_directories(path)
            act()

    # -- directories that others could swap

    def held(self, path: str, owner: int | None = None) -> files.Place:
        """Return the directory of a lane, bucket, session or worker; held open in a shared spool.

        As :meth:`spoolpool.security.directories.DirectoryHandles.open`.
        """
        return self._handles.open(path, owner) if self.shared else path

    def let_go(self, path: str) -> None:
        """Open a directory anew when it is needed next, since it may have been removed and made again."""
        if self.shared:
            self._handles.close(path)

    def let_all_go(self) -> None:
        """Give back what is held open, at the end of a use; what is used again is opened again."""
        self._handles.close_all()

    def bucket(self, lane: str, bucket: str) -> files.Place:
        """The directory of waiting tasks; that of its lane must belong to the account that the lane names."""
        if self.shared:
            wanted = parse_lane(lane)
            self.held(self.layout.lane(lane), wanted.user if wanted else None)
        return self.held(self.layout.bucket(lane, bucket))

    def outgoing(self, session: str, owner: int | None) -> files.Place:
        """Where outcomes for a session are made; in a shared spool ``owner`` says whose it must be."""
        assert owner is not None or not self.shared
        return self.held(f"{self.layout.outgoing}/{session}", owner)

    def results(self, session: str, owner: int | None) -> files.Place:
        """Where the tokens of committed outcomes come; ``owner`` as for :meth:`outgoing`."""
        assert owner is not None or not self.shared
        return self.held(f"{self.layout.results}/{session}", owner)

    def has_session(self, session: str, owner: int) -> bool:
        """Whether a session of a shared spool is open, and ``owner``'s; raises :class:`NotTrusted` if it is another's.

        What was held open is asked without its name, at no cost for the filesystem's server.
        """
        for find in (self.outgoing, self.results):
            try:
                found = find(session, owner)
                if isinstance(found, files.Directory) and found.removed():
                    self.let_go(f"{self.layout.outgoing}/{session}")
                    self.let_go(f"{self.layout.results}/{session}")
                    find(session, owner)
            except FileNotFoundError:
                return False
        return True

    def open_for_lock(self, path: str) -> int:
        """Open a task's file so that a lock on it is possible, if it is: for writing, where this account may.

        In a shared spool nobody may write to another's file. On filesystems that lock only what is open for writing
        (NFS) the lease alone tells then who lives.
        """
        try:
            return files.open_file(path, write=True)
        except PermissionError:
            if not self.shared:
                raise
            return files.open_file(path)

    # -- sessions

    def open_session(self, session: str, owner: int | None = None) -> None:
        """Make the directories that results of a session come into, or see that they are their ``owner``'s.

        Without ``owner``, of this account. In a shared spool nobody else can make them.
        """
        owner = self.account if owner is None else owner
        with files.translate_errors(f"open the session {session} of {self.path}"):
            for path in (f"{self.layout.results}/{session}", f"{self.layout.outgoing}/{session}"):
                if not self.shared or owner == self.account:
                    self.make_directories(path)
                self.held(path, owner)

    def close_session(self, session: str) -> None:
        """Remove a session's directories where they are empty; what was not collected stays."""
        with contextlib.suppress(OSError):
            files.remove_directory(f"{self.layout.needs}/{session}")
            if files.remove_directory(f"{self.layout.results}/{session}"):
                files.remove_directory(f"{self.layout.outgoing}/{session}")
                files.remove(f"{self.layout.sessions}/{session}.json")
