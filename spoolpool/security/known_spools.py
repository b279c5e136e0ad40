"""Known spools: the identity that the spool at a path had when this account used it first.

Like ``known_hosts`` of ssh. A spool with another owner or mode at a known path is refused, because another account may
have put it there. Each record is a file of its own in the configuration directory, named by a digest of the path, so
that concurrent writers do not disturb each other. A process also remembers the spools that it has opened, and passes
the identity of its spool to the processes that it starts; these need no record.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat

import msgspec

from spoolpool import settings
from spoolpool.errors import NotTrusted
from spoolpool.security.permissions import Mode
from spoolpool.system import files, records
from spoolpool.system.accounts import account_name
from spoolpool.system.environment import config_directory

log = logging.getLogger(__name__)

_MOST = 1000  # records; the oldest ones of own unsigned spools are then removed


class SpoolIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Spool at a path. Equal identities are the same spool with the same guards."""

    path: str
    """Absolute path as the user named it: a link in it may be swapped."""
    id: str
    """Random id."""
    owner: int
    """Account that owns the directory."""
    mode: Mode
    """Accounts that may use the spool; the owner of a dropbox is trusted by its submitters."""
    signed: bool = False
    """Whether signatures are required."""
    temporary: bool = False
    """Whether an executor of this process, or of the one that started it, removes the spool."""

    def __str__(self) -> str:
        return f"{account_name(self.owner)} (mode {self.mode}, id {self.id})"


_decoder = msgspec.json.Decoder(SpoolIdentity)
_inherited: dict[str, SpoolIdentity] = {}
_seen: dict[tuple[int, str], SpoolIdentity] = {}


def inherit(text: str) -> None:
    """Take over the identity of a spool, as :func:`encode` returned it, from the process that started this one."""
    if text:
        identity = records.decode(_decoder, text.encode(), settings.ENV_KNOWN)
        _inherited[identity.path] = identity


def encode(identity: SpoolIdentity) -> str:
    """Return the text for :func:`inherit` in a child process."""
    return msgspec.json.encode(identity).decode()


def inherited(path: str) -> SpoolIdentity | None:
    """Return the identity that the spool at a path must have exactly, because it belongs to a parent process."""
    return _inherited.get(path)


def forget(path: str) -> None:
    """Forget a temporary spool, which was removed."""
    _inherited.pop(path, None)


def record_path(path: str) -> str:
    """Return the path of the record of the spool at ``path``."""
    import hashlib

    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return os.path.join(config_directory(), "known_spools", digest)


def recall(path: str) -> SpoolIdentity | None:
    """Return the identity that the spool at ``path`` had before; None if it is unknown.

    Only a record that no other account can write to counts.
    """
    if found := _seen.get((os.geteuid(), path)):
        return found
    known = records.read(record_path(path), _decoder, check=_check)
    if known is None or known.path != path:
        return None
    _seen[os.geteuid(), path] = known
    return known


def _check(fd: int, path: str) -> os.stat_result:
    status = files.regular_status(fd, path)
    if status.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(status.st_mode) & 0o022:
        raise NotTrusted("other accounts can write to it; remove it")
    return status


def remember(identity: SpoolIdentity, *, replace: bool = False) -> None:
    """Remember the identity of a spool; write a record unless there is one, or to ``replace`` it.

    An account without a home, or with one that it cannot write to, has no records.
    """
    key = os.geteuid(), identity.path
    if _seen.get(key) == identity:
        return
    _seen[key] = identity
    record, data = record_path(identity.path), [msgspec.json.encode(identity), b"\n"]
    with contextlib.suppress(OSError):
        if not replace:
            os.makedirs(os.path.dirname(record), mode=0o700, exist_ok=True)
            try:
                files.create(record, data)  # of processes that start at once, one writes
                _prune(os.path.dirname(record))
                return
            except FileExistsError:
                pass
            if records.read(record, _decoder, check=_check) is not None:
                return
        os.makedirs(os.path.dirname(record), mode=0o700, exist_ok=True)
        new = f"{record}.{os.urandom(4).hex()}"
        files.create(new, data)
        files.move(new, record)


def _prune(directory: str) -> None:
    names = files.list_names(directory)
    if len(names) <= _MOST:
        return
    stamps = {name: files.mtime_ns(f"{directory}/{name}") or 0 for name in names}
    for name in sorted(names, key=stamps.__getitem__)[: len(names) - _MOST // 2]:
        known = records.read(f"{directory}/{name}", _decoder)
        if known is not None and known.owner == os.geteuid() and not known.signed:
            with contextlib.suppress(OSError):
                files.remove(f"{directory}/{name}")


def check_inherited(found: SpoolIdentity, known: SpoolIdentity) -> None:
    """Raise :class:`NotTrusted` unless the spool is that of the process that started this one."""
    if (found.id, found.owner, found.mode) != (known.id, known.owner, known.mode):
        raise NotTrusted(
            f"The spool {found.path} was replaced while it was in use: it belongs to {found}, and the process that "
            f"started this one uses the spool of {known}. Nothing in it was read or written. Stop that process, and "
            "find out who replaced the directory."
        )


def check_known(found: SpoolIdentity, known: SpoolIdentity) -> None:
    """Raise :class:`NotTrusted` if the spool at a known path is another one with weaker guards.

    A new spool of the same owner and mode is accepted, with a note in the log, unless the known one was signed: where
    signatures are needed, the owner proves nothing.
    """
    if (found.id, found.owner, found.mode) == (known.id, known.owner, known.mode):
        return
    if found.owner == known.owner and found.mode == known.mode and not known.signed:
        log.warning(
            "The spool %s has been made anew by %s: its id was %s and is %s.",
            found.path,
            account_name(found.owner),
            known.id,
            found.id,
        )
        return
    signed = " It was signed, so its id proves its origin, and not its owner." if known.signed else ""
    raise NotTrusted(
        f"The spool {found.path} belonged to {known} when this account used it before, and now belongs to {found}."
        f"{signed} Another account may have replaced it; nothing in it was read or written. If the change is right, "
        f"accept it with 'spool accept {found.path}'; otherwise tell {account_name(known.owner)}."
    )


def check_first_use(found: SpoolIdentity, reason: str) -> None:
    """Raise :class:`NotTrusted` for an unknown spool that other accounts can have put in its place, for a ``reason``.

    Its owner can lead everything that is written to it elsewhere, so that owner has to be named once.
    """
    owner = account_name(found.owner)
    raise NotTrusted(
        f"The spool {found.path} belongs to {found}, is not yet known to this account, and may have been put there by "
        f"another account: {reason} Nothing was written to it. If it should belong to {owner}, run 'spool accept "
        f"{found.path}' once, or name {owner} (trust=, --trust-user) if that account may also run code as you."
    )
