"""Dependencies of tasks: links that keep an outcome while another task needs it, and the outcomes that a task needs.

A link is an empty file; its name holds the ids of both tasks. A worker knows from listings of ``results/``
which tasks have ended, and from its own commits. A task file in ``results/`` does not move as long as there is a link
to it, so that a task found there once is not looked for again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

from spoolpool.calls.results import DependencyValue, error_of
from spoolpool.errors import BadTaskFile, DependencyFailed, NotTrusted, SpoolVersion
from spoolpool.format.envelope import Envelope
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, DependencyLink, TaskFile, parse_task_file
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.backoff import Backoff
from spoolpool.system.user_code import describe_error

_SESSIONS, _REMEMBERED = 100, 50_000  # sessions, and task files of one
_BECAUSE = ", because "


def add_links(spool: Spool, header: TaskHeader) -> None:
    """Create a link for each task that this one needs."""
    for session, needed in header.dependencies():
        directory, name = os.path.split(spool.layout.dependency_link(session, DependencyLink(needed, header.task)))

        def create(directory: str = directory, name: str = name) -> None:
            with contextlib.suppress(FileExistsError):  # a request was repeated: no other process makes this name
                files.create(f"{spool.directory(directory)}/{name}", [])

        spool.in_directory(directory, create)
    if spool.config.durability == "full":
        for session in header.needs:
            files.sync_directory(f"{spool.layout.needs}/{session}")


def remove_links(spool: Spool, header: TaskHeader) -> None:
    """Remove the links of a task that has its outcome, or was not submitted."""
    for session, needed in header.dependencies():
        path = spool.layout.dependency_link(session, DependencyLink(needed, header.task))
        directory, name = os.path.split(path)
        try:
            place = spool.directory(directory)
        except FileNotFoundError:
            continue
        if not files.remove(f"{place}/{name}") and not files.is_missing(path):  # ESTALE does not say that it is gone
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)


class OutcomeIndex:
    """Tasks of some sessions that have their outcomes. Not for use from several threads at once."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._ended: dict[str, dict[str, TaskFile]] = {}

    def add(self, session: str, task_file: TaskFile) -> None:
        """Add a task that this worker committed, if its session was listed before."""
        known = self._ended.get(session)
        if known is not None and len(known) < _REMEMBERED:
            known[task_file.task] = task_file

    def refresh(self, session: str) -> None:
        """List the tasks of a session that have ended."""
        if len(self._ended) > _SESSIONS:
            self._ended.clear()
        task_files = map(parse_task_file, files.list_names(f"{self._spool.layout.results}/{session}"))
        self._ended[session] = {
            task_file.task: task_file for task_file in task_files if task_file is not None and task_file.worker
        }

    def remove(self, session: str, task: str) -> None:
        """Remove a task again, because its outcome is missing."""
        self._ended.get(session, {}).pop(task, None)

    def find(self, session: str, task: str) -> TaskFile | None:
        """Return the committed task file, if it is known."""
        return self._ended.get(session, {}).get(task)


class _NotEnded(Exception):
    """A needed task has no outcome yet, as far as can be seen."""


class Dependencies:
    """Reader of the results that the tasks of one worker need, from accounts in ``trust``."""

    def __init__(self, spool: Spool, trust: Trust, index: OutcomeIndex) -> None:
        self._spool = spool
        self._trust = trust
        self._index = index

    def gather(self, header: TaskHeader, may_wait: Callable[[], bool]) -> list[DependencyValue] | None:
        """Return the results that a call needs, or None once ``may_wait`` returns False: the claim was lost.

        Raises :class:`DependencyFailed` or ``CancelledError`` if the call must not be made. All that a claimed task
        needs had ended when it became ready, so a missing or torn outcome is looked for as long as caches may hide
        it. If it is still missing then, a fault of the disk or a person removed it.
        """
        backoff = Backoff(0.005, 1.0)
        end = time.monotonic() + max(self._spool.config.lease, self._spool.config.caches)
        while True:
            try:
                return [self._read(header, session, task) for session, task in header.dependencies()]
            except (_NotEnded, OSError, BadTaskFile) as reason:
                if not may_wait():
                    return None
                if time.monotonic() > end:
                    raise DependencyFailed(f"{_name(header)} was not run{_BECAUSE}{reason}") from None
            backoff.sleep()

    def _read(self, header: TaskHeader, session: str, task: str) -> DependencyValue:
        task_file = self._index.find(session, task)
        if task_file is None:
            self._index.refresh(session)
            task_file = self._index.find(session, task)
        if task_file is None:
            raise _NotEnded(f"the outcome of task {task} is not in {self._spool.layout.results}/{session} any more.")
        if task_file.worker == CANCELLED:
            raise CancelledError
        try:
            directory = self._spool.directory(f"{self._spool.layout.outgoing}/{session}")
            outcome, content = read_outcome(self._spool, session, task_file, self._trust, directory)
        except (NotTrusted, SpoolVersion) as error:
            raise DependencyFailed(f"{_name(header)} was not run{_BECAUSE}of an outcome: {error}") from error
        except (OSError, BadTaskFile):
            self._index.remove(session, task)
            raise
        if outcome.kind == "cancelled":
            raise CancelledError
        if outcome.kind != "result":
            raise _failed(header, outcome, content)
        return DependencyValue(session, task, outcome.ranks, content.payload, content.buffers)


def _failed(header: TaskHeader, outcome: OutcomeHeader, content: Envelope) -> DependencyFailed:
    """Return the error of a task that is not run; its cause is the exception of the task that failed first."""
    cause = error_of(outcome, content)
    if isinstance(cause, DependencyFailed):  # not nested, or a long chain of tasks would be a long chain of causes
        because, cause = str(cause).partition(_BECAUSE)[2], cause.__cause__ or cause
    else:
        because = f"task {outcome.task} failed: {describe_error(cause)}"
    error = DependencyFailed(f"{_name(header)} was not run{_BECAUSE}{because}")
    error.__cause__ = cause
    return error


def _name(header: TaskHeader) -> str:
    return f"Task {header.task} ({header.name})" if header.name else f"Task {header.task}"
