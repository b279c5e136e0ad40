"""A spool: one directory tree that is the whole queue; making it, opening it, putting tasks into it."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
from collections.abc import Iterator
from typing import Literal

import msgspec

from spoolpool import envelope, fsio, layout, settings
from spoolpool.backoff import Backoff
from spoolpool.envelope import Buffer, Envelope
from spoolpool.errors import BadRequest, NotASpool, SpoolDenied, SpoolFull, SpoolpoolError, SpoolVersion
from spoolpool.layout import Edge, Layout, Token
from spoolpool.signature import Signature, task_label
from spoolpool.task import TaskHeader

Mode = Literal["private"]
"""Who may use it. ``private``: its owner alone."""

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
    """Who may use it."""
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
    """An opened spool. Opening reads ``spool.json`` and nothing else; it needs no closing.

    ``keys`` are those of a signed spool, from :meth:`secrets`; without them they are looked for when they are
    needed. Raises :class:`NotASpool`, :class:`SpoolVersion` or :class:`SpoolDenied`.
    """

    def __init__(self, path: str | os.PathLike[str], *, keys: bytes = b"") -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.layout = Layout(self.path)
        self.config = _read_config(self.layout)
        self.signature = Signature(self.config.id, keys) if self.config.signed else None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        durability: fsio.Durability = "data",
        lease: float = settings.LEASE,
        max_attempts: int = settings.MAX_ATTEMPTS,
        caches: float = settings.CACHE_SECONDS,
        output: int = settings.OUTPUT,
        temporary: bool = False,
        signed: bool = False,
        max_waiting: int | None = None,
    ) -> Spool:
        """Make a spool in a directory that is empty or does not exist yet, and open it."""
        root = os.path.abspath(os.fspath(path))
        config = Config(
            format=layout.FORMAT,
            id=os.urandom(8).hex(),
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
        with explained(f"make the spool {root}"):
            os.makedirs(os.path.dirname(root), exist_ok=True)
            made = fsio.make_directory(root)
            if found := fsio.names(root):
                what = "is a spool already" if "spool.json" in found else f"is not empty (it has {found[0]!r})"
                raise BadRequest(f"Cannot make the spool {root}: it {what}. Name another directory.")
            if not made:
                fsio.set_mode(root, 0o700)
            try:
                for name in Layout.DIRECTORIES:
                    fsio.make_directory(f"{root}/{name}")
                # last, by rename: until it stands there, the directory is no spool
                fsio.create(f"{root}/tmp/spool.json", [msgspec.json.encode(config)], durability=durability)
                fsio.move(f"{root}/tmp/spool.json", f"{root}/spool.json", durability=durability)
            except OSError as error:
                if error.errno in fsio.FULL:  # half of it would be in the way of another try
                    for name in (*Layout.DIRECTORIES, *([""] if made else [])):
                        fsio.remove_directory(f"{root}/{name}")
                raise
        return cls(root)

    def write(self, path: str, label: str, parts: list[Buffer]) -> None:
        """Make a new file with the durability of this spool, signed under its label where files are."""
        if self.signature is not None:
            parts = [*parts, self.signature.sign(label, parts)]
        fsio.create(path, parts, durability=self.config.durability)

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

        One that needs others is held back until somebody lets it go (:mod:`spoolpool.waiting`): first its edges
        are made, so that whoever collects what it needs leaves that there.

        Raises :class:`SpoolFull`, :class:`SpoolDenied` or another :class:`SpoolpoolError`; then nothing
        of the task is left in the spool.
        """
        token = Token(header.task, 1, 1)
        source = f"{self.layout.tmp}/{header.task}"
        target = f"{self.layout.bucket(header.lane, header.bucket)}/{token.name}"
        with explained(f"submit a task to {self.path}"):
            self.write(source, task_label(header.task), parts)
            if header.needs:
                target = f"{self.layout.waiting}/{token.name}"
                try:
                    self._make_edges(header)
                except BaseException:
                    self.remove_edges(header)
                    fsio.remove(source)
                    raise
            try:
                self._publish(source, target)
            except BaseException:
                self.remove_edges(header)
                raise
        return token

    def _make_edges(self, header: TaskHeader) -> None:
        """Say of everything that a task needs that it does; the files are empty, and only their names count."""
        for session, needed in header.needed():
            path = self.layout.edge(session, Edge(needed, header.task))
            try:
                fsio.create(path, [])
            except FileExistsError:  # a request was repeated: nobody else makes this name
                pass
            except FileNotFoundError:
                self.make_directories(os.path.dirname(path))
                with contextlib.suppress(FileExistsError):
                    fsio.create(path, [])
        if self.config.durability == "full":
            for session in header.needs:
                fsio.sync_directory(f"{self.layout.needs}/{session}")

    def remove_edges(self, header: TaskHeader) -> None:
        """A task has its outcome, or never came to be: what it needed is needed by it no longer."""
        for session, needed in header.needed():
            path = self.layout.edge(session, Edge(needed, header.task))
            if not fsio.remove(path) and not fsio.gone(path):  # ESTALE does not say that it went
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    def _publish(self, source: str, target: str) -> None:
        rhythm = Backoff(0.005, 1.0, 2.0)
        for left in reversed(range(_TRIES)):
            try:
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
                        self.make_directories(os.path.dirname(target))
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
            f"Cannot submit to {self.path}: {os.path.dirname(target)} vanishes as often as it is made. "
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
        with contextlib.suppress(FileExistsError):
            fsio.make_directory(path)

    def open_session(self, session: str) -> None:
        """Make the directories that results of a session come into."""
        with explained(f"open the session {session} of {self.path}"):
            for parent in (self.layout.results, self.layout.outgoing):
                self.make_directories(f"{parent}/{session}")

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
        target = self.layout.result(header.session, token.claimed_by(layout.CANCELLED))
        # in this order: it goes from the one to the other
        places = [self.layout.waiting] * (held or bool(header.needs)) + [self.layout.bucket(header.lane, header.bucket)]
        for place in places:
            try:
                fsio.move(f"{place}/{token.name}", target)
                return True
            except OSError as error:
                if fsio.there(target):  # it happened; the answer was for a repeated request
                    return True
                if error.errno not in fsio.GONE:  # else it was let go, or a worker was first
                    raise
        return False

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
        where = f" ({error.filename})" if error.filename else ""
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


def _read_config(where: Layout) -> Config:
    try:
        data = fsio.read_small(where.config)
    except ValueError as error:
        raise NotASpool(f"{where.root} is not a spool: {error}.") from error
    except OSError as error:
        if error.errno in fsio.DENIED:
            raise SpoolDenied(
                f"Cannot open the spool {where.root}: {error.strerror}. It belongs to somebody else; ask its owner."
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
        return msgspec.json.decode(data, type=Config)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NotASpool(
            f"{where.root} is not a spool: {where.config} is not what 'spool init' writes ({error})."
        ) from error
