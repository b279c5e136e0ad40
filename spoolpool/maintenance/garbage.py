"""What nobody will ask for any more: how long it is kept, and how it goes.

The age of a file is the time since it was written or renamed, by the clock that dates the spool's files: no host's
own clock takes part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from spoolpool.errors import NoKey, NotTrusted, SpoolpoolError
from spoolpool.format.config import Keep
from spoolpool.format.names import (
    CANCELLED,
    TaskFile,
    is_account,
    is_bucket,
    is_cache_key,
    is_cache_part,
    is_job_file,
    is_object_file,
    is_session,
    is_unfinished,
    parse_lane,
    parse_link,
    parse_output_file,
    parse_task_file,
    session_of,
    writer_of,
)
from spoolpool.protocol import sessions
from spoolpool.protocol.objects import leases, named_by_tasks, remove_object
from spoolpool.protocol.outcomes import read_outcome_header
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.text import format_duration

_duration = partial(format_duration, precise=True)


@dataclass(frozen=True, kw_only=True)
class GarbageItem:
    """One thing that may go."""

    path: str
    """Where, below the spool's directory."""
    why: str
    """Which rule of the policy it falls under."""
    after: tuple[str, ...] = ()
    """Paths that must be gone before it."""
    to: str = ""
    """Where it is put instead, if it is not removed."""
    stamp: int | None = None
    """Its time, in ns, where it stays if that has changed."""


def find_garbage(spool: Spool, keep: Keep | None = None) -> list[GarbageItem]:
    """List what a policy (the spool's own, if None) lets go, in the order in which it may; removes nothing.

    Never listed: tasks that wait, run, or failed, committed ones whose outcome is missing, and whatever has a name
    that is not one of a spool's.
    """
    keep = keep or spool.config.keep
    now = spool.server_time()
    found = [*unfinished(spool, now, keep), *_journals_and_logs(spool, now, keep), *_buckets(spool, now, keep)]
    found += _cache(spool, now, keep)
    edges = _Edges(spool)
    found += edges.stale(now, keep)
    where = spool.layout
    objects = list(_objects(spool, now, keep))
    found += objects
    going = {each.path for each in objects}
    sessions = {*files.list_names(where.results), *files.list_names(where.outgoing)}
    sessions |= {session_of(name) or "" for name in files.list_names(where.sessions)}
    for session in sorted(filter(is_session, sessions)):
        found += _session(spool, now, keep, session, edges, going)
    return found


def remove(spool: Spool, found: list[GarbageItem]) -> int:
    """Remove what :func:`rubbish` listed; returns how much of it went."""
    count = 0
    for each in found:
        parent, _, name = each.path.rpartition("/")
        # in use after all, or another one collects at the same time; or somebody has swapped the directory since
        with contextlib.suppress(OSError, NotTrusted):
            place = spool.held(f"{spool.path}/{parent}") if "/" in parent else f"{spool.path}/{parent}"
            path = f"{place}/{name}"
            if any(files.exists(f"{spool.path}/{earlier}") for earlier in each.after):
                continue
            if parent == "objects":
                count += remove_object(spool, name, each.stamp)
            elif each.to:
                files.move(path, f"{spool.path}/{each.to}")
                count += 1
            else:
                count += files.remove_directory(path) if files.is_directory(path) else files.remove(path)
    return count


def unfinished(spool: Spool, now: float, keep: Keep) -> list[GarbageItem]:
    """What was being written in ``tmp/`` when its writer died; ``now`` is :meth:`Spool.server_time`."""
    names = filter(is_unfinished, files.list_names(spool.layout.tmp))
    found = list(_old_files("tmp", names, "an unfinished write", spool, now, keep.unfinished))
    edges = _Edges(spool) if found else None
    before: list[GarbageItem] = []
    for number, each in enumerate(found):
        if edges is not None and (of := edges.of(each.path.partition("/")[2])):
            # its edges first, as a submitter would
            before += [GarbageItem(path=path, why=f"of {each.why}") for path in of]
            found[number] = dataclasses.replace(each, after=tuple(of))
    return before + found


class _Edges:
    """Which tasks are needed, and by which, as ``needs/`` says."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._of: dict[str, list[str]] = {}
        self._by: dict[tuple[str, str], set[str]] = {}
        for session in filter(is_session, files.list_names(spool.layout.needs)):
            for name in files.list_names(f"{spool.layout.needs}/{session}"):
                edge = parse_link(name)
                if edge is not None:
                    self._of.setdefault(edge.needed_by, []).append(f"needs/{session}/{name}")
                    self._by.setdefault((session, edge.task), set()).add(edge.needed_by)

    def of(self, task: str) -> list[str]:
        """Paths of the edges that say what a task needs."""
        return self._of.get(task, [])

    def by(self, session: str, task: str) -> set[str]:
        """The tasks that need one of this session."""
        return self._by.get((session, task), set())

    def stale(self, now: float, keep: Keep) -> list[GarbageItem]:
        """Old ones whose task is nowhere any more: whoever took it away ended before its edges went."""
        old = {
            task
            for task, paths in self._of.items()
            if all(_age(f"{self._spool.path}/{path}", now) > keep.unfinished for path in paths)
        }
        if old:
            for _ in range(2):  # a task moves while it is looked for
                old -= _tasks(self._spool)
        why = f"its task is gone, and it is older than {_duration(keep.unfinished)}"
        return [GarbageItem(path=path, why=why) for task in sorted(old) for path in self._of[task]]


def _tasks(spool: Spool) -> set[str]:
    """Every task that is somewhere, in the order in which they move."""
    directories = (spool.layout.tmp, *_places(spool))
    return {name.partition(".")[0] for directory in directories for name in files.list_names(directory)}


def _journals_and_logs(spool: Spool, now: float, keep: Keep) -> Iterator[GarbageItem]:
    where = spool.layout
    writers = set(files.list_names(where.workers))  # those that still have their entry may write more
    journals = [name for name in files.list_names(where.journal) if (writer_of(name) or "") not in {"", *writers}]
    yield from _old_files("journal", journals, "a journal", spool, now, keep.journals)
    paths = filter(is_job_file, files.list_names(where.jobs))
    yield from _old_files("jobs", paths, "a batch job", spool, now, keep.journals)
    logs = [
        name for name in files.list_names(where.logs) if (log := parse_output_file(name)) and log.worker not in writers
    ]
    yield from _old_files("logs", logs, "a log", spool, now, keep.logs)


def _cache(spool: Spool, now: float, keep: Keep) -> Iterator[GarbageItem]:
    """Kept results that nobody has used for long, and what was being written when a submitter died."""
    for user in filter(is_account, files.list_names(spool.layout.cache)):
        home = f"cache/{user}"
        with contextlib.suppress(PermissionError):  # in a dropbox, of another account
            for part in filter(is_cache_part, files.list_names(f"{spool.path}/{home}")):
                names = filter(is_cache_key, files.list_names(f"{spool.path}/{home}/{part}"))
                yield from _old_files(f"{home}/{part}", names, "a kept result, unused", spool, now, keep.cache)
            names = filter(is_unfinished, files.list_names(f"{spool.path}/{home}/tmp"))
            yield from _old_files(f"{home}/tmp", names, "an unfinished write", spool, now, keep.unfinished)


def _buckets(spool: Spool, now: float, keep: Keep) -> Iterator[GarbageItem]:
    """Buckets of submitters that died. Whoever still needs one makes it again."""
    where = spool.layout
    for lane in filter(parse_lane, files.list_names(where.ready)):
        for bucket in filter(is_bucket, files.list_names(where.lane(lane))):
            path = where.bucket(lane, bucket)
            if files.is_directory(path) and _age(path, now) > keep.unfinished and not files.list_names(path):
                yield GarbageItem(path=f"ready/{lane}/{bucket}", why=f"empty for {_duration(keep.unfinished)}")


def _objects(spool: Spool, now: float, keep: Keep) -> Iterator[GarbageItem]:
    """Objects that no session uses and no task names, with what says that sessions which are over used them.

    Headers are read only where something else does not decide already.
    """
    where = spool.layout
    by = leases(spool)
    stale: dict[str, set[str]] = {}
    for name in {*files.list_names(where.objects), *by}:
        over = {path for path in by.get(name, ()) if _is_over(spool, path, now, keep)}
        age = _age(f"{where.objects}/{name}", now)
        if is_object_file(name) and over == by.get(name, set()) and not 0 <= age <= keep.unfinished:
            stale[name] = over
    if stale:
        for _ in range(2):  # a task moves while it is looked for
            for name in named_by_tasks(spool, _places(spool)):
                stale.pop(name, None)
    why = f"nobody uses it, and it is older than {_duration(keep.unfinished)}"
    for name, over in sorted(stale.items()):
        yield from (GarbageItem(path=path, why="of an object that nobody uses") for path in sorted(over))
        with contextlib.suppress(OSError):  # there was a hold alone
            status = os.lstat(f"{where.objects}/{name}")
            if stat.S_ISREG(status.st_mode):
                after = tuple(sorted(over))
                yield GarbageItem(path=f"objects/{name}", why=why, after=after, stamp=status.st_mtime_ns)


def _is_over(spool: Spool, path: str, now: float, keep: Keep) -> bool:
    """Whether a session that said it uses an object does so no longer, as far as can be known."""
    session = path.split("/")[1]
    info = sessions.read_session(spool, session)
    if info is not None and info.process.is_alive_here():
        return False
    if info is not None and info.process.is_provably_dead():
        seconds = keep.sessions
    else:  # closed, or left to others; or nobody knows here, and it says so anew from time to time
        seconds = keep.results if files.exists(spool.layout.session(session)) else keep.unfinished
    return _age(f"{spool.path}/{path}", now) > seconds


def _places(spool: Spool) -> Iterator[str]:
    """Directories of tasks that may run or be retried, in the order in which these move."""
    where = spool.layout
    yield where.waiting
    for lane in filter(parse_lane, files.list_names(where.ready)):
        yield from (where.bucket(lane, bucket) for bucket in files.list_names(where.lane(lane)))
    yield where.claimed
    yield from (f"{where.results}/{session}" for session in files.list_names(where.results))
    yield where.failed


def _session(
    spool: Spool, now: float, keep: Keep, session: str, edges: _Edges, unused: set[str]
) -> Iterator[GarbageItem]:
    info = sessions.read_session(spool, session)
    gone = info is not None and not info.keeps and info.process.is_provably_dead()
    seconds = keep.sessions if gone else keep.results
    why = (
        f"its submitter is gone, and nothing came for {_duration(seconds)}"
        if gone
        else f"not collected for {_duration(seconds)}"
    )
    inbox, outbox, needs = f"results/{session}", f"outgoing/{session}", f"needs/{session}"
    listed: list[GarbageItem] = []
    ended: set[str] = set()
    if files.is_directory(f"{spool.path}/{inbox}") and not os.path.islink(f"{spool.path}/{outbox}"):
        task_files = map(parse_task_file, files.list_names(f"{spool.path}/{inbox}"))
        # the latest first: a task was submitted after those that it needs
        for task_file in sorted((each for each in task_files if each), key=lambda each: each.task[4:], reverse=True):
            if task_file.worker and edges.by(session, task_file.task) <= ended:
                found = _outcome(spool, now, seconds, session, task_file, why, edges.of(task_file.task))
                listed += found
                if found and not any(each.to for each in found):
                    ended.add(task_file.task)
    yield from listed
    going = {each.path for each in listed} | unused
    stays = False
    for directory in (inbox, outbox, needs):
        path = f"{spool.path}/{directory}"
        if files.is_directory(path):
            if _age(path, now) > seconds and going.issuperset(f"{directory}/{name}" for name in files.list_names(path)):
                yield GarbageItem(path=directory, why=why)
            else:
                stays = True
    about = f"sessions/{session}.json"
    if not stays and _age(f"{spool.path}/{about}", now) > seconds:
        # last: without it nobody knows that the submitter is gone
        yield GarbageItem(path=about, why=why, after=(inbox, outbox, needs))


def _outcome(
    spool: Spool, now: float, seconds: float, session: str, task_file: TaskFile, why: str, edges: list[str]
) -> list[GarbageItem]:
    """A committed task with its outcome and its edges, if it is old enough."""
    marker, path = f"results/{session}/{task_file.name}", f"outgoing/{session}/{task_file.name}"
    if _age(f"{spool.path}/{marker}", now) <= seconds:  # its rename was the commit
        return []
    first = [GarbageItem(path=edge, why=why) for edge in edges]
    if task_file.worker == CANCELLED:
        return [*first, GarbageItem(path=marker, why=why, after=tuple(edges))]
    if _age(f"{spool.path}/{path}", now) <= seconds:
        return []
    if _is_lost(spool, session, task_file):
        to = f"failed/{task_file.name}"  # with its edges, because a retry needs what they hold
        first = [GarbageItem(path=marker, why=f"{why}; it was lost with its workers, and is kept as {to}", to=to)]
    else:
        first.append(GarbageItem(path=marker, why=why, after=tuple(edges)))
    # the token first: an outcome without a token is rubbish, a token without its outcome would be a loss
    return [*first, GarbageItem(path=path, why=why, after=(marker,))]


def _is_lost(spool: Spool, session: str, task_file: TaskFile) -> bool:
    """Whether the outcome is that the task was lost with its workers: then it is kept, as a collector would."""
    try:
        return read_outcome_header(spool, session, task_file).kind == "lost"
    except NoKey:
        raise
    except (OSError, SpoolpoolError):
        return False


def _old_files(
    directory: str, names: Iterable[str], what: str, spool: Spool, now: float, seconds: float
) -> Iterator[GarbageItem]:
    for name in names:
        path = f"{directory}/{name}"
        with contextlib.suppress(OSError):  # it went meanwhile
            status = os.lstat(f"{spool.path}/{path}")
            if stat.S_ISREG(status.st_mode) and now - status.st_mtime > seconds:
                yield GarbageItem(path=path, why=f"{what} older than {_duration(seconds)}")


def _age(path: str, now: float) -> float:
    """Seconds since a file was written or got its name; since a directory's names changed. -1 if it is gone."""
    try:
        status = os.lstat(path)
    except OSError:
        return -1.0
    return now - max(status.st_mtime, status.st_ctime)
