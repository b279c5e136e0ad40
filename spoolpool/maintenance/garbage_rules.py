"""Rules that find garbage: data of a spool that no process will ask for any more.

The age of a file is the time since it was written or renamed, by the clock of the file server: the clocks of the hosts
play no part. Age alone is a reason for the removal of data that nobody waits for. Other data is removed after its
submitter has ended (:mod:`spoolpool.maintenance.submitters`).
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from spoolpool.errors import NoKey, SpoolpoolError
from spoolpool.format.cancel_requests import is_request, task_of
from spoolpool.format.config import RetentionPolicy
from spoolpool.format.journal_names import writer_of
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
    parse_lease,
    parse_link,
    parse_output_file,
    parse_task_file,
)
from spoolpool.maintenance.garbage_item import GarbageItem, Report, reason_of
from spoolpool.maintenance.submitters import AbsentTasks, Recent, Submitters, sessions_with_tasks
from spoolpool.monitor.scan import Place
from spoolpool.protocol import sessions
from spoolpool.protocol.object_leases import leases
from spoolpool.protocol.object_references import read_references
from spoolpool.protocol.outcomes import read_outcome_header
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.text import format_duration

_LONGEST_JOB = 30 * 86400.0  # seconds for which a batch job may wait and run

_duration = partial(format_duration, precise=True)


class Links:
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


class GarbageRules:
    """Rules of a retention policy; ``now`` is the time of the file server."""

    def __init__(self, spool: Spool, keep: RetentionPolicy, now: float, report: Report) -> None:
        self._spool = spool
        self._keep = keep
        self._now = now
        self._periods: dict[str, float] = {}  # by session: seconds after which its leases are expired
        self._report = report
        self._submitters = Submitters(spool, now, keep.results)
        self._tasks, self._tasks_again = (Recent(partial(sessions_with_tasks, spool)) for _ in range(2))

    def unfinished_writes(self) -> list[GarbageItem]:
        """List what a process left in ``tmp/`` when it died; the links of a task go before the task.

        A submitter makes an empty directory of a bucket anew if it is gone.
        """
        tmp = self._spool.layout.tmp
        names = files.list_names(tmp)
        buckets = [f"tmp/{name}" for name in names if is_bucket(name) and files.is_directory(f"{tmp}/{name}")]
        found = [item for path in buckets for item in self._empty_bucket(path)]
        old = list(self._old_files("tmp", filter(is_unfinished, names), "an unfinished write", self._keep.unfinished))
        links = Links(self._spool) if old else None
        for each in old:
            name = each.path.partition("/")[2]
            if why := self._why(self._submitters.why_writing, name):
                self._report(each.path, f"{each.reason}, but {why}")
                continue
            paths = links.of.get(name, []) if links else []
            is_garbage = partial(self._is_unfinished, name)
            found += [GarbageItem(path=path, reason=f"of {each.reason}", is_garbage=is_garbage) for path in paths]
            found.append(GarbageItem(path=each.path, reason=each.reason, after=tuple(paths), is_garbage=is_garbage))
        return found

    def _is_unfinished(self, name: str) -> bool:
        """Whether ``tmp/NAME`` exists and no process may still move it: then its links are needed no more, either.

        In this order: a process may have moved it before it ended, and moves it no more after that.
        """
        return not self._submitters.why_writing(name) and self._is_old(f"tmp/{name}", self._keep.unfinished)

    def journals_and_logs(self) -> Iterator[GarbageItem]:
        """Yield old journals, batch job files, output logs and records of lost attempts.

        A worker with an entry may still write its own.
        """
        where, keep = self._spool.layout, self._keep
        writers = set(files.list_names(where.workers, certain=True))
        journals = [name for name in files.list_names(where.journal) if (writer_of(name) or "") not in {"", *writers}]
        yield from self._old_files("journal", journals, "a journal", keep.journals)
        jobs = filter(is_job_file, files.list_names(where.jobs))
        # of a job that waits or runs: how long it may, only the batch system knows
        yield from self._old_files("jobs", jobs, "a batch job", max(keep.journals, _LONGEST_JOB))
        logs = [
            name
            for name in files.list_names(where.logs)
            if ((log := parse_output_file(name)) and log.worker not in writers) or parse_task_file(name)
        ]
        yield from self._old_files("logs", logs, "a log", keep.logs)

    def cancel_requests(self) -> Iterator[GarbageItem]:
        """Yield old cancel requests for tasks that neither wait nor run: they would end a later retry."""
        requests = filter(is_request, files.list_names(self._spool.layout.cancel))
        old = list(self._old_files("cancel", requests, "a cancel request", self._keep.unfinished))
        names = [task_of(each.path.partition("/")[2]) for each in old]
        places: tuple[Place, ...] = ("held", "waiting", "running")
        ended, still = (AbsentTasks(self._spool, names, places, self._report) for _ in range(2))
        for task, each in zip(names, old, strict=True):
            if task in ended:
                reason = f"{each.reason}, and its task has ended"
                yield GarbageItem(path=each.path, reason=reason, is_garbage=partial(still.__contains__, task))

    def buckets(self) -> Iterator[GarbageItem]:
        """Yield empty buckets of dead submitters. A submitter that still needs its bucket makes it again."""
        for lane in filter(parse_lane, self._names("ready")):
            for bucket in filter(is_bucket, self._names(f"ready/{lane}")):
                yield from self._empty_bucket(f"ready/{lane}/{bucket}")

    def _empty_bucket(self, path: str) -> Iterator[GarbageItem]:
        """Yield a directory that has been empty for long; the system call that removes it fails if it is not empty."""
        keep = self._keep.unfinished
        if self._age(path) > keep and files.is_directory(f"{self._spool.layout.root}/{path}") and not self._names(path):
            yield GarbageItem(path=path, reason=f"empty for {_duration(keep)}")

    def _names(self, directory: str) -> list[str]:
        """Return the names in a directory; if it cannot be listed, report it and return none."""
        try:
            return files.list_names(f"{self._spool.layout.root}/{directory}")
        except OSError as error:
            self._report(directory, f"it cannot be listed ({error.strerror})")
            return []

    def _why(self, ask: Callable[[str], str], name: str) -> str:
        """Return the reason why data stays, as :class:`Submitters` or an error says."""
        try:
            return ask(name)
        except OSError as error:
            return f"it is not known whether its submitter is alive ({error.strerror})"

    def cache(self) -> Iterator[GarbageItem]:
        """Yield cached results that were not used for long, and unfinished writes of dead submitters."""
        keep = self._keep
        for user in filter(is_account, self._names("cache")):
            home = f"cache/{user}"
            for part in filter(is_cache_part, self._names(home)):
                names = filter(is_cache_key, self._names(f"{home}/{part}"))
                yield from self._old_files(f"{home}/{part}", names, "an unused cached result", keep.cache)
            names = filter(is_unfinished, self._names(f"{home}/tmp"))
            yield from self._old_files(f"{home}/tmp", names, "an unfinished write", keep.unfinished)

    def stale_links(self, links: Links) -> list[GarbageItem]:
        """List the old links of tasks that do not exist: a process removed the task, and ended before the links."""
        limit = self._keep.unfinished
        old = {task for task, paths in links.of.items() if all(self._age(path) > limit for path in paths)}
        absent, still = (AbsentTasks(self._spool, old, report=self._report) for _ in range(2))
        reason = f"its task does not exist, and it is older than {_duration(limit)}"
        return [
            GarbageItem(path=path, reason=reason, is_garbage=partial(still.__contains__, task))
            for task in sorted(old)
            if task in absent
            for path in links.of[task]
        ]

    def objects(self) -> Iterator[GarbageItem]:
        """Yield objects that no session uses and no task names, then their expired leases; and objects put aside.

        The headers of the tasks are read only if there is such an object. If one cannot be read, it may name any
        object, and all stay.
        """
        where = self._spool.layout
        by = leases(self._spool)
        stored = set(files.list_names(where.objects))
        yield from self._put_aside(stored)
        unused: dict[str, dict[str, int | None]] = {}
        for name in stored | by.keys():
            # with their times before the look at the tasks: a lease that is renewed after that stays
            expired = {lease: self._mtime_ns(lease) for lease in by.get(name, ())}
            recent = 0 <= self._age(f"objects/{name}") <= self._keep.unfinished
            if is_object_file(name) and not recent and all(map(self._is_expired, expired)):
                unused[name] = expired
        if unused:
            references = read_references(self._spool)
            for path, problem in references.unreadable.items():
                self._report(self._below(path), f"no object is removed, since it may need any: {problem.rstrip('.')}")
            kept = unused.keys() if references.unreadable else references.objects
            unused = {name: expired for name, expired in unused.items() if name not in kept}
        reason = f"unused, and older than {_duration(self._keep.unfinished)}"
        for name, expired in sorted(unused.items()):
            path = f"objects/{name}"
            # the object first: a session that closes knows by the leases alone whether others need it
            status = self._status(path)  # None: only the lease exists
            if status is not None and stat.S_ISREG(status.st_mode):
                yield GarbageItem(path=path, reason=reason, mtime_ns=status.st_mtime_ns)
            for lease, stamp in sorted(expired.items()):
                is_garbage = partial(self._is_unchanged, lease, stamp)
                yield GarbageItem(
                    path=lease, reason="a lease of an unused object", after=(path,), is_garbage=is_garbage
                )

    def _is_unchanged(self, path: str, mtime_ns: int | None) -> bool:
        """Whether a lease was not renewed since it was found."""
        return self._mtime_ns(path) == mtime_ns

    def _mtime_ns(self, path: str) -> int | None:
        status = self._status(path)
        return None if status is None else status.st_mtime_ns

    def _below(self, path: str) -> str:
        return path.removeprefix(f"{self._spool.layout.root}/")

    def _put_aside(self, stored: set[str]) -> Iterator[GarbageItem]:
        """Yield objects that a process put aside before it died: they are put back, and the next look decides."""
        for name in sorted(stored):
            aside = parse_lease(name)
            if aside is not None and self._age(f"objects/{name}") > self._keep.unfinished:
                again = "" if aside.object in stored else f"objects/{aside.object}"
                text = f"put aside {_duration(self._keep.unfinished)} ago by a process that died"
                reason = f"{text}; it is put back" if again else f"{text}; the object was stored again"
                yield GarbageItem(path=f"objects/{name}", reason=reason, move_to=again)

    def _is_expired(self, lease: str) -> bool:
        """Whether the session of an object lease has ended, as far as this host can know."""
        session = lease.split("/")[1]
        if session not in self._periods:
            is_alive = self._why(self._submitters.why_alive, session)
            is_dead = sessions.session_state(self._spool, session) == "dead"  # else closed or detached
            seconds = self._keep.sessions if is_dead else self._keep.unfinished
            self._periods[session] = math.inf if is_alive else seconds
        return self._age(lease) > self._periods[session]

    def session(self, session: str, links: Links, unused: set[str]) -> Iterator[GarbageItem]:
        """Yield the old outcomes of a session whose submitter has ended; then the session itself, if it is empty.

        It counts as empty if nothing would be left but ``unused`` paths.
        """
        root = self._spool.layout.root
        info = sessions.read_session(self._spool, session)
        orphaned = info is not None and not info.keeps and info.process.is_provably_dead()
        seconds = self._keep.sessions if orphaned else self._keep.results
        reason = f"not collected for {_duration(seconds)}"
        if orphaned:
            reason = f"its submitter is dead, and nothing came for {_duration(seconds)}"
        results, outgoing = f"results/{session}", f"outgoing/{session}"
        listed: list[GarbageItem] = []
        removed: set[str] = set()
        why = self._why(self._submitters.why_alive, session)
        if files.is_directory(f"{root}/{results}") and not os.path.islink(f"{root}/{outgoing}"):
            task_files = map(parse_task_file, self._names(results))
            # the latest first: a task was submitted after its dependencies
            for task_file in sorted(
                (each for each in task_files if each), key=lambda each: each.task[4:], reverse=True
            ):
                if task_file.worker and links.dependents.get((session, task_file.task), set()) <= removed:
                    found = self._outcome(session, task_file, seconds, reason, links.of.get(task_file.task, []))
                    listed += found
                    if found and not any(each.move_to for each in found):
                        removed.add(task_file.task)
        if why:
            if listed:
                self._report(results, f"{reason}, but {why}")
            return
        yield from listed
        yield from self._empty_session(session, seconds, reason, {each.path for each in listed} | unused)

    def _empty_session(self, session: str, seconds: float, reason: str, going: set[str]) -> Iterator[GarbageItem]:
        """Yield the directories of a session in which only ``going`` paths are left; after all of them, its entries."""
        directories = [f"results/{session}", f"outgoing/{session}", f"needs/{session}"]
        stays = self._has_tasks(session, self._tasks)
        for directory in [] if stays else directories:
            if files.is_directory(f"{self._spool.layout.root}/{directory}"):
                is_old = self._age(directory) > seconds
                if is_old and going.issuperset(f"{directory}/{name}" for name in self._names(directory)):
                    is_garbage = partial(self._is_ended, session)
                    yield GarbageItem(path=directory, reason=reason, is_garbage=is_garbage)
                else:
                    stays = True
        for entry in [] if stays else sessions.list_entries(self._spool, session):
            path = f"sessions/{entry}.json"
            is_dead = sessions.is_dead(self._spool, entry)
            if self._age(path) > (seconds if is_dead else max(seconds, sessions.SILENCE)):
                # last: only this file tells that the submitter is dead
                is_garbage = partial(self._is_ended, session)
                yield GarbageItem(path=path, reason=reason, after=tuple(directories), is_garbage=is_garbage)

    def _is_ended(self, session: str) -> bool:
        """Whether no process has the session open and no task is without an outcome. In this order: see `_may_go`."""
        return not self._submitters.why_alive(session) and not self._has_tasks(session, self._tasks_again)

    def _has_tasks(self, session: str, tasks: Recent[tuple[set[str], set[int | None]]]) -> bool:
        """Whether a session of a shared spool has, or may have, a task that needs its directories.

        In a shared spool only its account can make them again; in a private spool any worker does.
        """
        if not self._spool.shared:
            return False
        found, unknown = tasks.get()
        owners = {files.owner(f"{self._spool.layout.root}/{each}/{session}") for each in ("results", "outgoing")}
        return session in found or None in unknown or bool(owners & unknown)

    def _outcome(
        self, session: str, task_file: TaskFile, seconds: float, reason: str, links: list[str]
    ) -> list[GarbageItem]:
        """List a committed task with its outcome and its links, if it is old enough."""
        marker, outcome = f"results/{session}/{task_file.name}", f"outgoing/{session}/{task_file.name}"
        if self._age(marker) <= seconds:  # the commit was a rename of this file
            return []
        may_go = partial(self._may_go, session, task_file, seconds)
        first = [GarbageItem(path=link, reason=reason, is_garbage=may_go) for link in links]
        if task_file.worker == CANCELLED:
            return [*first, GarbageItem(path=marker, reason=reason, after=tuple(links), is_garbage=may_go)]
        if self._age(outcome) <= seconds:
            return []
        try:
            is_lost = read_outcome_header(self._spool, session, task_file).kind == "lost"
        except NoKey:
            raise
        except (OSError, SpoolpoolError) as error:  # it may be the outcome of a lost task
            self._report(outcome, f"{reason}, but it cannot be read ({reason_of(error)})")
            return []
        if is_lost:  # kept, as a collector would; a retry needs its links
            failed = f"failed/{task_file.name}"
            text = f"{reason}; it was lost with its workers, and is kept as {failed}"
            first = [GarbageItem(path=marker, reason=text, move_to=failed, is_garbage=may_go)]
        else:
            first.append(GarbageItem(path=marker, reason=reason, after=tuple(links), is_garbage=may_go))
        # the task first: an outcome without its task is garbage, a committed task without its outcome is a loss
        return [*first, GarbageItem(path=outcome, reason=reason, after=(marker,))]

    def _may_go(self, session: str, task_file: TaskFile, seconds: float) -> bool:
        """Whether no process has the session open, and no task depends on its old task.

        In this order: a process may have submitted a dependent before it ended, and submits none after that.
        """
        needs = f"{self._spool.layout.needs}/{session}"
        if self._submitters.why_alive(session) or self._age(f"results/{session}/{task_file.name}") <= seconds:
            return False
        links = map(parse_link, files.list_names(needs, certain=True))
        return not any(link is not None and link.task == task_file.task for link in links)

    def _old_files(self, directory: str, names: Iterable[str], noun: str, seconds: float) -> Iterator[GarbageItem]:
        for name in names:
            path = f"{directory}/{name}"
            if self._is_old(path, seconds):
                reason = f"{noun} older than {_duration(seconds)}"
                yield GarbageItem(path=path, reason=reason, is_garbage=partial(self._is_old, path, seconds))

    def _is_old(self, path: str, seconds: float) -> bool:
        """Whether a regular file was not written for so long; False if it is gone, or reported."""
        status = self._status(path)
        return status is not None and stat.S_ISREG(status.st_mode) and self._now - status.st_mtime > seconds

    def _age(self, path: str) -> float:
        """Return the seconds since a file was written or renamed, or a directory changed; -1 if that is unknown."""
        status = self._status(path)
        return -1.0 if status is None else self._now - max(status.st_mtime, status.st_ctime)

    def _status(self, path: str) -> os.stat_result | None:
        """Return the status of a file; None if it does not exist, or cannot be examined, which is reported."""
        try:
            return os.lstat(f"{self._spool.layout.root}/{path}")
        except OSError as error:
            if error.errno not in files.GONE:
                self._report(path, f"it cannot be examined ({error.strerror})")
            return None
