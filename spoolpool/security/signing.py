"""Signed spools: whose file it is says a key, where the owner of a file says too little.

A signature is an HMAC-SHA256 over the id of the spool, the file's *label* (what it is, and the part of its name that
never changes) and every byte of the file. So no file can be passed off as another, nor be used in another spool. The
keys lie in a file outside the spool, newest first: the newest signs, and all in it are accepted.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import stat
import time
from collections.abc import Sequence
from typing import NamedTuple

from spoolpool import settings
from spoolpool.errors import BadRequest, NoKey, NotTrusted
from spoolpool.system import files

SIZE = 40
"""Bytes of a signature: the id of its key (8) and the HMAC (32)."""

_VALID = 2  # keys: the newest, and the one before while everybody changes over
_RELOAD = 60.0  # seconds after which a change of the key file is noticed in any case
_ALLOWED = 0o640
_LINE = re.compile(r"([0-9a-f]{16}) ([0-9a-f]{64})", re.ASCII)


def task_label(task: str) -> str:
    """The label of a task's file: the rest of its name changes with each claim."""
    return f"task/{task}"


def outcome_label(session: str, name: str) -> str:
    """The label of an outcome, which is one claim's of one session."""
    return f"outcome/{session}/{name}"


def object_label(name: str) -> str:
    """The label of an object."""
    return f"object/{name}"


def cache_label(key: str) -> str:
    """The label of a kept result."""
    return f"cache/{key}"


class Key(NamedTuple):
    """A secret with its id, which tells nothing about it."""

    id: str
    secret: bytes

    @classmethod
    def of(cls, secret: bytes) -> Key:
        """The key that a secret is."""
        return cls(hmac.digest(secret, b"spoolpool key id", "sha256")[:8].hex(), secret)


def key_path(spool: str) -> str:
    """Where the keys of the spool with this id are looked for."""
    if named := os.environ.get(settings.ENV_KEY):
        return os.path.abspath(named)
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return os.path.join(home if os.path.isabs(home) else os.path.expanduser("~/.config"), "spoolpool", "keys", spool)


def read_keys(path: str) -> tuple[Key, ...]:
    """The keys in a file, newest first.

    Raises :class:`NoKey` where it is missing, where others may read or change it, or where it holds something else.
    """
    try:
        fd = files.open_file(path)
    except OSError as error:
        raise NoKey(
            f"The key of a signed spool cannot be read: {path} ({error.strerror}). Copy the file of somebody who "
            f"has the key there, with mode 0600, or name it in {settings.ENV_KEY}. The first one is made by 'spool "
            "key new'."
        ) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NoKey(f"The key file {path} is not a regular file.")
        if status.st_uid not in (os.geteuid(), 0):
            raise NoKey(
                f"The key file {path} belongs to uid {status.st_uid}. It must be yours, or root's: its owner can "
                "change it, and so decides what you run."
            )
        if stat.S_IMODE(status.st_mode) & ~_ALLOWED:
            raise NoKey(
                f"The key file {path} has mode {stat.S_IMODE(status.st_mode):04o}: others may read or change it. Make "
                "it 0600, or 0640 for a group that shares it; if somebody may have read it, 'spool key rotate'."
            )
        text = os.read(fd, 4096).decode("ascii", "replace")
    finally:
        files.close(fd)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    keys = tuple(Key(found[1], bytes.fromhex(found[2])) for found in map(_LINE.fullmatch, lines) if found)
    if not keys or len(keys) != len(lines) or any(Key.of(key.secret) != key for key in keys):
        raise NoKey(f"The key file {path} is not what 'spool key' writes: it is damaged. Copy it anew.")
    return keys


def _text(keys: Sequence[Key]) -> bytes:
    lines = [
        "# spoolpool: whoever can read this can forge tasks. Newest key first.",
        *(f"{i} {s.hex()}" for i, s in keys),
    ]
    return "\n".join([*lines, ""]).encode()


def make_key(path: str) -> Key:
    """Make the first key of a spool; raises :class:`BadRequest` where the file is there already."""
    key = Key.of(os.urandom(32))
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        files.create(path, [_text([key])], durability="full")
    except FileExistsError:
        raise BadRequest(f"The key file {path} exists. 'spool key rotate' puts a new key into it.") from None
    return key


def rotate_key(path: str, *, finish: bool = False) -> tuple[Key, ...]:
    """Put a new key before the newest one, which stays valid; or ``finish``: end the validity of all but the newest.

    The file is replaced as a whole and keeps its mode and group; returns the keys that are in it now.
    """
    old = read_keys(path)
    keys = old[:1] if finish else (Key.of(os.urandom(32)), *old)[:_VALID]
    status = os.stat(path)
    new = f"{path}.new"
    try:
        files.create(new, [_text(keys)], durability="data")
    except FileExistsError:
        raise BadRequest(f"Somebody rotates the key just now: {new} exists. If nobody does, remove it.") from None
    try:
        if status.st_gid != os.stat(new).st_gid:
            os.chown(new, -1, status.st_gid)
        files.set_mode(new, stat.S_IMODE(status.st_mode))
        files.move(new, path, durability="full")  # over the old file: this is no spool
    except OSError:
        with contextlib.suppress(OSError):
            files.remove(new)
        raise
    return keys


class Signature:
    """Signs and checks the files of one spool; may be used from several threads.

    The keys are read when they are first needed, and again when a file names one that is not known, and now and
    then. Given as ``keys``, they are final: so are those that rank 0 hands to the other ranks.
    """

    def __init__(self, spool: str, keys: bytes = b"") -> None:
        self._context = f"spoolpool signature 1\0{spool}\0"
        self.path = key_path(spool)
        self._final = tuple(Key.of(keys[start : start + 32]) for start in range(0, len(keys), 32))
        self._keys: dict[str, hmac.HMAC] = {}
        self._newest = ""
        self._due = 0.0

    def secrets(self) -> bytes:
        """The keys themselves, as another :class:`Signature` of this spool takes them."""
        return b"".join(key.secret for key in self._final or read_keys(self.path))

    def load(self) -> None:
        """Read the keys, so that what is wrong with them is told now; raises :class:`NoKey`."""
        keys = self._final or read_keys(self.path)
        self._keys = {key.id: hmac.new(key.secret, self._context.encode(), "sha256") for key in keys}
        self._newest = keys[0].id
        self._due = time.monotonic() + _RELOAD

    def _refresh(self) -> None:
        if time.monotonic() < self._due:
            return
        try:
            self.load()
        except NoKey:  # away for a moment, or being moved: what was read is still good
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
        """The signature of a file of these parts, by the newest key; raises :class:`NoKey`."""
        self._refresh()
        return bytes.fromhex(self._newest) + self._digest(self._newest, label, parts)

    def check(self, label: str, path: str, content: memoryview, signature: bytes) -> None:
        """Raise :class:`NotTrusted` unless this is a file's signature; :class:`NoKey` where its key is not here."""
        self._refresh()
        key = signature[:8].hex()
        if key not in self._keys:
            self.load()
        if key not in self._keys:
            raise NoKey(
                f"{path} is signed with the key {key}, and {self.path} has {' and '.join(self._keys)}. It was left "
                "alone. If the key was rotated, copy the key file to here; else somebody without the key wrote it."
            )
        if not hmac.compare_digest(self._digest(key, label, [content]), signature[8:]):
            raise NotTrusted(
                f"The signature of {path} is wrong: it was changed by somebody without the key, or was written under "
                "another name or for another spool. It was not unpickled, and left alone."
            )
