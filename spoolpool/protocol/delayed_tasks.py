"""Delayed tasks: for a while after they raised, until the tasks that they need have ended, or until a time.

Each observer measures a delay with its own monotonic clock, from the moment at which it first saw the task in
``waiting/``; the worker that moved the task there saw it first. So clocks of hosts are never compared, and the death of
that worker only makes the delay longer. A time is compared with the clock that dates the spool's files, which is one
for all hosts.
"""

from __future__ import annotations

import contextlib
import logging
import time

from spoolpool.errors import SpoolpoolError
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, is_session, parse_link, parse_task_file
from spoolpool.protocol.dependencies import OutcomeIndex
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import move_to_bucket, read_opened_task, read_task
from spoolpool.system import files

log = logging.getLogger(__name__)

_LONGEST = 300.0
_RETRY = 1.0  # seconds until a task whose move failed is moved again


def retry_delay(header: TaskHeader, attempt: int) -> float:
    """Return the seconds before this attempt: doubled each time, five minutes at most."""
    return min(_LONGEST, header.retry_delay * 2.0 ** max(0, attempt - 2))


def _essentials(header: TaskHeader) -> TaskHeader:
    """Return the fields that are needed to make a task ready: a whole header can be a thousand times as large."""
    return TaskHeader(
        task=header.task,
        session=header.session,
        lane=header.lane,
        bucket=header.bucket,
        not_before=header.not_before,
    )


def make_ready(spool: Spool, header: TaskHeader, task_file: TaskFile) -> bool:
    """Move a task from ``waiting/`` to its bucket; return whether this call did it.

    Any process may do this once the task may start, and nothing is concluded from the answer.
    """
    return move_to_bucket(spool, f"{spool.layout.waiting}/{task_file.name}", header, task_file)


class DelayedTasks:
    """Makes tasks in ``waiting/`` ready when their time has come. Any number of processes may do so at once.

    Tasks that raised wait for a delay, and tasks with dependencies for outcomes. The links in ``needs/`` tell for
    which, and so how far this process must look; the header of the task decides, and may name a time as well.

    With ``dated``, the delay of a task began with the last rename of its file, by the clock that dates the files: for a
    process that looks seldom or once. On a filesystem that does not date renames the delay may be shorter then.
    """

    def __init__(self, spool: Spool, index: OutcomeIndex | None = None, *, dated: bool = False) -> None:
        self._spool = spool
        self._dated = dated
        self._index = index or OutcomeIndex(spool)
        self._due: dict[TaskFile, float] = {}
        self._headers: dict[TaskFile, TaskHeader] = {}
        self._missing: dict[TaskFile, set[tuple[str, str]]] = {}
        self._needed_by: dict[tuple[str, str], set[TaskFile]] = {}
        self._next_round = 0.0
        self._round_wanted = False

    @property
    def due(self) -> float | None:
        """Time of the next work here, by this process's monotonic clock; None if no work is known."""
        if not (self._due or self._round_wanted):
            return None
        return min([*self._due.values(), *([self._next_round] if self._round_wanted else [])])

    def check(self, *, woken: bool) -> bool:
        """Make a round for an idle worker if it has a reason; return whether a task became ready.

        The reason is a change that woke the worker, or tasks with dependencies. Rounds take a fifth of its time at
        most.
        """
        if not (woken or self._missing or self._round_wanted):
            return False
        if time.monotonic() < self._next_round:
            self._round_wanted = True
            return False
        return self.round() > 0

    def round(self) -> int:
        """List ``waiting/`` once, and make the tasks ready that may start; return how many.

        Nothing is raised: a task that cannot be moved now is moved later.
        """
        began = time.monotonic()
        waiting = self._spool.layout.waiting
        try:
            task_files = {
                task_file
                for task_file in map(parse_task_file, files.list_names(waiting))
                if task_file and not task_file.worker and not task_file.is_open
            }
        except OSError as error:  # the server is away for a moment
            log.info("Cannot list %s now: %s", waiting, error)
            task_files = self._due.keys() | self._missing.keys()
        for gone in self._due.keys() - task_files:
            del self._due[gone], self._headers[gone]
        for gone in self._missing.keys() - task_files:
            self._forget(gone)
        new = task_files - self._due.keys() - self._missing.keys()
        for task_file in new:
            if task_file.attempt > 1:  # it was run before, so its dependencies have ended
                self._read_delay(task_file)
        count = self._move_due() + self._move_dependents({task_file for task_file in new if task_file.attempt == 1})
        now = time.monotonic()
        self._round_wanted, self._next_round = False, now + 4 * (now - began)
        return count

    def _move_due(self) -> int:
        now = time.monotonic()
        count = 0
        for task_file in [task_file for task_file, due in self._due.items() if due <= now]:
            header = self._headers[task_file]
            try:
                if task_file.attempt == 1 and self._is_early(task_file, header):
                    continue
                count += make_ready(self._spool, header, task_file)
            except (OSError, SpoolpoolError) as error:
                log.info("Cannot make %s ready now: %s", task_file.task, error)
                self._due[task_file] = now + _RETRY
            else:
                del self._due[task_file], self._headers[task_file]
        return count

    def _is_early(self, task_file: TaskFile, header: TaskHeader) -> bool:
        """Return whether a task is not to start yet; then note when it is due."""
        left = header.not_before - self._spool.server_time() if header.not_before else 0.0
        if left > 0:
            self._headers[task_file] = _essentials(header)
            self._due[task_file] = time.monotonic() + left
        return left > 0

    def _read_delay(self, task_file: TaskFile) -> None:
        with contextlib.suppress(OSError, SpoolpoolError):  # gone, or unreadable: 'spool check' reports it
            path = f"{self._spool.layout.waiting}/{task_file.name}"
            with files.reading(path, None) as (fd, status):
                header, _ = read_opened_task(self._spool, fd, path, task_file)
            if header.task == task_file.task:
                passed = max(0.0, self._spool.server_time() - status.st_ctime) if self._dated else 0.0
                self._headers[task_file] = _essentials(header)
                self._due[task_file] = time.monotonic() + retry_delay(header, task_file.attempt) - passed

    # -- dependencies

    def record_commit(self, session: str, task_file: TaskFile) -> None:
        """Record that this worker committed a task, and make the tasks ready that wait for no other one."""
        self._index.add(session, task_file)
        if (session, task_file.task) in self._needed_by:
            for dependent in self._record_end((session, task_file.task)):
                self._try(dependent)

    def _record_end(self, needed: tuple[str, str]) -> list[TaskFile]:
        """Record that a needed task has ended; return the tasks that wait for no other one, as far as is known."""
        free = []
        for dependent in sorted(self._needed_by.pop(needed)):
            self._missing[dependent].discard(needed)
            if not self._missing[dependent]:
                free.append(dependent)
        return free

    def _move_dependents(self, new: set[TaskFile]) -> int:
        try:
            if new:
                self._read_links(new)
            for session in {session for session, _ in self._needed_by}:
                self._index.refresh(session)
        except OSError as error:
            log.info("Cannot list dependencies now: %s", error)
            return 0
        free = {task_file for task_file in new if not self._missing[task_file]}
        for needed in [each for each in self._needed_by if self._index.find(*each)]:
            free.update(self._record_end(needed))
        return sum(map(self._try, sorted(free)))

    def _read_links(self, new: set[TaskFile]) -> None:
        """Learn dependencies from the names of links alone: there may be thousands of tasks."""
        by_task = {task_file.task: task_file for task_file in new}
        for task_file in new:
            self._missing[task_file] = set()
        for session in filter(is_session, files.list_names(self._spool.layout.needs)):
            for link in map(parse_link, files.list_names(f"{self._spool.layout.needs}/{session}")):
                if link is not None and link.needed_by in by_task:
                    self._wait_for(by_task[link.needed_by], session, link.task)

    def _wait_for(self, task_file: TaskFile, session: str, task: str) -> None:
        self._missing[task_file].add((session, task))
        self._needed_by.setdefault((session, task), set()).add(task_file)

    def _try(self, task_file: TaskFile) -> bool:
        """Make a task ready that waits for no other one, if its header agrees; return whether this call did it."""
        try:
            header = read_task(self._spool, f"{self._spool.layout.waiting}/{task_file.name}", task_file)
            if missing := [each for each in header.dependencies() if not self._index.find(*each)]:
                for each in missing:  # its links were not seen, or are gone
                    self._wait_for(task_file, *each)
                return False
            moved = not self._is_early(task_file, header) and make_ready(self._spool, header, task_file)
        except (OSError, SpoolpoolError) as error:  # gone, or unreadable: 'spool check' reports it; or later
            log.debug("Cannot make %s ready now: %s", task_file.task, error)
            return False
        self._forget(task_file)
        return moved

    def _forget(self, task_file: TaskFile) -> None:
        for needed in self._missing.pop(task_file, ()):
            others = self._needed_by[needed]
            others.discard(task_file)
            if not others:
                del self._needed_by[needed]
