"""Objects: large arguments that are stored once and passed by reference. Their id is the hash of the content.

A session that uses an object has a lease on it, an empty file in ``needs/``. An object is removed when there is no
lease on it any more and no task refers to it. A task that cannot be read may refer to any object.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import xxhash

from spoolpool.errors import BadTaskFile, NotTrusted
from spoolpool.format import envelope
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.protocol.overflow import STUB_SIZE
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import SIZE, object_label
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files
from spoolpool.system.accounts import account_name


def object_id(payload: Buffer, buffers: Sequence[Buffer]) -> str:
    """Return the id of an object with this content."""
    digest = xxhash.xxh3_128(payload)
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


def object_file(spool: Spool, name: str) -> str:
    """Return the name of the file of this account's object."""
    return os.path.basename(spool.layout.object(name, spool.account))


# -- writing


def put_object(spool: Spool, payload: Buffer, buffers: Sequence[Buffer], writer: str, name: str = "") -> str:
    """Store an object, once per account and content; return its id, which is ``name`` where it is known.

    Acquire a lease first: nothing else keeps the object. No other process may write under the name ``writer`` at the
    same time. Raises :class:`SpoolFull`, after which nothing is left, and :class:`NotTrusted` if another account has
    put a file in its place.
    """
    name = name or object_id(payload, buffers)
    target = spool.layout.object(name, spool.account)
    parts = envelope.pack(b"{}", payload, buffers)
    with files.translate_errors(f"put an object into {spool.path}"):
        if not _exists(spool, target, sum(map(len, parts))):
            source = f"{spool.layout.tmp}/{name}.{writer}"
            spool.in_directory(spool.layout.tmp, lambda: spool.write(source, object_label(name), parts))
            durability = spool.config.durability
            spool.in_directory(spool.layout.objects, lambda: files.move(source, target, durability=durability))
    return name


def _exists(spool: Spool, path: str, size: int) -> bool:
    """Return whether an object of this account exists, and set its time; remove it if it is cut short.

    The directory is not listed, since it may have very many names: an object that a stale cache hides is written again.
    """
    try:
        with files.reading(path, Trust().check) as (_, status):
            found = status.st_size
        if found - size not in (0, SIZE) and not (spool.overflow is not None and found == STUB_SIZE):
            files.remove(path)
            return False
        files.touch(path)
    except OSError as error:
        if error.errno in files.GONE:  # also if it was removed as garbage just now
            return False
        raise
    return True


# -- reading


def read_object(spool: Spool, name: str, trust: Trust, owner: int | None = None) -> Envelope:
    """Read an object of a trusted account, and check that its content matches its name.

    In a shared spool it must belong to ``owner``, the account of the task that refers to it. The hash is fast and not
    cryptographic, so that another account could make an object with the same name.
    """
    fd, path = open_object(spool, name, trust, owner)
    try:
        return read_opened(spool, fd, path, name, writable=True)
    finally:
        files.close(fd)


def open_object(spool: Spool, name: str, trust: Trust, owner: int | None) -> tuple[int, str]:
    """Return the descriptor and the path of an object of the right account."""
    assert owner is not None or not spool.shared
    path = spool.layout.object(name, owner if spool.shared else None)
    fd = files.open_file(path)
    try:
        _check_owner(trust.check(fd, path).st_uid, path, owner if spool.shared else None)
    except BaseException:
        files.close(fd)
        raise
    return fd, path


def _check_owner(found: int, path: str, owner: int | None) -> None:
    if owner not in (None, found):
        raise NotTrusted(
            f"{path} belongs to {account_name(found)} and should be {account_name(owner)}'s. It was not read."
        )


def read_opened(spool: Spool, fd: int, path: str, name: str, *, writable: bool) -> Envelope:
    """Read an open object, and check that its content matches its name."""
    # its id is the checksum of its content
    content = spool.read(fd, file_content.size(fd), path, object_label(name), writable=writable, checksum=False)
    if object_id(content.payload, content.buffers) != name:
        raise BadTaskFile(f"The content of {path} does not match its name. Remove it, and put the object again.")
    return content
