"""Who submits under a session, as ``sessions/SESSION.json`` has it."""

from __future__ import annotations

import contextlib
import os

import msgspec

from spoolpool import fsio
from spoolpool.identity import Identity
from spoolpool.spool import Spool


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The last process that opened a session."""

    process: Identity
    """Who submits."""
    user: str
    """Account that it runs as."""
    keeps: bool = False
    """Whether outcomes stay after their delivery, for a later process."""


def announce(spool: Spool, session: str, user: str, *, keeps: bool = False) -> None:
    """Say who submits under this session, in the place of an earlier process that is not certain to live."""
    info = SessionInfo(process=Identity.of(os.getpid()), user=user, keeps=keeps)
    path = spool.layout.session(session)
    with contextlib.suppress(OSError):  # another one is at it as well; or the disk is full, as its tasks will say
        before = read(spool, session) if keeps else None
        if before is not None and not before.process.lives_here():
            fsio.remove(path)
        fsio.create(path, [msgspec.json.encode(info)], mode=spool.rights.file, exact=spool.shared)


def withdraw(spool: Spool, session: str) -> None:
    """Say no more that this process does: nobody may conclude from its end that nobody will come for the outcomes."""
    info = read(spool, session)
    if info is not None and info.process == Identity.of(os.getpid()):
        fsio.remove(spool.layout.session(session))


def read(spool: Spool, session: str) -> SessionInfo | None:
    """What is said about a session; None where nothing is, or cannot be read."""
    try:
        return msgspec.json.decode(fsio.read_small(spool.layout.session(session)), type=SessionInfo)
    except (OSError, ValueError):  # not there, or not ours
        return None


def is_dead(spool: Spool, session: str) -> bool:
    """Whether a submitter is provably dead on this host; False if that cannot be known here."""
    info = read(spool, session)
    return info is not None and info.process.dead()
