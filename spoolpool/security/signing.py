"""Signatures of files by a shared key, for spools in which the owner of a file is not sufficient proof of its origin.

A signature is an HMAC-SHA256 over the id of the spool, the *label* of the file (its kind, and the part of its name that
never changes) and every byte of the file. So a file can replace no other file and is not valid in another spool. The
keys are in a file outside the spool, newest first. The newest key signs; signatures by any of them are accepted.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from spoolpool import settings
from spoolpool.errors import BadRequest, NoKey, NotTrusted
from spoolpool.system import files
from spoolpool.system.environment import config_directory
from spoolpool.system.patterns import lazy_pattern

if TYPE_CHECKING:
    import hmac

SIZE = 40
"""Bytes of a signature: the id of its key (8) and the HMAC (32)."""

_VALID = 2  # keys: the newest, and the previous one until all hosts have the newest
_RELOAD = 60.0  # seconds after which a change of the key file is noticed at the latest
_ALLOWED = 0o640
_LINE = lazy_pattern(r"([0-9a-f]{16}) ([0-9a-f]{64})", re.ASCII)


def task_label(task: str) -> str:
    """Return the label of a task file. The rest of its name changes with each claim."""
    return f"task/{task}"


def outcome_label(session: str, name: str) -> str:
    """Return the label of an outcome. It belongs to one claim and one session."""
    return f"outcome/{session}/{name}"


def record_label(label: str, number: int) -> str:
    """Return the label of a record by that of its file, whose records are numbered from 0."""
    return f"{label}+{number}"


def object_label(name: str) -> str:
    """Return the label of an object."""
    return f"object/{name}"


def cache_label(key: str) -> str:
    """Return the label of a cached result."""
    return f"cache/{key}"


class Key(NamedTuple):
    """A secret with its id; the secret cannot be derived from the id."""

    id: str
    secret: bytes

    @classmethod
    def of(cls, secret: bytes) -> Key:
        """Return the key with this secret."""
        import hmac

        return cls(hmac.digest(secret, b"spoolpool key id", "sha256")[:8].hex(), secret)


def key_path(spool: str) -> str:
    """Return the path of the key file of the spool with this id."""
    if named := os.environ.get(settings.ENV_KEY):
        return os.path.abspath(named)
    return os.path.join(config_directory(), "keys", spool)


def has_key(spool: str) -> bool:
    """Return whether this account has a key file for the spool with this id, readable or not.

    A file that ``SPOOLPOOL_KEY`` names is the key of every spool: only the spool itself says which id it has.
    """
    path = key_path(spool)
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in files.GONE or error.errno in files.DENIED:  # a home that this account cannot enter: no key
            return False
        raise NoKey(
            f"Cannot tell whether there is a key for the spool {spool}: {path} ({error.strerror}). Try again when that "
            "filesystem answers."
        ) from error
    return True


def read_keys(path: str) -> tuple[Key, ...]:
    """Read a key file and return its keys, newest first.

    Raises :class:`NoKey` if it is missing, if other accounts may read or change it, or if it is damaged.
    """
    try:
        fd = files.open_file(path)
    except OSError as error:
        raise NoKey(
            f"The key of a signed spool cannot be read: {path} ({error.strerror}). Copy the key file of another user "
            f"of the spool there, with mode 0600, or name it in {settings.ENV_KEY}. 'spool key new' makes the first "
            "key."
        ) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NoKey(f"The key file {path} is not a regular file.")
        if status.st_uid not in (os.geteuid(), 0):
            raise NoKey(
                f"The key file {path} belongs to uid {status.st_uid}. It must belong to you or root: its owner can "
                "change it, and so decides which code you run."
            )
        if stat.S_IMODE(status.st_mode) & ~_ALLOWED:
            raise NoKey(
                f"The key file {path} has mode {stat.S_IMODE(status.st_mode):04o}: other accounts may read or change "
                "it. Set the mode 0600, or 0640 for a group that shares the key. If another account may have read it, "
                "run 'spool key rotate'."
            )
        text = os.read(fd, 4096).decode("ascii", "replace")
    finally:
        files.close(fd)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    keys = tuple(Key(found[1], bytes.fromhex(found[2])) for found in map(_LINE.fullmatch, lines) if found)
    if not keys or len(keys) != len(lines) or any(Key.of(key.secret) != key for key in keys):
        raise NoKey(f"The key file {path} is damaged: 'spool key' writes other content. Copy it again.")
    return keys


def _text(keys: Sequence[Key]) -> bytes:
    lines = [
        "# spoolpool: every account that can read this file can forge tasks. Newest key first.",
        *(f"{i} {s.hex()}" for i, s in keys),
    ]
    return "\n".join([*lines, ""]).encode()


def make_key(path: str) -> Key:
    """Make the first key of a spool; raise :class:`BadRequest` if the key file exists."""
    key = Key.of(os.urandom(32))
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        files.create(path, [_text([key])], durability="full")
    except FileExistsError:
        raise BadRequest(f"The key file {path} exists. 'spool key rotate' adds a new key to it.") from None
    return key


def rotate_key(path: str, *, finish: bool = False) -> tuple[Key, ...]:
    """Add a new key before the present one, which stays valid; with ``finish``, remove all keys but the newest.

    The file is replaced as a whole and keeps its mode and group. Returns the keys that it contains then.
    """
    old = read_keys(path)
    keys = old[:1] if finish else (Key.of(os.urandom(32)), *old)[:_VALID]
    status = os.stat(path)
    new = f"{path}.new"
    try:
        files.create(new, [_text(keys)], durability="data")
    except FileExistsError:
        raise BadRequest(f"Another process is rotating the key: {new} exists. If none is, remove that file.") from None
    try:
        if status.st_gid != os.stat(new).st_gid:
            os.chown(new, -1, status.st_gid)
        files.set_mode(new, stat.S_IMODE(status.st_mode))
        files.move(new, path, durability="full")  # replaces the old file, which no file of a spool may
    except OSError:
        with contextlib.suppress(OSError):
            files.remove(new)
        raise
    return keys


class Signature:
    """Signer and verifier of the files of one spool. May be used from several threads.

    The keys are read at first use, again after a while, and when a file names an unknown key. Keys given as ``keys``
    are final; rank 0 passes its keys to the other ranks in this way.
    """

    def __init__(self, spool: str, keys: bytes = b"") -> None:
        self._context = f"spoolpool signature 1\0{spool}\0"
        self.path = key_path(spool)
        self._final = tuple(Key.of(keys[start : start + 32]) for start in range(0, len(keys), 32))
        self._keys: dict[str, hmac.HMAC] = {}
        self._newest = ""
        self._due = 0.0

    def secrets(self) -> bytes:
        """Return the secrets of the keys, as the ``keys`` of another :class:`Signature` of this spool."""
        return b"".join(key.secret for key in self._final or read_keys(self.path))

    def load(self) -> None:
        """Read the keys now; raise :class:`NoKey` if that fails."""
        import hmac

        keys = self._final or read_keys(self.path)
        self._keys = {key.id: hmac.new(key.secret, self._context.encode(), "sha256") for key in keys}
        self._newest = keys[0].id
        self._due = time.monotonic() + _RELOAD

    def _refresh(self) -> None:
        if time.monotonic() < self._due:
            return
        try:
            self.load()
        except NoKey:  # unreachable for a moment, or being replaced: the keys in memory stay valid
            if not self._keys:
                raise
            self._due = time.monotonic() + _RELOAD

    def _digest(self, key: str, label: str, parts: Sequence[bytes | memoryview]) -> bytes:
        digest = self._keys[key].copy()
        digest.update(f"{label}\0".encode())
        for part in parts:  # views: no byte is copied
            digest.update(part)
        return digest.digest()

    def sign(self, label: str, parts: Sequence[bytes | memoryview]) -> bytes:
        """Return the signature of a file of these parts by the newest key; raise :class:`NoKey` without a key."""
        self._refresh()
        return bytes.fromhex(self._newest) + self._digest(self._newest, label, parts)

    def check(self, label: str, path: str, content: memoryview, signature: bytes) -> None:
        """Raise :class:`NotTrusted` if the signature of a file is wrong, and :class:`NoKey` if its key is missing."""
        import hmac

        self._refresh()
        key = signature[:8].hex()
        if key not in self._keys:
            self.load()
        if key not in self._keys:
            raise NoKey(
                f"{path} is signed with the key {key}, and {self.path} has {' and '.join(self._keys)}; refusing to "
                "read it. If the key was rotated, copy the key file here; otherwise an account without the key wrote "
                "the file."
            )
        if not hmac.compare_digest(self._digest(key, label, [content]), signature[8:]):
            raise NotTrusted(
                f"The signature of {path} is wrong: an account without the key changed it, or it was written under "
                "another name or for another spool. It was not unpickled."
            )
