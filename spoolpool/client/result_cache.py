"""Cache of results, found by the key of the call, so that the same call need not run again.

::

    CACHE/UID/tmp/…            written here first
    CACHE/UID/ab/abcd…         the result of the call with the key abcd…, written by this account

Each account writes below a directory of its own. A result is used only if its file belongs to the account of its
directory, if that account is this one or trusted, and if the header names the key.
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
from spoolpool.security import known_spools
from spoolpool.security.signing import Signature, cache_label
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.bounds import Positive, Seconds
from spoolpool.system.limited_log import LimitedLog

_reported = LimitedLog(logging.getLogger(__name__))

_TOUCH_SECONDS = 86400.0  # least time between two updates of the modification time, which records the last use


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Header of a cached result."""

    key: str
    """Key of the call."""
    name: str = ""
    """Name of the function, for display."""
    arguments: str = ""
    """Arguments as text of at most 200 characters, for display."""
    given: str = ""
    """The user's own key (``cache_key``); empty without one."""
    created: Seconds = 0.0
    """Time of the writing, in seconds since the epoch on the clock of the writing host."""
    seconds: Seconds = 0.0
    """Duration of the call."""
    ranks: Positive = 1
    """Number of ranks whose return values are in it."""


_decoder = msgspec.json.Decoder(Entry)


class CachedResult(NamedTuple):
    """A result in a cache, as a listing shows it."""

    entry: Entry
    path: str
    owner: int
    size: int
    """Size of the file in bytes."""
    used: float
    """Day of the last use, in seconds since the epoch on the clock of the file server."""


class Cache:
    """Cached results below one directory, which may be shared.

    Results of this account and of the accounts in ``trust`` are used; ``signature`` signs and checks them in a signed
    spool. The accounts that may list the directory may also read what this account writes; ``mode`` is its mode if it
    has to be created.
    """

    def __init__(self, directory: str, trust: Trust, signature: Signature | None = None, mode: int = 0o700) -> None:
        self.directory = directory
        self._mode = mode
        self._trust = trust
        self._signature = signature

    def find(self, key: str) -> tuple[Entry, Any] | None:
        """Return a cached result with its value; None if no result is trusted, complete, and can be unpickled here."""
        own = os.geteuid()
        for uid in (own, *sorted(self._trust.uids - {own})):
            path = self._path(uid, key)
            try:
                fd = files.open_file(path)
            except OSError:  # missing, or not readable for this account
                continue
            try:
                status = self._trust.check(fd, path)
                if status.st_uid != uid:
                    owner = account_name(status.st_uid)
                    raise NotTrusted(f"{path} belongs to {owner}, not to {account_name(uid)}; refusing to read it.")
                content = envelope.read(fd, status.st_size, path, self._check(key))
                entry = headers.decode(_decoder, content.header, path)
                if entry.key != key:
                    raise BadTaskFile(f"The header of {path} names the key {entry.key} of another call.")
                value = value_of_ranks(entry.ranks, content.payload, content.buffers)
            except (OSError, SpoolpoolError) as error:
                _reported.warning(path, f"Ignoring a cached result: {error}")
                if isinstance(error, BadTaskFile) and uid == own:
                    # torn by a power failure; it would keep a new result from being stored
                    with contextlib.suppress(OSError):
                        files.remove(path)
                continue
            finally:
                files.close(fd)
            if uid == own and time.time() - status.st_mtime > _TOUCH_SECONDS:
                with contextlib.suppress(OSError):  # 'spool gc' removes results by this time
                    files.touch(path)
            return entry, value
        return None

    def keep(self, entry: Entry, payload: Buffer, buffers: Iterable[Buffer]) -> None:
        """Store a result, unless this account has one with this key. Raises ``OSError``, and then leaves no file."""
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
            raise PermissionError(
                errno.EPERM, "The directory for this account's results belongs to another account", base
            )
        source = f"{base}/tmp/{entry.key}.{os.urandom(8).hex()}"
        # not synced: a file torn by a power failure is detected, and a miss only costs a run
        files.create(source, parts, mode=file, exact=True)
        try:
            files.move(source, target)  # race: another process may store its result of the same call; both are valid
        except OSError:
            if not files.is_missing(source):  # else NFS repeated the request, and the error answers the second one
                files.remove(source)
                raise

    def entries(self) -> Iterator[CachedResult]:
        """Iterate over the readable results of all accounts."""
        users: Iterable[str] = map(str, self._trust.uids)
        with contextlib.suppress(PermissionError):  # a dropbox does not show the directories of other accounts
            users = filter(is_account, files.list_names(self.directory))
        for user in sorted(users):
            for part in sorted(filter(is_cache_part, _names(f"{self.directory}/{user}"))):
                for key in sorted(filter(is_cache_key, _names(f"{self.directory}/{user}/{part}"))):
                    path = f"{self.directory}/{user}/{part}/{key}"
                    try:
                        cached = self._read_entry(key, path)
                    except OSError:  # removed since the listing, or of another account
                        continue
                    except (SpoolpoolError, ValueError) as error:
                        _reported.warning(path, f"Ignoring a cached result: {error}")
                        continue
                    yield cached

    def value(self, cached: CachedResult) -> Any:
        """Return the value of a listed result. Raises :class:`NotTrusted` if its account is not trusted."""
        fd = files.open_file(cached.path)
        try:
            status = self._trust.check(fd, cached.path)
            content = envelope.read(fd, status.st_size, cached.path, self._check(cached.entry.key))
        finally:
            files.close(fd)
        ranks = headers.decode(_decoder, content.header, cached.path).ranks
        return value_of_ranks(ranks, content.payload, content.buffers)

    def _read_entry(self, key: str, path: str) -> CachedResult:
        with files.reading(path) as (fd, status):
            header = envelope.read_header(fd, status.st_size, path, self._check(key))
            return CachedResult(
                headers.decode(_decoder, header, path), path, status.st_uid, status.st_size, status.st_mtime
            )

    def _path(self, uid: int, key: str) -> str:
        return f"{self.directory}/{uid}/{key[:2]}/{key}"

    def _check(self, key: str) -> envelope.Check | None:
        return None if self._signature is None else functools.partial(self._signature.check, cache_label(key))

    def _modes(self) -> tuple[int, int]:
        """Return the permission bits of the directories and files that this account creates here."""
        files.make_parents(self.directory)
        files.make_directory(self.directory, self._mode)
        mode = stat.S_IMODE(os.stat(self.directory).st_mode)
        shared = [bits for bits in (0o050, 0o005) if mode & bits == bits]
        home = 0o700 | sum(shared) | (mode & stat.S_ISGID if 0o050 in shared else 0)
        return home, 0o600 | sum(shared) & 0o044


def open_cache(where: str | os.PathLike[str] | None, trust: Trust) -> Cache:
    """Return the cache of a spool, or below another directory; if None, the cache of embedded executors."""
    if where is None:
        home = os.environ.get("XDG_CACHE_HOME", "")
        home = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
        return Cache(os.path.join(home, "spoolpool"), trust)
    directory = os.path.abspath(where)
    # at the path of a spool nothing else is a cache: its files might have to be signed
    if known_spools.recall(directory) is None and files.is_missing(f"{directory}/spool.json"):
        return Cache(directory, trust)
    return cache_of(Spool(directory), trust)


def cache_of(spool: Spool, trust: Trust) -> Cache:
    """Return the cache of a spool."""
    return Cache(spool.layout.cache, trust, spool.signature, spool.rights.of("cache"))


def key_of_user_key(given: str) -> str:
    """Return the key for a user's ``cache_key``, which may be any text; it differs from all fingerprints."""
    return hashlib.sha256(f"cache_key\0{settings.PYTHON}\0{given}".encode("utf-8", "surrogatepass")).hexdigest()


def get_cache_data(
    where: str | os.PathLike[str] | None = None, *, results: bool = False, trust: Iterable[str | int] = ()
) -> list[dict[str, Any]]:
    """Return the content of a cache as a list of rows for ``pandas.DataFrame``.

    ``where`` is a spool or the directory of a cache; if None, the cache of embedded executors. A row has the keys
    ``function``, ``arguments``, ``cache_key`` (the user's own key, or empty), ``key``, ``user``, ``created`` and
    ``used`` (seconds since the epoch), ``seconds`` (duration of the call), ``size`` (bytes) and ``path``; with
    ``results`` also ``result``, unless the account is neither this one nor named in ``trust``.
    """
    trusted = Trust(trust)
    cache = open_cache(where, trusted)
    rows = []
    for cached in cache.entries():
        row = record(cached)
        if results:
            with contextlib.suppress(OSError, SpoolpoolError):  # not trusted, torn, or race: removed since the listing
                row["result"] = cache.value(cached)
        rows.append(row)
    return rows


def record(cached: CachedResult) -> dict[str, Any]:
    """Return the row of a result for the table."""
    entry = cached.entry
    return {
        "function": entry.name,
        "arguments": entry.arguments,
        "cache_key": entry.given,
        "key": entry.key,
        "user": account_name(cached.owner),
        "created": entry.created,
        "used": cached.used,
        "seconds": entry.seconds,
        "size": cached.size,
        "path": cached.path,
    }


def _names(directory: str) -> list[str]:
    with contextlib.suppress(PermissionError):
        return files.list_names(directory)
    return []


get_cache_data.__module__ = "spoolpool"
