"""Bounded reading of the headers of many tasks, for counts by state, lane and user."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spoolpool.monitor.calls import PackView
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import SpoolScanner, TaskDirectory, TaskLocation, count_calls
from spoolpool.monitor.states import UNREAD
from spoolpool.protocol.spool import Spool

_HEADERS = 500  # headers that are read in each pass
_SECONDS = 1.0  # in which more are read
_NAME = 1000  # characters of the name of a function


class SeenTask(NamedTuple):
    """Parts of the headers of a task; the whole headers can have a megabyte."""

    id: str
    state: str
    """State of the task, or :data:`UNREAD`."""
    lane: str = ""
    """Empty if the header was not read, like the fields after it."""
    owner: str = ""
    session: str = ""
    name: str = ""
    label: str = ""
    since: float = 0.0
    worker: str = ""


class TaskReader:
    """Reader of headers: in each pass of some, and of more if they are read within a second.

    What was read is remembered until the end of the next pass.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._before: dict[str, SeenTask] = {}  # by path
        self._seen: dict[str, SeenTask] = {}
        self._read = 0
        self._end = 0.0

    def begin(self) -> None:
        """Begin a pass over all tasks."""
        self._before, self._seen = self._seen, {}
        self._read, self._end = 0, time.monotonic() + _SECONDS

    def read_directory(
        self, scanner: SpoolScanner, directory: TaskDirectory, names: Iterable[str]
    ) -> Iterator[tuple[SeenTask, int]]:
        """Yield tasks with these names in a directory, each with the number of its calls; none that have moved.

        Tasks beyond the limits are counted by their names, as one task with all of their calls. The state of finished
        ones is :data:`UNREAD`.
        """
        left = []
        for name in names:
            if self._is_spent and f"{directory.path}/{name}" not in self._before:
                left.append(name)
            elif (location := scanner.locate(directory, name)) and (seen := self._read_task(location)):
                yield from self._divided(location, seen)
        place = directory.place
        for task_file, number in scanner.group(directory, left).items():
            seen = SeenTask(task_file.task, UNREAD if place == "done" else place)
            yield seen, number * count_calls(place, task_file)

    def _divided(self, location: TaskLocation, seen: SeenTask) -> Iterator[tuple[SeenTask, int]]:
        """Yield a task; a pack once for each state of its calls, with the number of the calls."""
        if not location.task_file.calls:
            yield seen, 1
            return
        for state, number in PackView(TaskView(self._spool, location)).states().items():
            yield seen._replace(state=state), number

    @property
    def _is_spent(self) -> bool:
        """Whether this pass reads no more headers."""
        return self._read >= _HEADERS and time.monotonic() > self._end

    def _read_task(self, location: TaskLocation) -> SeenTask | None:
        seen = self._before.get(location.path)
        if seen is None:
            self._read += 1
            view = TaskView(self._spool, location)
            if view.gone:
                return None
            names = view.lane, view.owner, view.session, view.name[:_NAME], view.label[:_NAME]
            seen = SeenTask(view.id, view.state, *names, view.since, location.task_file.worker)
            if location.place == "done" and view.outcome is None and seen.state == "done":  # not visible yet, or torn
                return seen
        self._seen[location.path] = seen
        return seen
