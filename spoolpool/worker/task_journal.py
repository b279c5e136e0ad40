"""Journal entries about the tasks of one worker."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

from spoolpool.calls.run import RankResult
from spoolpool.format import headers
from spoolpool.format.headers import Failure, Kind, TaskHeader, Usage
from spoolpool.format.names import TaskFile, parse_lane
from spoolpool.protocol.journal import Journal

_SHORT = 0.1  # seconds of a call from which a write before the next call of its function costs nothing in comparison
_FUNCTIONS = 1000  # that are remembered: other accounts can make up any number of names


@functools.lru_cache(64)
def _cores(lane: str) -> int:
    """Return the number of cores of the groups that serve a lane."""
    found = parse_lane(lane)
    return found.ranks * found.threads if found is not None else 0


class _Start(NamedTuple):
    task_file: TaskFile
    header: TaskHeader
    started: float


class TaskJournal:
    """Writer of the entries about the tasks of one worker. For any thread.

    The entry ``claimed`` is for calls that can be long: it is on disk before the worker can die in the call. Before the
    first call of a function in this worker, and before each call whose predecessor was long, it is written at once,
    with all earlier entries: one system call. For other calls the watcher of the call writes it once the call has
    lasted for a second (:meth:`write_late`). So a short call costs none.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._short: set[str] = set()  # functions whose latest call was short
        self._running: dict[str, _Start] = {}  # by task; several if a call runs subtasks
        self._unwritten: dict[str, _Start] = {}  # those without an entry

    def begin_call(self, task_file: TaskFile, header: TaskHeader, started: float) -> None:
        """Record that the call of a task begins, which was claimed at ``started``."""
        start = self._running[task_file.task] = _Start(task_file, header, started)
        if header.name in self._short:
            self._unwritten[task_file.task] = start
        else:
            self._write_start(start)

    def write_late(self, task: str) -> None:
        """Write the entry of a call that still runs, unless it is written already."""
        start = self._unwritten.pop(task, None)  # atomic: the call may end meanwhile
        if start is not None:
            self._write_start(start)

    def _write_start(self, start: _Start) -> None:
        task_file, header, started = start
        self._journal.write(
            "claimed",
            task=task_file.task,
            name=header.name,
            label=headers.label_of(header),
            session=header.session,
            lane=header.lane,
            attempt=task_file.attempt,
            attempts=headers.attempts(header),
            started=started,
        )
        self._journal.flush()

    def end_call(self, task_file: TaskFile, name: str, seconds: float) -> None:
        """Record that the call of a task has ended, of the function ``name``, after so many seconds."""
        self._running.pop(task_file.task, None)
        self._unwritten.pop(task_file.task, None)
        if seconds >= _SHORT:
            self._short.discard(name)
        elif name not in self._short:
            if len(self._short) >= _FUNCTIONS:
                self._short.clear()
            self._short.add(name)

    def started(self, task: str) -> float:
        """Return the time at which a task was claimed whose call runs; 0 for any other task."""
        start = self._running.get(task)
        return 0.0 if start is None else start.started

    def write_end(
        self,
        task_file: TaskFile,
        header: TaskHeader,
        *,
        kind: Kind,
        failure: Failure | None,
        started: float,
        ended: float,
        ran: float = 0.0,
        published: bool = True,
        usage: Usage | None = None,
        ends: Mapping[Kind, int] | None = None,
    ) -> None:
        """Record the outcome of a task; ``ends`` are the numbers of the calls of a pack by their outcomes."""
        used: dict[str, object] = {}
        if usage is not None:
            used = {"cpu": usage.cpu, "memory": usage.memory, "cores": _cores(header.lane)}
            if header.memory:
                used["asked"] = header.memory
        self._journal.write(
            "task",
            task=task_file.task,
            name=header.name,
            label=headers.label_of(header),
            session=header.session,
            lane=header.lane,
            attempt=task_file.attempt,
            submitted=header.submitted,
            started=started,
            ended=ended,
            ran=ran,
            published=published,
            kind=kind,
            type=failure.type if failure else "",
            **used,
            **({"calls": task_file.calls, "ends": dict(ends or {})} if task_file.calls else {}),
        )

    def write_retry(
        self, task_file: TaskFile, header: TaskHeader, failure: Failure, started: float, ended: float
    ) -> None:
        """Record that a task raised and will be tried again."""
        self._journal.write(
            "raised",
            task=task_file.task,
            name=header.name,
            label=headers.label_of(header),
            session=header.session,
            lane=header.lane,
            attempt=task_file.attempt,
            type=failure.type,
            started=started,
            ended=ended,
        )

    def write_set_aside(self, task_file: TaskFile, reason: str) -> None:
        """Record that a task was set aside in ``failed/``, since nothing can be done with it."""
        self._journal.write("set aside", task=task_file.task, attempt=task_file.attempt, reason=reason)

    def flush(self) -> None:
        """Write all entries now, since the process is about to end."""
        self._journal.flush()


def kind_of(report: RankResult | None) -> Kind:
    """Return the kind of the outcome of a call; without a result it was cancelled."""
    return "cancelled" if report is None else "error" if report.failure else "result"
