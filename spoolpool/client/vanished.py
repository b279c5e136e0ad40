"""Search for pending tasks that get no outcome, because a third party removed a file of theirs from the spool.

A scratch filesystem is purged of old files, and people remove files. A task whose file is gone would be waited for for
ever. So now and then a submitter searches for its pending tasks, and for the dependencies of those that wait for them.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from spoolpool.client.futures import TaskFuture
from spoolpool.client.pending import PendingTasks
from spoolpool.errors import BadTaskFile, DependencyFailed, SpoolpoolError, TaskVanished
from spoolpool.protocol.search import PASSES, Wanted, find_places, search_interval
from spoolpool.protocol.spool import Spool

log = logging.getLogger("spoolpool.session")

_LEAST_SECONDS = 5.0  # between two passes: a directory may be moved away for a moment
_SHARE = 100  # a search waits this many times as long as its last pass took


class Vanished(NamedTuple):
    """A pending task that gets no outcome."""

    future: TaskFuture
    error: SpoolpoolError
    delayed: bool
    """Whether its own file is still in ``waiting/``, and only a dependency is gone."""


class VanishedTasks:
    """Searcher of one session. A task counts as vanished if several passes in a row do not find it.

    See :mod:`spoolpool.protocol.search`. For use from the collector thread.
    """

    def __init__(self, pending: PendingTasks) -> None:
        self._pending = pending
        self._spool = pending.spool
        self._interval = max(_LEAST_SECONDS, search_interval(self._spool))
        self._due = time.monotonic() + self._interval
        self._missed: dict[str, int] = {}  # successive passes that did not find a task, by its id

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next pass."""
        return time.monotonic() >= self._due

    def search(self) -> list[Vanished]:
        """Make one pass; return the tasks that count as vanished now. Raises ``OSError`` if the spool does not answer.

        An account that cannot list the claimed tasks of others, as in a dropbox, finds no task to be vanished.
        """
        began = time.monotonic()
        self._due = began + self._interval
        futures = {each.task: each for each in self._pending.futures() if each.is_submitted}
        if not futures or not self._spool.sees_all:
            return []
        places = find_places(self._spool, [Wanted.of(self._spool, each.header) for each in futures.values()])
        delayed = [each for task, each in futures.items() if each.header.needs and places.get(task) == "waiting"]
        needed = {
            Wanted(task, session) for each in delayed for session, task in self._pending.unwatched_dependencies(each)
        }
        if needed:  # most of them have their outcomes; only then list the buckets of all submitters for the others
            ended = find_places(self._spool, needed, ("results",))
            needed = {each for each in needed if each.task not in ended}
        places_of_needed = find_places(self._spool, needed)
        # a task in failed/ was set aside: it has no outcome, and gets none unless it is retried
        without_outcome = {each.task for each in needed if places_of_needed.get(each.task, "failed") == "failed"}
        took = time.monotonic() - began
        self._due = max(self._due, began + _SHARE * took)
        if took > max(self._spool.config.lease, self._interval):  # stopped meanwhile: a task may have moved at will
            return []
        missing = futures.keys() - places.keys()
        self._missed = {task: self._missed.get(task, 0) + 1 for task in missing | without_outcome}
        if missing:
            log.info("%d task(s) are in no directory of %s now; searching again", len(missing), self._spool.path)
        vanished = {task for task, passes in self._missed.items() if passes >= PASSES}
        found = [
            Vanished(futures[task], vanished_error(self._spool, task), delayed=False) for task in missing & vanished
        ]
        for each in delayed:
            for _, task in each.header.dependencies():
                if task in vanished & without_outcome:
                    error = self._dependency_error(each, task, set_aside=task in places_of_needed)
                    found.append(Vanished(each, error, delayed=True))
                    break
        return found

    def _dependency_error(self, future: TaskFuture, task: str, *, set_aside: bool) -> DependencyFailed:
        failed = self._spool.layout.failed
        what = f"was set aside in {failed}" if set_aside else "is in no directory of the spool any more"
        cause = BadTaskFile(f"Task {task} {what}.") if set_aside else vanished_error(self._spool, task)
        error = DependencyFailed(f"Task {future.task} was not run, because task {task} {what}, and has no outcome.")
        error.__cause__ = cause
        return error


def vanished_error(spool: Spool, task: str) -> TaskVanished:
    """Return the error for the future of a task whose file is gone."""
    return TaskVanished(
        f"Task {task} is in no directory of {spool.path} any more: its file was removed, by a purge of old files or by "
        "hand. It gets no outcome; if a worker had begun it, its function may have run. Submit it again, and keep the "
        "spool out of the purge."
    )
