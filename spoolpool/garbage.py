"""What nobody will ask for any more: how long it is kept, and how it goes.

The age of a file is the time since it was written or renamed, by the clock that dates the spool's files: no host's
own clock takes part.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from spoolpool import fsio, layout, registry, task
from spoolpool.errors import NoKey, SpoolpoolError
from spoolpool.layout import Token
from spoolpool.signature import outcome_label
from spoolpool.spool import Keep, Spool


@dataclass(frozen=True, kw_only=True)
class Rubbish:
    """One thing that may go."""

    path: str
    """Where, below the spool's directory."""
    why: str
    """Which rule of the policy it falls under."""
    after: tuple[str, ...] = ()
    """Paths that must be gone before it."""
    to: str = ""
    """Where it is put instead, if it is not removed."""


def rubbish(spool: Spool, keep: Keep | None = None) -> list[Rubbish]:
    """List what a policy (the spool's own, if None) lets go, in the order in which it may; removes nothing.

    Never listed: tasks that wait, run, or failed, committed ones whose outcome is missing, and whatever has a name
    that is not one of a spool's.
    """
    keep = keep or spool.config.keep
    now = spool.server_time()
    found = [*unfinished(spool, now, keep), *_journals_and_logs(spool, now, keep), *_buckets(spool, now, keep)]
    where = spool.layout
    sessions = {*fsio.names(where.results), *fsio.names(where.outgoing)}
    sessions |= {layout.session_of(name) or "" for name in fsio.names(where.sessions)}
    for session in sorted(filter(layout.is_session, sessions)):
        found += _session(spool, now, keep, session)
    return found


def remove(spool: Spool, found: list[Rubbish]) -> int:
    """Remove what :func:`rubbish` listed; returns how much of it went."""
    count = 0
    for each in found:
        path = f"{spool.path}/{each.path}"
        with contextlib.suppress(OSError):  # in use after all, or another one collects at the same time
            if any(fsio.there(f"{spool.path}/{earlier}") for earlier in each.after):
                continue
            if each.to:
                fsio.move(path, f"{spool.path}/{each.to}")
                count += 1
            else:
                count += fsio.remove_directory(path) if fsio.is_directory(path) else fsio.remove(path)
    return count


def unfinished(spool: Spool, now: float, keep: Keep) -> list[Rubbish]:
    """What was being written in ``tmp/`` when its writer died; ``now`` is :meth:`Spool.server_time`."""
    names = filter(layout.is_unfinished, fsio.names(spool.layout.tmp))
    return list(_old_files("tmp", names, "an unfinished write", spool, now, keep.unfinished))


def _journals_and_logs(spool: Spool, now: float, keep: Keep) -> Iterator[Rubbish]:
    where = spool.layout
    writers = set(fsio.names(where.workers))  # those that still have their entry may write more
    journals = [name for name in fsio.names(where.journal) if (layout.writer_of(name) or "") not in {"", *writers}]
    yield from _old_files("journal", journals, "a journal", spool, now, keep.journals)
    files = filter(layout.is_job_file, fsio.names(where.jobs))
    yield from _old_files("jobs", files, "a batch job", spool, now, keep.journals)
    logs = [name for name in fsio.names(where.logs) if (log := layout.parse_log(name)) and log.worker not in writers]
    yield from _old_files("logs", logs, "a log", spool, now, keep.logs)


def _buckets(spool: Spool, now: float, keep: Keep) -> Iterator[Rubbish]:
    """Buckets of submitters that died. Whoever still needs one makes it again."""
    where = spool.layout
    for lane in filter(layout.parse_lane, fsio.names(where.ready)):
        for bucket in filter(layout.is_bucket, fsio.names(where.lane(lane))):
            path = where.bucket(lane, bucket)
            if fsio.is_directory(path) and _age(path, now) > keep.unfinished and not fsio.names(path):
                yield Rubbish(path=f"ready/{lane}/{bucket}", why=f"empty for {_days(keep.unfinished)}")


def _session(spool: Spool, now: float, keep: Keep, session: str) -> Iterator[Rubbish]:
    gone = registry.session_is_gone(spool, session)
    seconds = keep.sessions if gone else keep.results
    why = (
        f"its submitter is gone, and nothing came for {_days(seconds)}"
        if gone
        else f"not collected for {_days(seconds)}"
    )
    inbox, outbox = f"results/{session}", f"outgoing/{session}"
    listed = []
    if fsio.is_directory(f"{spool.path}/{inbox}") and not os.path.islink(f"{spool.path}/{outbox}"):
        for name in sorted(fsio.names(f"{spool.path}/{inbox}")):
            token = layout.parse_token(name)
            if token is not None and token.worker:
                listed += _outcome(spool, now, seconds, session, token, why)
    yield from listed
    going = {each.path for each in listed}
    stays = False
    for directory in (inbox, outbox):
        path = f"{spool.path}/{directory}"
        if fsio.is_directory(path):
            if _age(path, now) > seconds and going.issuperset(f"{directory}/{name}" for name in fsio.names(path)):
                yield Rubbish(path=directory, why=why)
            else:
                stays = True
    about = f"sessions/{session}.json"
    if not stays and _age(f"{spool.path}/{about}", now) > seconds:
        # last: without it nobody knows that the submitter is gone
        yield Rubbish(path=about, why=why, after=(inbox, outbox))


def _outcome(spool: Spool, now: float, seconds: float, session: str, token: Token, why: str) -> list[Rubbish]:
    """A committed task with its outcome, if it is old enough."""
    marker, path = f"results/{session}/{token.name}", f"outgoing/{session}/{token.name}"
    if _age(f"{spool.path}/{marker}", now) <= seconds:  # its rename was the commit
        return []
    if token.worker == layout.CANCELLED:
        return [Rubbish(path=marker, why=why)]
    if _age(f"{spool.path}/{path}", now) <= seconds:
        return []
    first = Rubbish(path=marker, why=why)
    if _is_lost(spool, session, token):
        to = f"failed/{token.name}"
        first = Rubbish(path=marker, why=f"{why}; it was lost with its workers, and is kept as {to}", to=to)
    # the token first: an outcome without a token is rubbish, a token without its outcome would be a loss
    return [first, Rubbish(path=path, why=why, after=(marker,))]


def _is_lost(spool: Spool, session: str, token: Token) -> bool:
    """Whether the outcome is that the task was lost with its workers: then it is kept, as a collector would."""
    path = spool.layout.outcome(session, token)
    try:
        fd = fsio.open_file(path)
        try:
            data = spool.read_header(fd, fsio.size(fd), path, outcome_label(session, token.name))
            return task.decode_outcome(data, path).kind == "lost"
        finally:
            fsio.close(fd)
    except NoKey:
        raise
    except (OSError, SpoolpoolError):
        return False


def _old_files(
    directory: str, names: Iterable[str], what: str, spool: Spool, now: float, seconds: float
) -> Iterator[Rubbish]:
    for name in names:
        path = f"{directory}/{name}"
        with contextlib.suppress(OSError):  # it went meanwhile
            status = os.lstat(f"{spool.path}/{path}")
            if stat.S_ISREG(status.st_mode) and now - status.st_mtime > seconds:
                yield Rubbish(path=path, why=f"{what} older than {_days(seconds)}")


def _age(path: str, now: float) -> float:
    """Seconds since a file was written or got its name; since a directory's names changed. -1 if it is gone."""
    try:
        status = os.lstat(path)
    except OSError:
        return -1.0
    return now - max(status.st_mtime, status.st_ctime)


def _days(seconds: float) -> str:
    return f"{seconds / 86400:g} d" if seconds >= 86400 else f"{seconds:g} s"
