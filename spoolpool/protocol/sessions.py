"""Register the submitter of a session in ``sessions/SESSION.json``."""

from __future__ import annotations

import contextlib
import os

import msgspec

from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.processes import ProcessId


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The last process that opened a session."""

    process: ProcessId
    """Process of the submitter."""
    user: str
    """Account that it runs as."""
    keeps: bool = False
    """Whether outcomes stay after their delivery, for a later process of the session."""


def register(spool: Spool, session: str, user: str, *, keeps: bool = False) -> None:
    """Register this process as the submitter, instead of an earlier one that is not certain to be alive."""
    info = SessionInfo(process=ProcessId.of(os.getpid()), user=user, keeps=keeps)
    path = spool.layout.session(session)
    with contextlib.suppress(OSError):  # another process registers too; or the disk is full, as submit will report
        before = read_session(spool, session) if keeps else None
        if before is not None and not before.process.is_alive_here():
            files.remove(path)
        files.create(path, [msgspec.json.encode(info)], mode=spool.rights.file, exact=spool.shared)


def unregister(spool: Spool, session: str) -> None:
    """Remove the registration of this process: from its end nothing may be concluded about the outcomes."""
    info = read_session(spool, session)
    if info is not None and info.process == ProcessId.of(os.getpid()):
        files.remove(spool.layout.session(session))


def read_session(spool: Spool, session: str) -> SessionInfo | None:
    """Return the registration of a session; None if it is missing or unreadable."""
    try:
        return msgspec.json.decode(files.read_small(spool.layout.session(session)), type=SessionInfo)
    except (OSError, ValueError):  # missing, or unreadable for this account
        return None


def is_dead(spool: Spool, session: str) -> bool:
    """Return whether the submitter is provably dead on this host; False if that cannot be known here."""
    info = read_session(spool, session)
    return info is not None and info.process.is_provably_dead()
