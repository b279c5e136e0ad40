"""Who submits under a session, as ``sessions/SESSION.json`` has it."""

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
    """Who submits."""
    user: str
    """Account that it runs as."""
    keeps: bool = False
    """Whether outcomes stay after their delivery, for a later process."""


def register(spool: Spool, session: str, user: str, *, keeps: bool = False) -> None:
    """Say who submits under this session, in the place of an earlier process that is not certain to live."""
    info = SessionInfo(process=ProcessId.of(os.getpid()), user=user, keeps=keeps)
    path = spool.layout.session(session)
    with contextlib.suppress(OSError):  # another one is at it as well; or the disk is full, as its tasks will say
        before = read_session(spool, session) if keeps else None
        if before is not None and not before.process.is_alive_here():
            files.remove(path)
        files.create(path, [msgspec.json.encode(info)], mode=spool.rights.file, exact=spool.shared)


def unregister(spool: Spool, session: str) -> None:
    """Say no more that this process does: nobody may conclude from its end that nobody will come for the outcomes."""
    info = read_session(spool, session)
    if info is not None and info.process == ProcessId.of(os.getpid()):
        files.remove(spool.layout.session(session))


def read_session(spool: Spool, session: str) -> SessionInfo | None:
    """What is said about a session; None where nothing is, or cannot be read."""
    try:
        return msgspec.json.decode(files.read_small(spool.layout.session(session)), type=SessionInfo)
    except (OSError, ValueError):  # not there, or not ours
        return None


def is_dead(spool: Spool, session: str) -> bool:
    """Whether a submitter is provably dead on this host; False if that cannot be known here."""
    info = read_session(spool, session)
    return info is not None and info.process.is_provably_dead()
