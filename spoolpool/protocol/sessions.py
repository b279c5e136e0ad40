"""Entries of sessions: one file in ``sessions/`` for each process that has a session open.

An unnamed session has one process, ever, and its entry has its name. A named session may have several processes at
once; each has an entry of its own and removes no other, except of a process that is provably dead.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Literal

import msgspec

from spoolpool.errors import NotTrusted
from spoolpool.format.names import session_entry, session_of, session_of_entry
from spoolpool.protocol.spool import Spool
from spoolpool.system import files, records
from spoolpool.system.accounts import account_name
from spoolpool.system.bounds import Word
from spoolpool.system.processes import ProcessId
from spoolpool.system.records import BadRecord

RENEWAL = 6 * 3600.0
"""Seconds between two renewals of the leases, and of the session's entry, of a live process."""
SILENCE = 4 * RENEWAL
"""Seconds without a renewal after which a process on another host counts as ended, whatever the retention policy."""

SessionState = Literal["ended", "dead", "unknown", "alive"]
"""State of the processes of a session: none has an entry; all are provably dead; at least one may be alive, on another
host, or with an unreadable entry; at least one is alive on this host."""


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Entry of one process that has a session open."""

    process: ProcessId
    """Process of the submitter."""
    user: Word
    """Account that it runs as."""
    keeps: bool = False
    """Whether outcomes stay after their delivery, for a later process of the session."""


_decoder = msgspec.json.Decoder(SessionInfo)


def entry_of(session: str, run: str, *, keeps: bool) -> str:
    """Return the name of the entry of one process: ``run`` is its id among those of a named session."""
    return session_entry(session, run) if keeps else session


def register(spool: Spool, session: str, user: str, run: str = "", *, keeps: bool = False) -> None:
    """Create the entry of this process, and remove those of provably dead processes of the session."""
    with contextlib.suppress(OSError):  # the disk is full, as submit will report; or the entries cannot be listed
        _create(spool, entry_of(session, run, keeps=keeps), user, keeps=keeps)
        if keeps:
            remove_dead(spool, session)


def renew(spool: Spool, entry: str, user: str, *, keeps: bool) -> None:
    """Set the time of the entry of this process, which is a sign of life for other hosts; create it if it is missing.

    It could not be created when the disk was full, or a site removes files that are old.
    """
    try:
        files.touch(spool.layout.session(entry))
    except FileNotFoundError:
        _create(spool, entry, user, keeps=keeps)


def _create(spool: Spool, entry: str, user: str, *, keeps: bool) -> None:
    info = SessionInfo(process=ProcessId.of(os.getpid()), user=user, keeps=keeps)
    data = [msgspec.json.encode(info)]
    path = spool.layout.session(entry)
    spool.in_directory(
        spool.layout.sessions, lambda: files.create(path, data, mode=spool.rights.file, exact=spool.shared)
    )


def unregister(spool: Spool, entry: str) -> None:
    """Remove the entry of this process: from its end nothing may be concluded about the outcomes."""
    info = read_session(spool, entry)
    if info is not None and info.process == ProcessId.of(os.getpid()):
        files.remove(spool.layout.session(entry))


def remove_dead(spool: Spool, session: str) -> None:
    """Remove the entries of provably dead processes of a session."""
    for entry in list_entries(spool, session):
        if is_dead(spool, entry):
            files.remove(spool.layout.session(entry))


def list_entries(spool: Spool, session: str) -> list[str]:
    """Return the names of the entries of a session.

    Raises ``OSError`` where they cannot be listed: that does not mean that there are none.
    """
    names = files.list_names(spool.layout.sessions, certain=True)
    return sorted(name.removesuffix(".json") for name in names if session_of(name) == session)


def load_session(spool: Spool, entry: str) -> SessionInfo:
    """Return the content of an entry. Raises ``OSError`` as open(2), and :class:`BadRecord` for an invalid one.

    In a shared spool it must belong to the account of the session: another one could make a live process look dead.
    """
    check = functools.partial(_check_owner, spool, entry) if spool.shared else files.regular_status
    return records.load(spool.layout.session(entry), _decoder, check=check)


def read_session(spool: Spool, entry: str) -> SessionInfo | None:
    """Return the content of an entry; None if it is missing, or invalid, which is reported."""
    try:
        return load_session(spool, entry)
    except (OSError, BadRecord) as error:
        records.report(spool.layout.session(entry), error)
        return None


def _check_owner(spool: Spool, entry: str, fd: int, path: str) -> os.stat_result:
    status = files.regular_status(fd, path)
    owner = files.owner(f"{spool.layout.results}/{session_of_entry(entry)}")
    if owner not in (None, status.st_uid):
        raise NotTrusted(
            f"{path} belongs to {account_name(status.st_uid)}, and the session to {account_name(owner or 0)}."
        )
    return status


def session_state(spool: Spool, session: str) -> SessionState:
    """Return the state of the processes of a session. An entry that cannot be read may be of a live process."""
    try:
        entries = list_entries(spool, session)
    except OSError:
        return "unknown"
    states = {_entry_state(spool, entry) for entry in entries}
    order: tuple[SessionState, ...] = ("alive", "unknown", "dead")
    return next((state for state in order if state in states), "ended")


def is_in_use(spool: Spool, session: str) -> bool:
    """Return whether a process has a session open: on this host, or on another one, where it renews its entry."""
    state = session_state(spool, session)
    if state != "unknown":
        return state == "alive"
    stamps = [files.mtime_ns(spool.layout.session(entry)) for entry in list_entries(spool, session)]
    return spool.server_time() - max((stamp or 0) for stamp in stamps) / 1e9 <= SILENCE if stamps else False


def _entry_state(spool: Spool, entry: str) -> SessionState:
    info = read_session(spool, entry)
    if info is None:
        return "ended" if files.is_missing(spool.layout.session(entry)) else "unknown"
    if info.process.is_alive_here():
        return "alive"
    return "dead" if info.process.is_provably_dead() else "unknown"


def is_dead(spool: Spool, entry: str) -> bool:
    """Return whether the process of an entry is provably dead on this host; False if that cannot be known here."""
    info = read_session(spool, entry)
    return info is not None and info.process.is_provably_dead()
