"""Evidence of whether the submitters of a spool may be alive, without which none of their files is removed.

The age of a file proves nothing: its submitter may be paused, as in a suspended laptop. Only a submitter itself, or a
process that has proved its death, removes its files. What cannot be read proves nothing either.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Generic, TypeVar

from spoolpool.errors import BadTaskFile, SpoolpoolError
from spoolpool.format.names import (
    TaskFile,
    is_object_id,
    is_session,
    is_task_id,
    is_worker_id,
    parse_lease,
    session_entry,
    session_of,
)
from spoolpool.monitor.scan import DIRECTORIES, PLACES, Place, SpoolScanner
from spoolpool.protocol import sessions
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task
from spoolpool.system import files
from spoolpool.system.text import format_duration

_PASSES = 3  # of a search: a task evades a pass if it moves back meanwhile, or if a stale cache hides it
_WITHOUT_OUTCOME: tuple[Place, ...] = ("held", "waiting", "running", "failed")
_LEAST_SECONDS = 1.0  # for which the result of a look is used
T = TypeVar("T")
_duration = partial(format_duration, precise=True)


log = logging.getLogger(__name__)


def _log(path: str, reason: str) -> None:
    log.info("%s: %s.", path, reason)


class Submitters:
    """Submitters of a spool. Nothing is cached, since a process may open a session at any time.

    ``now`` is :meth:`Spool.server_time`. A process of another host counts as ended if it has not renewed its entry for
    ``silence`` seconds. The methods raise ``OSError`` where the evidence cannot be read.
    """

    def __init__(self, spool: Spool, now: float, silence: float) -> None:
        self._spool = spool
        self._now = now
        self._silence = max(silence, sessions.SILENCE)

    def why_alive(self, session: str) -> str:
        """Return why a process of a session may be alive, or "" if all have ended."""
        for entry in sessions.list_entries(self._spool, session):
            info = sessions.read_session(self._spool, entry)
            if info is not None and info.process.is_alive_here():
                return f"process {info.process.pid} of session {session} is alive"
            if info is not None and info.process.is_provably_dead():
                continue
            age = self._age_of(self._spool.layout.session(entry))
            if age is not None and age <= self._silence:
                where = f"process {info.process.pid} on {info.process.host}" if info else "a process"
                return f"{where}, of session {session}, may be alive: it renewed its entry {_duration(age)} ago"
        return ""

    def why_writing(self, name: str) -> str:
        """Return why the file ``tmp/NAME`` may still be written or moved by its process, or "" if that has ended."""
        if is_worker_id(worker := name.partition(".")[0]) and files.exists(self._spool.layout.worker(worker)):
            return f"worker {worker} may be alive: it has an entry"
        return next(filter(None, map(self.why_alive, sorted(self._writers(name)))), "")

    def _writers(self, name: str) -> set[str]:
        """Return the sessions that may have written ``tmp/NAME``."""
        if is_task_id(name):
            path = f"{self._spool.layout.tmp}/{name}"
            try:
                return {read_task(self._spool, path, TaskFile(name, 1, 1)).session}
            except (OSError, SpoolpoolError):  # cut short, or unreadable for this account: any session of its account
                return self._sessions_of(files.owner(path))
        found, _, run = name.partition(".")
        return self._users_of(run) if is_object_id(found) else set()

    def _sessions_of(self, account: int | None) -> set[str]:
        """Return all sessions of an account; in a private spool, which has one account, all sessions."""
        names = files.list_names(self._spool.layout.sessions, certain=True)
        return {
            session
            for name in names
            if (session := session_of(name))
            and (not self._spool.shared or files.owner(f"{self._spool.layout.sessions}/{name}") in (account, None))
        }

    def _users_of(self, run: str) -> set[str]:
        """Return the sessions that have a process with this id, as their entries and leases say.

        A process acquires the lease of an object before it writes the object.
        """
        where = self._spool.layout
        found = {
            session
            for name in files.list_names(where.sessions, certain=True)
            if (session := session_of(name)) and name == f"{session_entry(session, run)}.json"
        }
        for session in filter(is_session, files.list_names(where.needs, certain=True)):
            leases = map(parse_lease, files.list_names(f"{where.needs}/{session}", certain=True))
            if any(lease is not None and lease.run == run for lease in leases):
                found.add(session)
        return found

    def _age_of(self, path: str) -> float | None:
        try:
            return self._now - os.lstat(path).st_mtime
        except FileNotFoundError:
            return None


def sessions_with_tasks(spool: Spool) -> tuple[set[str], set[int | None]]:
    """Return the sessions that have a task which waits, runs or is kept in ``failed/``, and the accounts with others.

    The others are tasks of which nothing is known: their headers cannot be read now, or only by a newer version. An
    account is None if it is unknown as well. A damaged task is none of them: no worker can run it.
    """
    found: set[str] = set()
    unknown: set[int | None] = set()
    for _ in range(2):  # twice, since a task can move behind the listing
        scanner = SpoolScanner(spool.layout.root)
        for location in scanner.tasks(_WITHOUT_OUTCOME):
            path = f"{spool.layout.root}/{location.path}"
            try:
                found.add(read_task(spool, path, location.task_file).session)
            except BadTaskFile:
                continue
            except (OSError, SpoolpoolError):
                if not files.is_missing(path):  # else it has moved
                    unknown.add(files.owner(path))
        if _unlisted(scanner, _WITHOUT_OUTCOME):
            unknown.add(None)
    return found, unknown


def _unlisted(scanner: SpoolScanner, places: Collection[Place]) -> dict[str, str]:
    """Return the directories of these places that could not be listed, with the reasons, after a scan.

    A missing one is no proof that it was empty: it may be moved away for a moment.
    """
    found = dict(scanner.unlisted)
    for place in places:
        directory = DIRECTORIES[place]
        if directory not in found and not files.is_directory(f"{scanner.root}/{directory}"):
            found[directory] = "it is no directory"
    return found


class Recent(Generic[T]):
    """Result of a look at the spool. It is used for a second, or as long as the look took."""

    def __init__(self, look: Callable[[], T]) -> None:
        self._look = look
        self._result: T | None = None
        self._expires = -math.inf

    def get(self) -> T:
        """Return the last result, or that of a new look."""
        began = time.monotonic()
        if self._result is None or began > self._expires:
            self._result = self._look()
            now = time.monotonic()
            self._expires = now + max(_LEAST_SECONDS, now - began)
        return self._result


class AbsentTasks:
    """Search for tasks directly before removals that rely on their absence."""

    def __init__(
        self,
        spool: Spool,
        tasks: Iterable[str],
        places: Collection[Place] = PLACES,
        report: Callable[[str, str], object] = _log,
    ) -> None:
        """If ``places`` are all, ``tmp/`` is searched as well.

        ``report`` is called with each directory that cannot be listed, and the reason: then no task is absent.
        """
        self._spool = spool
        self._report = report
        self._tasks = set(tasks)
        self._places = places
        self._absent = Recent(self._search)

    def __contains__(self, task: object) -> bool:
        return bool(self._tasks) and task in self._absent.get()

    def _search(self) -> set[str]:
        """Return the tasks that no pass finds; none if a directory cannot be listed."""
        left = set(self._tasks)
        for _ in range(_PASSES):
            scanner = SpoolScanner(self._spool.layout.root)
            if self._places == PLACES:  # first, since a task leaves it
                left.difference_update(scanner.names("tmp"))
            left.difference_update(location.task_file.task for location in scanner.tasks(self._places))
            if unlisted := _unlisted(scanner, self._places):
                for path, reason in unlisted.items():
                    self._report(path, f"it cannot be listed ({reason})")
                return set()
        return left
