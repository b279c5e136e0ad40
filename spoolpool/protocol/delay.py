"""Tasks that are held back: for a while after they raised, for others that they need, or until a time.

How long a delay is measured by each observer with its own monotonic clock, from the moment at which it first saw the
task in ``waiting/``; the worker that put it there saw it first. So no clocks are compared, and the death of that
worker only makes the wait longer. A time is compared with the clock that dates the spool's files, which is one for all.
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
from spoolpool.protocol.tasks import move_to_bucket, read_task
from spoolpool.system import files

log = logging.getLogger(__name__)

_LONGEST = 300.0
_PUT_OFF = 1.0  # seconds after which something that failed is tried again


def retry_delay(header: TaskHeader, attempt: int) -> float:
    """Seconds before this attempt: twice as long each time, five minutes at most."""
    return min(_LONGEST, header.retry_delay * 2.0 ** max(0, attempt - 2))


def make_ready(spool: Spool, header: TaskHeader, task_file: TaskFile) -> bool:
    """Let a task from ``waiting/`` go on; whether this call did it.

    Anybody may, whenever it may go, and nothing is concluded from the answer: whoever loses stops.
    """
    return move_to_bucket(spool, f"{spool.layout.waiting}/{task_file.name}", header, task_file)


class DelayedTasks:
    """Lets tasks from ``waiting/`` go on when their time has come. Any number of them may do so at once.

    Those that raised wait for a delay, and those that need others for their outcomes: the edges in ``needs/`` say
    for which, as far as this process has to look; their own headers have the last word, and may name a time.
    """

    def __init__(self, spool: Spool, ended: OutcomeIndex | None = None) -> None:
        self._spool = spool
        self._ended = ended or OutcomeIndex(spool)
        self._due: dict[TaskFile, float] = {}
        self._headers: dict[TaskFile, TaskHeader] = {}
        self._missing: dict[TaskFile, set[tuple[str, str]]] = {}
        self._needed_by: dict[tuple[str, str], set[TaskFile]] = {}
        self._again = 0.0
        self._asked = False

    @property
    def due(self) -> float | None:
        """When there is something to be done here, by this process's monotonic clock; None if nothing is known."""
        if not (self._due or self._asked):
            return None
        return min([*self._due.values(), *([self._again] if self._asked else [])])

    def look(self, *, woken: bool) -> bool:
        """Look, for an idle worker that has a reason to; whether a task went on.

        It has if something happened, or if tasks wait for others. It takes a fifth of its time for it at most.
        """
        if not (woken or self._missing or self._asked):
            return False
        if time.monotonic() < self._again:
            self._asked = True
            return False
        return self.round() > 0

    def round(self) -> int:
        """Look at ``waiting/`` once; returns how many tasks went on.

        Nothing is raised: what cannot be done now is done a while later.
        """
        began = time.monotonic()
        waiting = self._spool.layout.waiting
        try:
            task_files = {
                task_file
                for task_file in map(parse_task_file, files.list_names(waiting))
                if task_file and not task_file.worker
            }
        except OSError as error:  # the server is away for a moment
            log.info("Looking for tasks that are held back was put off: %s", error)
            task_files = self._due.keys() | self._missing.keys()
        for gone in self._due.keys() - task_files:
            del self._due[gone], self._headers[gone]
        for gone in self._missing.keys() - task_files:
            self._forget(gone)
        new = task_files - self._due.keys() - self._missing.keys()
        for task_file in new:
            if task_file.attempt > 1:  # it ran, so that what it needs has ended
                self._notice(task_file)
        released = self._let_go() + self._let_go_dependents({task_file for task_file in new if task_file.attempt == 1})
        now = time.monotonic()
        self._asked, self._again = False, now + 4 * (now - began)
        return released

    def _let_go(self) -> int:
        now = time.monotonic()
        released = 0
        for task_file in [task_file for task_file, due in self._due.items() if due <= now]:
            header = self._headers[task_file]
            try:
                if task_file.attempt == 1 and self._is_early(task_file, header):
                    continue
                released += make_ready(self._spool, header, task_file)
            except (OSError, SpoolpoolError) as error:
                log.info("%s is held back for longer: %s", task_file.task, error)
                self._due[task_file] = now + _PUT_OFF
            else:
                del self._due[task_file], self._headers[task_file]
        return released

    def _is_early(self, task_file: TaskFile, header: TaskHeader) -> bool:
        """Whether a task is not to start yet; then it is looked at again when its time has come."""
        left = header.not_before - self._spool.server_time() if header.not_before else 0.0
        if left > 0:
            self._headers[task_file] = header
            self._due[task_file] = time.monotonic() + left
        return left > 0

    def _notice(self, task_file: TaskFile) -> None:
        with contextlib.suppress(OSError, SpoolpoolError):  # gone, or unreadable: 'spool check' tells
            header = read_task(self._spool, f"{self._spool.layout.waiting}/{task_file.name}", task_file)
            if header.task == task_file.task:
                self._headers[task_file] = header
                self._due[task_file] = time.monotonic() + retry_delay(header, task_file.attempt)

    # -- those that need others

    def committed(self, session: str, task_file: TaskFile) -> None:
        """This worker has committed a task: what waited for nothing else, as far as it is known here, goes on."""
        self._ended.add(session, task_file)
        if (session, task_file.task) in self._needed_by:
            for dependent in self._miss_no_more((session, task_file.task)):
                self._try(dependent)

    def _miss_no_more(self, needed: tuple[str, str]) -> list[TaskFile]:
        """Something has ended; returns the tasks that wait for nothing else, as far as it is known here."""
        free = []
        for dependent in sorted(self._needed_by.pop(needed)):
            self._missing[dependent].discard(needed)
            if not self._missing[dependent]:
                free.append(dependent)
        return free

    def _let_go_dependents(self, new: set[TaskFile]) -> int:
        try:
            if new:
                self._read_edges(new)
            for session in {session for session, _ in self._needed_by}:
                self._ended.refresh(session)
        except OSError as error:
            log.info("Looking for what tasks need was put off: %s", error)
            return 0
        free = {task_file for task_file in new if not self._missing[task_file]}
        for needed in [each for each in self._needed_by if self._ended.find(*each)]:
            free.update(self._miss_no_more(needed))
        return sum(map(self._try, sorted(free)))

    def _read_edges(self, new: set[TaskFile]) -> None:
        """Learn from names alone what tasks need: they may be thousands."""
        by_task = {task_file.task: task_file for task_file in new}
        for task_file in new:
            self._missing[task_file] = set()
        for session in filter(is_session, files.list_names(self._spool.layout.needs)):
            for edge in map(parse_link, files.list_names(f"{self._spool.layout.needs}/{session}")):
                if edge is not None and edge.needed_by in by_task:
                    self._wait_for(by_task[edge.needed_by], session, edge.task)

    def _wait_for(self, task_file: TaskFile, session: str, task: str) -> None:
        self._missing[task_file].add((session, task))
        self._needed_by.setdefault((session, task), set()).add(task_file)

    def _try(self, task_file: TaskFile) -> bool:
        """Let a task go that needs nothing more, if its header says so too; whether it went."""
        try:
            header = read_task(self._spool, f"{self._spool.layout.waiting}/{task_file.name}", task_file)
            if missing := [each for each in header.needed() if not self._ended.find(*each)]:
                for each in missing:  # its edges were not seen, or are gone
                    self._wait_for(task_file, *each)
                return False
            went = not self._is_early(task_file, header) and make_ready(self._spool, header, task_file)
        except (OSError, SpoolpoolError) as error:  # gone, or unreadable: 'spool check' tells; or later
            log.debug("%s waits for longer: %s", task_file.task, error)
            return False
        self._forget(task_file)
        return went

    def _forget(self, task_file: TaskFile) -> None:
        for needed in self._missing.pop(task_file, ()):
            others = self._needed_by[needed]
            others.discard(task_file)
            if not others:
                del self._needed_by[needed]
