"""Objects that are stored once and passed by reference; their name is the hash of what is in them."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from spoolpool import envelope, fsio
from spoolpool.envelope import Buffer, Envelope
from spoolpool.errors import BadTaskFile, NotTrusted
from spoolpool.signature import object_label
from spoolpool.spool import Spool
from spoolpool.trust import Trust, account


def _object_id(payload: Buffer, buffers: Sequence[Buffer]) -> str:
    digest = xxhash.xxh3_128(payload)
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


def put_object(spool: Spool, payload: Buffer, buffers: Sequence[Buffer], writer: str) -> str:
    """Store an object, once per ``writer``, account and content; returns its id."""
    name = _object_id(payload, buffers)
    source = f"{spool.layout.tmp}/{name}.{writer}"
    target = spool.layout.object(name, spool.account)
    if not fsio.there(target):
        spool.write(source, object_label(name), envelope.pack(b"{}", payload, buffers))
        fsio.move(source, target)
    return name


def read_object(spool: Spool, name: str, trust: Trust, owner: int | None = None) -> Envelope:
    """Read an object of a trusted account's and check that it is what its name says.

    In a shared spool it must belong to ``owner``, that of the task which names it: a hash that is quick is no proof
    against people, so that nobody else's object is taken for it.
    """
    assert owner is not None or not spool.shared
    path = spool.layout.object(name, owner if spool.shared else None)
    fd = fsio.open_file(path)
    try:
        status = trust.check(fd, path)
        if spool.shared and owner is not None and status.st_uid != owner:
            raise NotTrusted(f"{path} belongs to {account(status.st_uid)}, and {account(owner)}'s is asked for.")
        content = spool.read(fd, status.st_size, path, object_label(name))
    finally:
        fsio.close(fd)
    if _object_id(content.payload, content.buffers) != name:
        raise BadTaskFile(f"{path} does not hold what its name says.")
    return content
