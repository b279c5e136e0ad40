"""Find and remove garbage: data of a spool that no process will ask for any more.

The age of a file is the time since it was written or renamed, by the clock of the file server: the clocks of the hosts
play no part.
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
from spoolpool.format.config import RetentionPolicy
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
from spoolpool.protocol.objects import leases, referenced_objects, remove_object
from spoolpool.protocol.outcomes import read_outcome_header
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.text import format_duration

_duration = partial(format_duration, precise=True)


@dataclass(frozen=True, kw_only=True)
class GarbageItem:
    """One file or directory that may be removed."""

    path: str
    """Relative to the spool's directory."""
    reason: str
    after: tuple[str, ...] = ()
    """Paths that must be gone before it."""
    move_to: str = ""
    """New path of a file that is moved instead of removed."""
    mtime_ns: int | None = None
    """Expected modification time of an object; the object stays if it has another one."""


def find_garbage(spool: Spool, keep: RetentionPolicy | None = None) -> list[GarbageItem]:
    """List the garbage by a retention policy (the spool's own, if None), in the order of removal; remove nothing.

    Never listed are waiting, running and failed tasks, committed tasks without an outcome, and names that no spool has.
    """
    rules = _Rules(spool, keep or spool.config.keep, spool.server_time())
    found = [*rules.unfinished_writes(), *rules.journals_and_logs(), *rules.buckets(), *rules.cache()]
    links = _Links(spool)
    found += rules.stale_links(links)
    objects = list(rules.objects())
    found += objects
    where = spool.layout
    names = {*files.list_names(where.results), *files.list_names(where.outgoing)}
    names |= {session_of(name) or "" for name in files.list_names(where.sessions)}
    for session in sorted(filter(is_session, names)):
        found += rules.session(session, links, {each.path for each in objects})
    return found


def unfinished_writes(spool: Spool, now: float) -> list[GarbageItem]:
    """List the old files in ``tmp/`` and their links, by the spool's policy; ``now`` is :meth:`Spool.server_time`."""
    return _Rules(spool, spool.config.keep, now).unfinished_writes()


def remove(spool: Spool, found: list[GarbageItem]) -> int:
    """Remove the items of :func:`find_garbage`; return the number of removed items."""
    count = 0
    for each in found:
        parent, _, name = each.path.rpartition("/")
        # the item came into use, another process collects garbage too, or the directory was swapped: all keep the item
        with contextlib.suppress(OSError, NotTrusted):
            whole = f"{spool.layout.root}/{parent}"
            directory = spool.directory(whole) if "/" in parent else whole
            path = f"{directory}/{name}"
            if any(files.exists(f"{spool.layout.root}/{earlier}") for earlier in each.after):
                continue
            if parent == "objects":
                count += remove_object(spool, name, each.mtime_ns)
            elif each.move_to:
                files.move(path, f"{spool.layout.root}/{each.move_to}")
                count += 1
            else:
                count += files.remove_directory(path) if files.is_directory(path) else files.remove(path)
    return count


class _Links:
    """Dependency links of all sessions, from one listing of ``needs/``."""

    def __init__(self, spool: Spool) -> None:
        self.of: dict[str, list[str]] = {}
        """Paths of the links to the dependencies of a task."""
        self.dependents: dict[tuple[str, str], set[str]] = {}
        """Ids of the tasks that depend on a task of a session."""
        for session in filter(is_session, files.list_names(spool.layout.needs)):
            for name in files.list_names(f"{spool.layout.needs}/{session}"):
                link = parse_link(name)
                if link is not None:
                    self.of.setdefault(link.needed_by, []).append(f"needs/{session}/{name}")
                    self.dependents.setdefault((session, link.task), set()).add(link.needed_by)


class _Rules:
    """Rules of a retention policy; ``now`` is the time of the file server."""

    def __init__(self, spool: Spool, keep: RetentionPolicy, now: float) -> None:
        self._spool = spool
        self._keep = keep
        self._now = now
        self._states: dict[str, sessions.SessionState] = {}

    def unfinished_writes(self) -> list[GarbageItem]:
        """List the files that a process left in ``tmp/`` when it died; the links of a task go before the task."""
        names = filter(is_unfinished, files.list_names(self._spool.layout.tmp))
        found = list(self._old_files("tmp", names, "an unfinished write", self._keep.unfinished))
        links = _Links(self._spool) if found else None
        first: list[GarbageItem] = []
        for number, each in enumerate(found):
            if links is not None and (paths := links.of.get(each.path.partition("/")[2])):
                first += [GarbageItem(path=path, reason=f"of {each.reason}") for path in paths]
                found[number] = dataclasses.replace(each, after=tuple(paths))
        return first + found

    def journals_and_logs(self) -> Iterator[GarbageItem]:
        """Yield old journals, batch job files and output logs; a worker with an entry may still write its own."""
        where, keep = self._spool.layout, self._keep
        writers = set(files.list_names(where.workers))
        journals = [name for name in files.list_names(where.journal) if (writer_of(name) or "") not in {"", *writers}]
        yield from self._old_files("journal", journals, "a journal", keep.journals)
        jobs = filter(is_job_file, files.list_names(where.jobs))
        yield from self._old_files("jobs", jobs, "a batch job", keep.journals)
        logs = [
            name
            for name in files.list_names(where.logs)
            if (log := parse_output_file(name)) and log.worker not in writers
        ]
        yield from self._old_files("logs", logs, "a log", keep.logs)

    def buckets(self) -> Iterator[GarbageItem]:
        """Yield empty buckets of dead submitters. A submitter that still needs its bucket makes it again."""
        where, keep = self._spool.layout, self._keep
        for lane in filter(parse_lane, files.list_names(where.ready)):
            for bucket in filter(is_bucket, files.list_names(where.lane(lane))):
                path = f"ready/{lane}/{bucket}"
                whole = where.bucket(lane, bucket)
                if files.is_directory(whole) and self._age(path) > keep.unfinished and not files.list_names(whole):
                    yield GarbageItem(path=path, reason=f"empty for {_duration(keep.unfinished)}")

    def cache(self) -> Iterator[GarbageItem]:
        """Yield cached results that were not used for long, and unfinished writes of dead submitters."""
        root, keep = self._spool.layout.root, self._keep
        for user in filter(is_account, files.list_names(self._spool.layout.cache)):
            home = f"cache/{user}"
            with contextlib.suppress(PermissionError):  # of another account, in a dropbox
                for part in filter(is_cache_part, files.list_names(f"{root}/{home}")):
                    names = filter(is_cache_key, files.list_names(f"{root}/{home}/{part}"))
                    yield from self._old_files(f"{home}/{part}", names, "an unused cached result", keep.cache)
                names = filter(is_unfinished, files.list_names(f"{root}/{home}/tmp"))
                yield from self._old_files(f"{home}/tmp", names, "an unfinished write", keep.unfinished)

    def stale_links(self, links: _Links) -> list[GarbageItem]:
        """List the old links of tasks that do not exist: a process removed the task, and ended before the links."""
        limit = self._keep.unfinished
        old = {task for task, paths in links.of.items() if all(self._age(path) > limit for path in paths)}
        for _ in range(2 if old else 0):  # twice, since a task can move behind the listing
            directories = (self._spool.layout.tmp, *self._task_directories())
            old -= {name.partition(".")[0] for directory in directories for name in files.list_names(directory)}
        reason = f"its task does not exist, and it is older than {_duration(limit)}"
        return [GarbageItem(path=path, reason=reason) for task in sorted(old) for path in links.of[task]]

    def objects(self) -> Iterator[GarbageItem]:
        """Yield objects that no session uses and no task names, each after its expired leases.

        The headers of the tasks are read only if there is such an object.
        """
        where = self._spool.layout
        by = leases(self._spool)
        unused: dict[str, set[str]] = {}
        for name in {*files.list_names(where.objects), *by}:
            expired = {path for path in by.get(name, ()) if self._is_expired(path)}
            recent = 0 <= self._age(f"objects/{name}") <= self._keep.unfinished
            if is_object_file(name) and expired == by.get(name, set()) and not recent:
                unused[name] = expired
        for _ in range(2 if unused else 0):  # twice, since a task can move behind the listing
            for name in referenced_objects(self._spool, self._task_directories()):
                unused.pop(name, None)
        reason = f"unused, and older than {_duration(self._keep.unfinished)}"
        for name, expired in sorted(unused.items()):
            after = tuple(sorted(expired))
            yield from (GarbageItem(path=path, reason="a lease of an unused object") for path in after)
            with contextlib.suppress(OSError):  # only the lease exists
                status = os.lstat(f"{where.objects}/{name}")
                if stat.S_ISREG(status.st_mode):
                    yield GarbageItem(path=f"objects/{name}", reason=reason, after=after, mtime_ns=status.st_mtime_ns)

    def _is_expired(self, lease: str) -> bool:
        """Whether the session of an object lease has ended, as far as this host can know."""
        session = lease.split("/")[1]
        if session not in self._states:
            self._states[session] = sessions.session_state(self._spool, session)
        state = self._states[session]
        if state == "alive":
            return False
        if state == "unknown":  # of another host; it renews its leases while it runs
            return self._age(lease) > max(self._keep.results, sessions.SILENCE)
        # closed or detached if it has no process any more
        return self._age(lease) > (self._keep.sessions if state == "dead" else self._keep.unfinished)

    def _task_directories(self) -> Iterator[str]:
        """Yield the directories of all tasks, in the order in which a task moves."""
        where = self._spool.layout
        yield where.waiting
        for lane in filter(parse_lane, files.list_names(where.ready)):
            yield from (where.bucket(lane, bucket) for bucket in files.list_names(where.lane(lane)))
        yield where.claimed
        yield from (f"{where.results}/{session}" for session in files.list_names(where.results))
        yield where.failed

    def session(self, session: str, links: _Links, unused: set[str]) -> Iterator[GarbageItem]:
        """Yield the old outcomes of a session; then the session itself, if that leaves nothing but ``unused`` paths."""
        root = self._spool.layout.root
        info = sessions.read_session(self._spool, session)
        orphaned = info is not None and not info.keeps and info.process.is_provably_dead()
        seconds = self._keep.sessions if orphaned else self._keep.results
        reason = f"not collected for {_duration(seconds)}"
        if orphaned:
            reason = f"its submitter is dead, and nothing came for {_duration(seconds)}"
        results, outgoing, needs = f"results/{session}", f"outgoing/{session}", f"needs/{session}"
        listed: list[GarbageItem] = []
        removed: set[str] = set()
        if files.is_directory(f"{root}/{results}") and not os.path.islink(f"{root}/{outgoing}"):
            task_files = map(parse_task_file, files.list_names(f"{root}/{results}"))
            # the latest first: a task was submitted after its dependencies
            for task_file in sorted(
                (each for each in task_files if each), key=lambda each: each.task[4:], reverse=True
            ):
                if task_file.worker and links.dependents.get((session, task_file.task), set()) <= removed:
                    found = self._outcome(session, task_file, seconds, reason, links.of.get(task_file.task, []))
                    listed += found
                    if found and not any(each.move_to for each in found):
                        removed.add(task_file.task)
        yield from listed
        going = {each.path for each in listed} | unused
        stays = False
        for directory in (results, outgoing, needs):
            if files.is_directory(f"{root}/{directory}"):
                old = self._age(directory) > seconds
                if old and going.issuperset(f"{directory}/{name}" for name in files.list_names(f"{root}/{directory}")):
                    yield GarbageItem(path=directory, reason=reason)
                else:
                    stays = True
        for entry in [] if stays else sessions.list_entries(self._spool, session):
            path = f"sessions/{entry}.json"
            is_dead = sessions.is_dead(self._spool, entry)
            if self._age(path) > (seconds if is_dead else max(seconds, sessions.SILENCE)):
                # last: only this file tells that the submitter is dead
                yield GarbageItem(path=path, reason=reason, after=(results, outgoing, needs))

    def _outcome(
        self, session: str, task_file: TaskFile, seconds: float, reason: str, links: list[str]
    ) -> list[GarbageItem]:
        """List a committed task with its outcome and its links, if it is old enough."""
        marker, outcome = f"results/{session}/{task_file.name}", f"outgoing/{session}/{task_file.name}"
        if self._age(marker) <= seconds:  # the commit was a rename of this file
            return []
        first = [GarbageItem(path=link, reason=reason) for link in links]
        if task_file.worker == CANCELLED:
            return [*first, GarbageItem(path=marker, reason=reason, after=tuple(links))]
        if self._age(outcome) <= seconds:
            return []
        if _is_lost(self._spool, session, task_file):  # kept, as a collector would; a retry needs its links
            failed = f"failed/{task_file.name}"
            text = f"{reason}; it was lost with its workers, and is kept as {failed}"
            first = [GarbageItem(path=marker, reason=text, move_to=failed)]
        else:
            first.append(GarbageItem(path=marker, reason=reason, after=tuple(links)))
        # the task first: an outcome without its task is garbage, a committed task without its outcome is a loss
        return [*first, GarbageItem(path=outcome, reason=reason, after=(marker,))]

    def _old_files(self, directory: str, names: Iterable[str], noun: str, seconds: float) -> Iterator[GarbageItem]:
        for name in names:
            path = f"{directory}/{name}"
            with contextlib.suppress(OSError):  # removed since it was listed
                status = os.lstat(f"{self._spool.layout.root}/{path}")
                if stat.S_ISREG(status.st_mode) and self._now - status.st_mtime > seconds:
                    yield GarbageItem(path=path, reason=f"{noun} older than {_duration(seconds)}")

    def _age(self, path: str) -> float:
        """Return the seconds since a file was written or renamed, or a directory changed; -1 if it does not exist."""
        try:
            status = os.lstat(f"{self._spool.layout.root}/{path}")
        except OSError:
            return -1.0
        return self._now - max(status.st_mtime, status.st_ctime)


def _is_lost(spool: Spool, session: str, task_file: TaskFile) -> bool:
    """Whether the outcome says that the task was lost with its workers."""
    try:
        return read_outcome_header(spool, session, task_file).kind == "lost"
    except NoKey:
        raise
    except (OSError, SpoolpoolError):
        return False
