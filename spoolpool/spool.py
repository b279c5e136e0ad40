"""A spool: one directory tree that is the whole queue; making it, opening it, putting tasks into it."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
from collections.abc import Iterator

import msgspec

from spoolpool import access, envelope, fsio, layout, settings
from spoolpool.access import Mode
from spoolpool.anchors import Anchors
from spoolpool.backoff import Backoff
from spoolpool.envelope import Buffer, Envelope
from spoolpool.errors import (
    BadRequest,
    NotASpool,
    NotTrusted,
    SpoolDenied,
    SpoolFull,
    SpoolpoolError,
    SpoolVersion,
)
from spoolpool.layout import Edge, Layout, Token
from spoolpool.signature import Signature, task_label
from spoolpool.task import TaskHeader
from spoolpool.trust import account

_CONFIG_LIMIT = 1 << 20

_LEAST_OUTPUT = 4096
_TRIES = 8  # of an operation that fails for no reason that we know: about two seconds


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """For how many seconds ``spool gc`` keeps what nobody asked for."""

    results: float = 30 * 86400.0
    """Outcomes that were not collected."""
    sessions: float = 86400.0
    """The same, and the session itself, once its submitter is provably dead."""
    unfinished: float = 86400.0
    """Files in ``tmp/``: what a submitter had not finished when it died."""
    journals: float = 365 * 86400.0
    """Journals."""
    logs: float = 30 * 86400.0
    """Captured output."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What ``spool.json`` says; written once, when the spool is made."""

    format: int
    """Version of the tree."""
    id: str
    """Random; tells a spool from another that is mounted in its place."""
    mode: Mode = "private"
    """Who may use it: its owner, a group, or everybody who may drop tasks."""
    durability: fsio.Durability = "data"
    """What a task survives."""
    lease: float = settings.LEASE
    """Seconds that a claim outlives the last sign of life of its worker."""
    max_attempts: int = settings.MAX_ATTEMPTS
    """Attempts of a task that does not say itself."""
    caches: float = settings.CACHE_SECONDS
    """Seconds for which a client of the filesystem may go on seeing what is no longer so."""
    output: int = settings.OUTPUT
    """Bytes that are kept of what one rank of a task prints; 0: it goes where the worker's own words go."""
    keep: Keep = Keep()
    """What ``spool gc`` leaves."""
    temporary: bool = False
    """Belongs to one executor, and goes with it."""
    max_waiting: int | None = None
    """Tasks of one user that may wait at a time; no bound if None."""
    signed: bool = False
    """Whether every file that may be unpickled carries a signature."""


class Spool:
    """An opened spool. Opening reads ``spool.json``, and looks at owners and modes; it needs no closing.

    ``keys`` are those of a signed spool, from :meth:`secrets`; without them they are looked for when they are
    needed. Raises :class:`NotASpool`, :class:`SpoolVersion`, :class:`SpoolDenied`, or :class:`NotTrusted` where others
    could have changed it.
    """

    def __init__(self, path: str | os.PathLike[str], *, keys: bytes = b"") -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.layout = Layout(self.path)
        self.config, status = _read_config(self.layout)
        self.signature = Signature(self.config.id, keys) if self.config.signed else None
        self.owner = status.st_uid
        """Account to which it belongs."""
        self.rights = access.RIGHTS[self.config.mode]
        """Permission bits of what is in it."""
        self.shared = self.config.mode != "private"
        """Whether other accounts put files into it."""
        self.account = os.geteuid() if self.shared else None
        """This process's account, as the names of its lanes have it."""
        self.sees_all = self.config.mode != "dropbox" or self.account == self.owner
        """Whether this account may list what is not its own; in a dropbox the owner alone may."""
        self._anchors = Anchors(self.path)
        access.check_way(self.path, self.owner)
        access.check_tree(self.path, self.config.mode, status, (*Layout.DIRECTORIES, *Layout.ON_DEMAND))

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        mode: Mode = "private",
        group: str | None = None,
        durability: fsio.Durability = "data",
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
        gid = access.group_for(mode, group)
        rights = access.RIGHTS[mode]
        config = Config(
            format=layout.FORMAT,
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
        access.check_way(root, os.geteuid())
        with explained(f"make the spool {root}"):
            fsio.make_parents(root)
            made = fsio.make_directory(root)
            if found := fsio.names(root):
                what = "is a spool already" if "spool.json" in found else f"is not empty (it has {found[0]!r})"
                raise BadRequest(f"Cannot make the spool {root}: it {what}. Name another directory.")
            if (owner := os.lstat(root).st_uid) != os.geteuid():
                raise NotTrusted(
                    f"Cannot make the spool {root}: the directory belongs to {account(owner)}, and this process runs "
                    f"as {account(os.geteuid())}. Either it is somebody else's, or the filesystem maps accounts (root "
                    "squash, a mapped mount), and nobody can tell there whose a file is."
                )
            # others may use a directory later that they cannot make
            names = (*Layout.DIRECTORIES, *(() if gid is None else Layout.ON_DEMAND))
            # nobody else gets in before all is as it should be
            fsio.set_mode(root, 0o700 if gid is None else 0o2700, -1 if gid is None else gid)
            try:
                for name in names:
                    fsio.make_directory(f"{root}/{name}", rights.of(name))
                # last, by rename: until it stands there, the directory is no spool
                source = f"{root}/tmp/spool.json"
                data = msgspec.json.encode(config)
                fsio.create(source, [data], mode=rights.shown, exact=True, durability=durability)
                fsio.move(source, f"{root}/spool.json", durability=durability)
                fsio.set_mode(root, rights.root)
            except OSError as error:
                if error.errno in fsio.FULL:  # half of it would be in the way of another try
                    for name in (*names, *([""] if made else [])):
                        fsio.remove_directory(f"{root}/{name}")
                raise
        return cls(root)

    def write(self, path: str, label: str, parts: list[Buffer], mode: int | None = None) -> None:
        """Make a new file with the durability of this spool, signed under its label where files are.

        It has the rights of a task's file if none are given.
        """
        if self.signature is not None:
            parts = [*parts, self.signature.sign(label, parts)]
        mode = self.rights.file if mode is None else mode
        fsio.create(path, parts, mode=mode, exact=self.shared, durability=self.config.durability)

    def show(self, path: str, parts: list[Buffer]) -> None:
        """Make a small file that everybody who uses the spool may read: part of a worker's entry."""
        fsio.create(path, parts, mode=self.rights.shown, exact=self.shared)

    def read(self, fd: int, size: int, path: str, label: str) -> Envelope:
        """Read and check an opened file, as :func:`envelope.read` does, with its signature where files have one."""
        return envelope.read(fd, size, path, self._check(label))

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

    def enqueue(self, header: TaskHeader, parts: list[Buffer]) -> Token:
        """Put a task file into its lane; when this returns, the task is in the spool.

        One that needs others, or is not to start yet, is held back until somebody lets it go
        (:mod:`spoolpool.waiting`): first its edges are made, so that whoever collects what it needs leaves that there.

        Raises :class:`SpoolFull`, :class:`SpoolDenied` or another :class:`SpoolpoolError`; then nothing
        of the task is left in the spool.
        """
        token = Token(header.task, 1, 1)
        source = f"{self.layout.tmp}/{header.task}"
        with explained(f"submit a task to {self.path}"):
            self.write(source, task_label(header.task), parts)
            if header.needs:
                try:
                    self._make_edges(header)
                except BaseException:
                    self.remove_edges(header)
                    fsio.remove(source)
                    raise
            try:
                self._publish(source, header, token)
            except BaseException as error:
                if isinstance(error, NotTrusted):
                    fsio.remove(source)
                self.remove_edges(header)
                raise
        return token

    def _make_edges(self, header: TaskHeader) -> None:
        """Say of everything that a task needs that it does; the files are empty, and only their names count."""
        for session, needed in header.needed():
            path = self.layout.edge(session, Edge(needed, header.task))
            directory, name = os.path.split(path)
            try:
                place = self.held(directory)
                fsio.create(f"{place}/{name}", [])
            except FileExistsError:  # a request was repeated: nobody else makes this name
                pass
            except FileNotFoundError:
                self.make_directories(directory)
                place = self.held(directory)
                with contextlib.suppress(FileExistsError):
                    fsio.create(f"{place}/{name}", [])
        if self.config.durability == "full":
            for session in header.needs:
                fsio.sync_directory(f"{self.layout.needs}/{session}")

    def remove_edges(self, header: TaskHeader) -> None:
        """A task has its outcome, or never came to be: what it needed is needed by it no longer."""
        for session, needed in header.needed():
            path = self.layout.edge(session, Edge(needed, header.task))
            directory, name = os.path.split(path)
            try:
                place = self.held(directory)
            except FileNotFoundError:
                continue
            if not fsio.remove(f"{place}/{name}") and not fsio.gone(path):  # ESTALE does not say that it went
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    def _publish(self, source: str, header: TaskHeader, token: Token) -> None:
        plain = self.layout.waiting if header.held else self.layout.bucket(header.lane, header.bucket)
        target = f"{plain}/{token.name}"
        rhythm = Backoff(0.005, 1.0, 2.0)
        for left in reversed(range(_TRIES)):
            try:
                place = self.layout.waiting if header.held else self.bucket(header.lane, header.bucket)
                target = f"{place}/{token.name}"
                fsio.move(source, target, durability=self.config.durability)
                return
            except OSError as error:
                reason = (
                    error.errno or 0
                )  # not the error: its frames would keep the task's data until garbage is collected
                try:
                    if not fsio.there(source):  # it happened; the answer was for a repeated request
                        return
                    if error.errno in fsio.GONE:  # the bucket is not made yet, or was removed as empty
                        self.make_directories(plain)
                        continue
                except OSError as refused:
                    reason = refused.errno or 0
                if left and reason not in fsio.FULL | fsio.DENIED:
                    rhythm.sleep()
                    continue
                # gone before it was removed: moved after all, if it stands there; a repeated request says so as well
                if fsio.remove(source) or not fsio.there(target):
                    raise OSError(reason, os.strerror(reason), target) from None
                return
        fsio.remove(source)
        raise SpoolpoolError(
            f"Cannot submit to {self.path}: {plain} vanishes as often as it is made. "
            "Look for what removes directories there."
        )

    def server_time(self) -> float:
        """Seconds since the epoch by the clock that dates the files of this spool, whichever host's that is."""
        fsio.touch(self.layout.tmp)  # as signs of life are; a new file would find no room on a full disk
        return (fsio.stamp(self.layout.tmp) or 0) / 1e9

    def make_directories(self, path: str) -> None:
        """Make a directory of the spool with those above it, below the spool's root."""
        if os.path.dirname(path) != self.path:
            self.make_directories(os.path.dirname(path))
        elif fsio.gone(self.layout.config):  # the directory alone is no spool, as where one was mounted
            raise NotASpool(f"The spool {self.path} is gone: it was removed, or is not mounted any more.")
        self.let_go(path)
        with contextlib.suppress(FileExistsError):
            self._make_directory(path)

    def _make_directory(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        if parent == self.path:
            fsio.make_directory(path, self.rights.of(name))
        elif parent == self.layout.workers:
            fsio.make_directory(path, self.rights.entry)
        elif os.path.dirname(parent) == self.path:
            lane = layout.parse_lane(name) if parent == self.layout.ready else None
            if lane is not None and lane.user != self.account:  # it would not be his
                raise FileNotFoundError(errno.ENOENT, "It is not there, and its account alone can make it", path)
            fsio.make_directory(path, self.rights.made)
        else:
            above = self.held(parent)
            if self.sees_all:
                fsio.make_directory(f"{above}/{name}", self.rights.made)
            elif not fsio.is_directory(f"{above}/{name}"):
                self._make_bucket(f"{self.layout.tmp}/{name}", f"{above}/{name}")

    def _make_bucket(self, source: str, target: str) -> None:
        """Make a bucket of one's own in somebody else's dropbox.

        Made in place, below a directory that is not the spool's owner's, it would not get his group, and nobody can
        give a group away that he is not in. A directory moves into the place of an empty one at most.
        """
        fsio.make_directory(source, self.rights.made)
        try:
            fsio.move(source, target)
        except OSError:
            fsio.remove_directory(source)
            if not fsio.is_directory(target):  # else another thread was first, and has put something into its own
                raise

    # -- directories that others could swap

    def held(self, path: str, owner: int | None = None) -> fsio.Place:
        """The directory of a lane, bucket, session or worker: see :meth:`spoolpool.anchors.Anchors.hold`."""
        return self._anchors.hold(path, owner) if self.shared else path

    def let_go(self, path: str) -> None:
        """Open a directory anew when it is needed next, since it may have been removed and made again."""
        if self.shared:
            self._anchors.let_go(path)

    def bucket(self, lane: str, bucket: str) -> fsio.Place:
        """The directory of waiting tasks; that of its lane must belong to the account that the lane names."""
        if self.shared:
            wanted = layout.parse_lane(lane)
            self.held(self.layout.lane(lane), wanted.user if wanted else None)
        return self.held(self.layout.bucket(lane, bucket))

    def outgoing(self, session: str, owner: int | None) -> fsio.Place:
        """Where outcomes for a session are made; in a shared spool ``owner`` says whose it must be."""
        assert owner is not None or not self.shared
        return self.held(f"{self.layout.outgoing}/{session}", owner)

    def results(self, session: str, owner: int | None) -> fsio.Place:
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
                if isinstance(found, fsio.Directory) and found.removed():
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
            return fsio.open_file(path, write=True)
        except PermissionError:
            if not self.shared:
                raise
            return fsio.open_file(path)

    # -- sessions

    def open_session(self, session: str, owner: int | None = None) -> None:
        """Make the directories that results of a session come into, or see that they are their ``owner``'s.

        Without ``owner``, of this account. In a shared spool nobody else can make them.
        """
        owner = self.account if owner is None else owner
        with explained(f"open the session {session} of {self.path}"):
            for path in (f"{self.layout.results}/{session}", f"{self.layout.outgoing}/{session}"):
                if not self.shared or owner == self.account:
                    self.make_directories(path)
                self.held(path, owner)

    def close_session(self, session: str) -> None:
        """Remove a session's directories where they are empty; what was not collected stays."""
        with contextlib.suppress(OSError):
            fsio.remove_directory(f"{self.layout.needs}/{session}")
            if fsio.remove_directory(f"{self.layout.results}/{session}"):
                fsio.remove_directory(f"{self.layout.outgoing}/{session}")
                fsio.remove(f"{self.layout.sessions}/{session}.json")

    def cancel(self, header: TaskHeader, token: Token, *, held: bool = False) -> bool:
        """Take a waiting task back, or one that is held back; True if nobody had claimed it, and now nobody will.

        Its token stands in the results of its session, named as cancelled: it is the outcome.
        """
        inbox = self.results(header.session, self.account)
        target = f"{inbox}/{token.claimed_by(layout.CANCELLED).name}"
        # in this order: it goes from the one to the other
        for where in (self.layout.waiting, "") if held or header.held else ("",):
            try:
                place = where or self.bucket(header.lane, header.bucket)
                fsio.move(f"{place}/{token.name}", target)
                return True
            except OSError as error:
                if fsio.there(target):  # it happened; the answer was for a repeated request
                    return True
                if error.errno not in fsio.GONE:  # else it was let go, or a worker was first
                    raise
        return False

    def is_to_be_cancelled(self, token: Token) -> bool:
        """Whether :meth:`ask_to_cancel` was called for a claimed task, by who may; raises ``OSError`` where unknown."""
        if token.task not in fsio.names(self.layout.cancel):
            return False
        if not self.shared:
            return True
        who = fsio.owner(f"{self.layout.cancel}/{token.task}")
        return who is not None and who in (fsio.owner(self.layout.claimed_token(token)), self.owner)

    def withdraw_mark(self, task: str) -> None:
        """Take such a mark away: the task is over."""
        with contextlib.suppress(OSError):  # 'spool gc' finds what is left
            fsio.remove(f"{self.layout.cancel}/{task}")

    def ask_to_cancel(self, task: str) -> None:
        """Leave a mark for whoever has a task in hand, or claims it next; harmless when repeated."""
        with explained(f"cancel {task} in {self.path}"), contextlib.suppress(FileExistsError):
            fsio.create(f"{self.layout.cancel}/{task}", [])


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an ``OSError`` into an error that says what was being done, where, and what to do."""
    try:
        yield
    except OSError as error:
        where = f" ({fsio.plain(os.fsdecode(error.filename))})" if error.filename else ""
        if error.errno in fsio.FULL:
            raise SpoolFull(
                f"Cannot {doing}: {error.strerror}{where}. Free space, inodes or quota there; nothing of "
                "it was left in the spool."
            ) from error
        if error.errno in fsio.DENIED:
            raise SpoolDenied(
                f"Cannot {doing}: {error.strerror}{where}. Ask the owner of the spool for the right to "
                "write, or use another spool."
            ) from error
        raise SpoolpoolError(f"Cannot {doing}: {error.strerror}{where}.") from error


def _read_config(where: Layout) -> tuple[Config, os.stat_result]:
    try:
        with fsio.reading(where.config) as (fd, status):
            data = os.read(fd, _CONFIG_LIMIT)
    except ValueError as error:
        raise NotASpool(f"{where.root} is not a spool: {error}.") from error
    except OSError as error:
        if error.errno in fsio.DENIED:
            raise SpoolDenied(
                f"Cannot open the spool {where.root}: {error.strerror}. {access.whose(where.root)}"
            ) from error
        raise NotASpool(
            f"{where.root} is not a spool: {where.config} cannot be read ({error.strerror}). Make one with "
            f"'spool init {where.root}', or look whether the filesystem is mounted on {os.uname().nodename}."
        ) from error
    try:
        version = msgspec.json.decode(data, type=dict).get("format")
        if isinstance(version, int) and version > layout.FORMAT:
            raise SpoolVersion(
                f"The spool {where.root} has format {version}; this spoolpool knows formats up to "
                f"{layout.FORMAT}. Install a newer spoolpool here, or use another spool."
            )
        return msgspec.json.decode(data, type=Config), status
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NotASpool(
            f"{where.root} is not a spool: {where.config} is not what 'spool init' writes ({error})."
        ) from error
