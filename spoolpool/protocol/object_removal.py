"""Removal of objects that no session and no task needs, and their restoration by a process that needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Mapping

from spoolpool.format.names import (
    name_aside,
    parse_lease,
)
from spoolpool.protocol.object_leases import leases
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import object_label
from spoolpool.system import files


def is_stored(spool: Spool, name: str) -> bool:
    """Return whether an object exists, by the name of its file; acquire a lease first.

    An object that another process has put aside is put back: that process may have died since.
    """
    path = f"{spool.layout.objects}/{name}"
    return files.exists(path) or restore(spool, name) or files.exists(path)


def restore(spool: Spool, name: str) -> bool:
    """Put back an object that was put aside; return whether there was one."""
    where = spool.layout.objects
    with contextlib.suppress(OSError):  # in a dropbox only its owner can list them
        for each in files.list_names(where):
            aside = parse_lease(each)
            if aside is not None and aside.object == name:
                files.move(f"{where}/{each}", f"{where}/{name}")  # race: it was put back, or removed as not needed
                return True
    return False


def remove_object(spool: Spool, name: str) -> bool:
    """Remove an object on which there is no lease, by the name of its file; return whether it was removed.

    For a caller that knows of no task that needs the object without a lease.
    """
    return remove_objects(spool, {name: None}, lambda: leases(spool, refresh=True)) == 1


def remove_objects(spool: Spool, stamps: Mapping[str, int | None], find_needed: Callable[[], Container[str]]) -> int:
    """Remove objects, by the names of their files and their times in ns; return the number of removed ones.

    All are put aside before ``find_needed`` looks for the needed ones. Those are put back, and those with another time
    than in ``stamps``. A process that acquires an object meanwhile creates its lease before it looks for the object: it
    finds the object, here or aside, or ``find_needed`` finds the lease. If this process dies, an object stays aside:
    whoever needs it puts it back, or 'spool gc' does. If ``find_needed`` raises, all are put back.
    """
    aside: dict[str, str] = {}
    removed = 0
    try:
        for name in stamps:
            path = f"{spool.layout.objects}/{name_aside(name)}"
            try:
                files.move(f"{spool.layout.objects}/{name}", path)
            except OSError as error:
                # another process removes it too; or, in a dropbox, it belongs to another account
                if error.errno not in files.GONE | files.DENIED:
                    raise
            else:
                aside[name] = path
        needed = find_needed() if aside else ()
        for name, path in list(aside.items()):
            with contextlib.suppress(OSError):  # it cannot be opened, as another account's: it stays
                if name not in needed and stamps[name] in (None, files.mtime_ns(path)):
                    large = None
                    if spool.overflow is not None:
                        large = spool.overflow.find(path, object_label(name.partition("@")[0]))
                    removed += files.remove(path)
                    del aside[name]
                    if large is not None:
                        files.remove(large)
    finally:
        for name, path in aside.items():
            with contextlib.suppress(OSError):  # race: a process that needs it has put it back; or 'spool gc' will
                if files.exists(f"{spool.layout.objects}/{name}"):
                    files.remove(path)
                else:
                    files.move(path, f"{spool.layout.objects}/{name}")
    return removed
