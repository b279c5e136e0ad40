"""Bounded reading of the headers of many tasks, for counts by state, lane and user."""

from __future__ import annotations

import time
from typing import NamedTuple

from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import TaskLocation
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
    since: float = 0.0


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

    def read(self, location: TaskLocation) -> SeenTask | None:
        """Return a task; None if it has moved. Beyond the limits, its state is :data:`UNREAD` if it is finished."""
        seen = self._before.get(location.path)
        if seen is None:
            if self._read >= _HEADERS and time.monotonic() > self._end:
                return SeenTask(location.task_file.task, UNREAD if location.place == "done" else location.place)
            self._read += 1
            view = TaskView(self._spool, location)
            if view.gone:
                return None
            seen = SeenTask(view.id, view.state, view.lane, view.owner, view.session, view.name[:_NAME], view.since)
            if location.place == "done" and view.outcome is None and seen.state == "done":  # not visible yet, or torn
                return seen
        self._seen[location.path] = seen
        return seen
