"""Leases of sessions on objects: empty files in ``needs/``, which keep an object from being removed."""

from __future__ import annotations

import contextlib

from spoolpool.format.names import (
    ObjectLease,
    is_session,
    parse_lease,
)
from spoolpool.protocol.spool import Spool
from spoolpool.system import files


def acquire(spool: Spool, session: str, lease: ObjectLease) -> None:
    """Create or renew a lease of a session on an object; harmless when repeated."""
    directory = f"{spool.layout.needs}/{session}"

    def create() -> None:
        path = f"{spool.directory(directory)}/{lease.name}"
        try:
            files.create(path, [])
        except FileExistsError:
            files.touch(path)

    spool.in_directory(directory, create)


def release(spool: Spool, session: str, lease: ObjectLease) -> None:
    """Remove a lease of a session on an object."""
    with contextlib.suppress(FileNotFoundError):
        place = spool.directory(f"{spool.layout.needs}/{session}")
        files.remove(f"{place}/{lease.name}")


def leases(spool: Spool, *, refresh: bool = False) -> dict[str, set[str]]:
    """Return the paths of the leases, below the spool, by the names of the objects' files.

    ``refresh`` touches the directories, so that an earlier listing in the cache of an NFS client hides no lease. Raises
    ``OSError`` where a directory cannot be listed: that does not mean that it is empty.
    """
    found: dict[str, set[str]] = {}
    for session in filter(is_session, files.list_names(spool.layout.needs, certain=True)):
        if refresh:
            files.refresh(f"{spool.layout.needs}/{session}")
        for each in map(parse_lease, files.list_names(f"{spool.layout.needs}/{session}", certain=True)):
            if each is not None:
                found.setdefault(each.object, set()).add(f"needs/{session}/{each.name}")
    return found
