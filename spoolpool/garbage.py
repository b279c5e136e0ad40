"""What nobody will ask for any more: how long it is kept, and how it goes.

The age of a file is its modification time against that of a file made just now: both are the clock of the
filesystem's server, and no host's clock takes part.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from spoolpool import fsio, layout, registry
from spoolpool.layout import Token
from spoolpool.spool import Keep, Spool


@dataclass(frozen=True, kw_only=True)
class Rubbish:
    """One thing that may go."""

    path: str
    """Where, below the spool's directory."""
    why: str
    """Which rule of the policy it falls under."""


def rubbish(spool: Spool, keep: Keep | None = None) -> list[Rubbish]:
    """List what a policy (the spool's own, if None) lets go; removes nothing.

    Never listed: tasks that wait, run, or failed, and whatever has a name that is not one of a spool's.
    """
    keep = keep or spool.config.keep
    now = _server_time(spool)
    found = [*_old_files(spool, now, keep), *_old_results(spool, now, keep.results), *_ends(spool)]
    # files before their directories; and of a result the token first: an outcome without a token is rubbish, a
    # token without its outcome would be a loss
    return sorted(found, key=lambda each: (-each.path.count("/"), not each.path.startswith("results/"), each.path))


def remove(spool: Spool, found: list[Rubbish]) -> int:
    """Remove what :func:`rubbish` listed; returns how much of it went."""
    count = 0
    for each in found:
        path = f"{spool.path}/{each.path}"
        with contextlib.suppress(OSError):  # in use after all, or another one collects at the same time
            directory = os.path.isdir(path) and not os.path.islink(path)
            count += fsio.remove_directory(path) if directory else fsio.remove(path)
    return count


def _server_time(spool: Spool) -> float:
    path = f"{spool.layout.tmp}/{layout.new_worker_id()}.now"
    fsio.create(path, [])
    try:
        return (fsio.stamp(path) or 0) / 1e9
    finally:
        fsio.remove(path)


def _older(path: str, now: float, seconds: float) -> bool:
    try:
        return now - os.lstat(path).st_mtime > seconds
    except OSError:  # it went meanwhile
        return False


def _old_files(spool: Spool, now: float, keep: Keep) -> Iterator[Rubbish]:
    where = spool.layout
    for directory, seconds, what in (
        (where.tmp, keep.unfinished, "an unfinished write"),
        (where.journal, keep.journals, "a journal"),
        (where.logs, keep.logs, "a log"),
    ):
        for name in fsio.names(directory):
            path = f"{directory}/{name}"
            if os.path.isfile(path) and _older(path, now, seconds):
                yield Rubbish(path=os.path.relpath(path, spool.path), why=f"{what} older than {_days(seconds)}")


def _old_results(spool: Spool, now: float, seconds: float) -> Iterator[Rubbish]:
    where = spool.layout
    for session in filter(layout.is_session, fsio.names(where.results)):
        gone = registry.session_is_gone(spool, session)
        for name in fsio.names(f"{where.results}/{session}"):
            token = layout.parse_token(name)
            if token is None or not token.worker:
                continue
            if gone or _older(_newest(spool, session, token), now, seconds):
                why = "its submitter is gone" if gone else f"not collected for {_days(seconds)}"
                for place in ("results", "outgoing"):
                    path = f"{place}/{session}/{name}"
                    if os.path.lexists(f"{spool.path}/{path}"):
                        yield Rubbish(path=path, why=why)


def _newest(spool: Spool, session: str, token: Token) -> str:
    """The file whose date tells when the task ended: its outcome, or the token of a cancelled one."""
    path = spool.layout.outcome(session, token)
    return path if os.path.lexists(path) else spool.layout.result(session, token)


def _ends(spool: Spool) -> Iterator[Rubbish]:
    """Empty directories of sessions that are gone, and marks whose task is gone."""
    for session in filter(layout.is_session, fsio.names(spool.layout.results)):
        if registry.session_is_gone(spool, session):
            yield Rubbish(path=f"results/{session}", why="its submitter is gone")
            yield Rubbish(path=f"outgoing/{session}", why="its submitter is gone")
            yield Rubbish(path=f"sessions/{session}.json", why="its submitter is gone")


def _days(seconds: float) -> str:
    return f"{seconds / 86400:g} d" if seconds >= 86400 else f"{seconds:g} s"
