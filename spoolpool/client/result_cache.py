"""Results that are kept, so that the same call need not run again: found by the key of the call.

::

    CACHE/UID/tmp/…            written here first
    CACHE/UID/ab/abcd…         the result of the call with the key abcd…, as this account had it

Each account writes below a directory of its own. A result is taken only from a file that belongs to the account of
its directory, if that is one's own or trusted, and whose header names the key.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from spoolpool import settings
from spoolpool.calls.results import value_of_ranks
from spoolpool.errors import BadTaskFile, NotTrusted, SpoolpoolError
from spoolpool.format import envelope, headers
from spoolpool.format.envelope import Buffer
from spoolpool.format.names import is_account, is_cache_key, is_cache_part
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import Signature, cache_label
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name

log = logging.getLogger(__name__)

_FRESH = 86400.0  # seconds after which the use of a result is noted: that many between two changes of its file


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the header of a kept result says."""

    key: str
    """Key of the call."""
    name: str = ""
    """What was called, for people."""
    arguments: str = ""
    """Its arguments, for people: at most 200 characters."""
    given: str = ""
    """The key as the user gave it, where he did (``cache_key``)."""
    created: float = 0.0
    """When it was kept: seconds since the epoch, the clock of the host that did."""
    seconds: float = 0.0
    """How long the call took."""
    ranks: int = 1
    """Ranks whose return values it holds."""


_decoder = msgspec.json.Decoder(Entry)


class Kept(NamedTuple):
    """A result in a cache, as a listing shows it."""

    entry: Entry
    path: str
    owner: int
    size: int
    """Bytes of its file."""
    used: float
    """When it was last used, to the day: seconds since the epoch, the clock of the filesystem's server."""


class Cache:
    """The kept results below one directory, which may be shared.

    ``trust`` says whose results are taken besides one's own; ``signature`` signs and checks them where they are in a
    signed spool. Who may read what this account writes follows from the mode of the directory: whoever may list it;
    ``mode`` is for making it.
    """

    def __init__(self, directory: str, trust: Trust, signature: Signature | None = None, mode: int = 0o700) -> None:
        self.directory = directory
        self._mode = mode
        self._trust = trust
        self._signature = signature

    def find(self, key: str) -> tuple[Entry, Any] | None:
        """A kept result with its value; None where there is none that is trusted, whole, and can be unpickled here."""
        own = os.geteuid()
        for uid in (own, *sorted(self._trust.uids - {own})):
            path = self._path(uid, key)
            try:
                fd = files.open_file(path)
            except OSError:  # not there, or not for this account's eyes
                continue
            try:
                status = self._trust.check(fd, path)
                if status.st_uid != uid:
                    raise NotTrusted(f"{path} belongs to {account_name(status.st_uid)}. It was not read.")
                content = envelope.read(fd, status.st_size, path, self._check(key))
                entry = headers.decode(_decoder, content.header, path)
                if entry.key != key:
                    raise BadTaskFile(f"{path} says that it is the result of another call.")
                value = value_of_ranks(entry.ranks, content.payload, content.buffers)
            except (OSError, SpoolpoolError) as error:
                log.warning("A kept result was not used: %s", error)
                if isinstance(error, BadTaskFile) and uid == own:
                    # torn when the power failed, and in the way of a good one
                    with contextlib.suppress(OSError):
                        files.remove(path)
                continue
            finally:
                files.close(fd)
            if uid == own and time.time() - status.st_mtime > _FRESH:
                with contextlib.suppress(OSError):  # 'spool gc' goes by it
                    files.touch(path)
            return entry, value
        return None

    def keep(self, entry: Entry, payload: Buffer, buffers: Iterable[Buffer]) -> None:
        """Keep a result, unless this account has one of that key; raises ``OSError`` and leaves nothing then."""
        own = os.geteuid()
        target = self._path(own, entry.key)
        if files.exists(target):
            return
        parts = envelope.pack(msgspec.json.encode(entry), payload, list(buffers))
        if self._signature is not None:
            parts = [*parts, self._signature.sign(cache_label(entry.key), parts)]
        home, file = self._modes()
        base = f"{self.directory}/{own}"
        for directory in (base, f"{base}/tmp", os.path.dirname(target)):
            files.make_directory(directory, home)
        if files.owner(base) != own:
            raise PermissionError(errno.EPERM, "The directory for one's own results belongs to another account", base)
        source = f"{base}/tmp/{entry.key}.{os.urandom(8).hex()}"
        # unsynced: what a power failure tears is no result, and a miss costs a run
        files.create(source, parts, mode=file, exact=True)
        try:
            files.move(source, target)  # two who come here at once have results of equal worth
        except OSError:
            if not files.is_missing(source):  # else it happened; the answer was for a repeated request
                files.remove(source)
                raise

    def entries(self) -> Iterator[Kept]:
        """All results that can be seen here, of whatever account; what cannot be read is left out."""
        users: Iterable[str] = map(str, self._trust.uids)
        with contextlib.suppress(PermissionError):  # a dropbox shows nobody what others have
            users = filter(is_account, files.list_names(self.directory))
        for user in sorted(users):
            for part in sorted(filter(is_cache_part, _names(f"{self.directory}/{user}"))):
                for key in sorted(filter(is_cache_key, _names(f"{self.directory}/{user}/{part}"))):
                    with contextlib.suppress(OSError, SpoolpoolError):
                        yield self._kept(key, f"{self.directory}/{user}/{part}/{key}")

    def value(self, kept: Kept) -> Any:
        """The value of a listed result; raises :class:`NotTrusted` for that of an account that is not trusted."""
        fd = files.open_file(kept.path)
        try:
            status = self._trust.check(fd, kept.path)
            content = envelope.read(fd, status.st_size, kept.path, self._check(kept.entry.key))
        finally:
            files.close(fd)
        ranks = headers.decode(_decoder, content.header, kept.path).ranks
        return value_of_ranks(ranks, content.payload, content.buffers)

    def _kept(self, key: str, path: str) -> Kept:
        with files.reading(path) as (fd, status):
            header = envelope.read_header(fd, status.st_size, path, self._check(key))
            return Kept(headers.decode(_decoder, header, path), path, status.st_uid, status.st_size, status.st_mtime)

    def _path(self, uid: int, key: str) -> str:
        return f"{self.directory}/{uid}/{key[:2]}/{key}"

    def _check(self, key: str) -> envelope.Check | None:
        return None if self._signature is None else functools.partial(self._signature.check, cache_label(key))

    def _modes(self) -> tuple[int, int]:
        """Permission bits of the directories and files that this account makes here."""
        files.make_parents(self.directory)
        files.make_directory(self.directory, self._mode)
        mode = stat.S_IMODE(os.stat(self.directory).st_mode)
        shared = [bits for bits in (0o050, 0o005) if mode & bits == bits]
        home = 0o700 | sum(shared) | (mode & stat.S_ISGID if 0o050 in shared else 0)
        return home, 0o600 | sum(shared) & 0o044


def open_cache(where: str | os.PathLike[str] | None, trust: Trust) -> Cache:
    """The cache of a spool, or below a directory that is none; without one, that of an account's embedded executors."""
    if where is None:
        home = os.environ.get("XDG_CACHE_HOME", "")
        home = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
        return Cache(os.path.join(home, "spoolpool"), trust)
    directory = os.path.abspath(where)
    if files.is_missing(f"{directory}/spool.json"):
        return Cache(directory, trust)
    return cache_of(Spool(directory), trust)


def cache_of(spool: Spool, trust: Trust) -> Cache:
    """The cache of a spool."""
    return Cache(spool.layout.cache, trust, spool.signature, spool.rights.of("cache"))


def key_of(given: str) -> str:
    """The name of a key that a user gave, whatever is in it: no fingerprint is the same."""
    return hashlib.sha256(f"cache_key\0{settings.PYTHON}\0{given}".encode("utf-8", "surrogatepass")).hexdigest()


def get_cache_data(
    where: str | os.PathLike[str] | None = None, *, results: bool = False, trust: Iterable[str | int] = ()
) -> list[dict[str, Any]]:
    """What a cache holds, as a table: a list of rows for ``pandas.DataFrame``.

    ``where`` is a spool or the directory of a cache; without it, the one that embedded executors use. A row has the
    keys ``function``, ``arguments``, ``cache_key`` (as the user gave it, else empty), ``key``, ``user``, ``created``
    (seconds since the epoch), ``used``, ``seconds`` (that the call took), ``size`` (bytes) and ``path``; with
    ``results`` also ``result``, which for accounts that are not named in ``trust`` is missing.
    """
    trusted = Trust(trust)
    cache = open_cache(where, trusted)
    rows = []
    for kept in cache.entries():
        row = record(kept)
        if results:
            with contextlib.suppress(OSError, SpoolpoolError):  # not trusted, torn, or removed just now
                row["result"] = cache.value(kept)
        rows.append(row)
    return rows


def record(kept: Kept) -> dict[str, Any]:
    """A row of the table."""
    entry = kept.entry
    return {
        "function": entry.name,
        "arguments": entry.arguments,
        "cache_key": entry.given,
        "key": entry.key,
        "user": account_name(kept.owner),
        "created": entry.created,
        "used": kept.used,
        "seconds": entry.seconds,
        "size": kept.size,
        "path": kept.path,
    }


def _names(directory: str) -> list[str]:
    with contextlib.suppress(PermissionError):
        return files.list_names(directory)
    return []


get_cache_data.__module__ = "spoolpool"
