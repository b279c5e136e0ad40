"""Which tasks a task needs, said in the spool: whoever collects their outcomes leaves them there."""

from __future__ import annotations

import contextlib
import errno
import os

from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import DependencyLink
from spoolpool.protocol.spool import Spool
from spoolpool.system import files


def add_link(spool: Spool, header: TaskHeader) -> None:
    """Say of everything that a task needs that it does; the files are empty, and only their names count."""
    for session, needed in header.needed():
        path = spool.layout.dependency_link(session, DependencyLink(needed, header.task))
        directory, name = os.path.split(path)
        try:
            place = spool.held(directory)
            files.create(f"{place}/{name}", [])
        except FileExistsError:  # a request was repeated: nobody else makes this name
            pass
        except FileNotFoundError:
            spool.make_directories(directory)
            place = spool.held(directory)
            with contextlib.suppress(FileExistsError):
                files.create(f"{place}/{name}", [])
    if spool.config.durability == "full":
        for session in header.needs:
            files.sync_directory(f"{spool.layout.needs}/{session}")


def remove_link(spool: Spool, header: TaskHeader) -> None:
    """A task has its outcome, or never came to be: what it needed is needed by it no longer."""
    for session, needed in header.needed():
        path = spool.layout.dependency_link(session, DependencyLink(needed, header.task))
        directory, name = os.path.split(path)
        try:
            place = spool.held(directory)
        except FileNotFoundError:
            continue
        if not files.remove(f"{place}/{name}") and not files.is_missing(path):  # ESTALE does not say that it went
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
