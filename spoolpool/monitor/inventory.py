"""Tasks of one session, and task counts of all sessions. Headers are read; nothing is unpickled."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spoolpool.format.name_groups import ID_LENGTH
from spoolpool.format.names import (
    is_bucket,
    is_session,
    is_task_id,
    parse_lane,
    series_of,
    session_of,
    submitted_at,
    submitter_of,
)
from spoolpool.monitor.calls import PackView
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import SpoolScanner, TaskDirectory, TaskLocation, count_calls
from spoolpool.monitor.states import UNREAD
from spoolpool.monitor.task_reader import TaskReader
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_TRIED = 100  # files of a bucket that are opened until one tells the session: tasks may move meanwhile
_PASSES = 5  # at most: a task may move backwards, to a place that was listed before


class Inventory(NamedTuple):
    """Tasks of a session."""

    tasks: list[TaskView]
    """In the order of submission; all have a header."""
    unlisted: dict[str, str]
    """Directories that could not be listed, with the reasons; in a dropbox only its owner can list all."""


class TaskCounts(NamedTuple):
    """Number of the tasks of a session."""

    states: Counter[str]
    """By state; :data:`~spoolpool.monitor.states.UNREAD` for a task whose outcome was not read."""
    last: float
    """Submission of the latest task: seconds since the epoch, by the submitting host's clock; 0 without tasks."""


def find_session_tasks(spool: Spool, session: str) -> Inventory:
    """Find the tasks of a named session; in a shared spool, only those of this account.

    Unreadable files are left out ('spool check' reports them). Every file in ``waiting/``, ``claimed/`` and ``failed/``
    is opened, of any session; of the waiting tasks only the session's buckets are listed.
    """
    found: dict[str, TaskView] = {}
    others: set[str] = set()
    unlisted: dict[str, str] = {}
    for _ in range(_PASSES):
        scanner = SpoolScanner(spool.layout.root)
        settled = True
        for location in _locations(scanner, session):
            task = location.task_file.task
            if task in others or task in found:
                continue
            view = TaskView(spool, location)
            if view.gone:  # moved, to a place that is listed later or was listed before
                settled = False
            elif _belongs_to(view, session):
                found[task] = view
                settled = False
            else:
                others.add(task)
        unlisted = scanner.unlisted
        if settled:
            break
    return Inventory(sorted(found.values(), key=lambda view: view.id.partition("-")[2]), unlisted)


def count_session_tasks(spool: Spool, scanner: SpoolScanner) -> dict[str, TaskCounts]:
    """Count the tasks of every session; one header per bucket is read for the waiting ones.

    Of finished tasks, as many outcomes are read as a second allows.
    """
    sessions = {session_of(name) for name in files.list_names(spool.layout.sessions)}
    sessions |= {path.rpartition("/")[2] for path in scanner.valid_paths("results", is_session)}
    found = {name: TaskCounts(Counter(), 0.0) for name in filter(None, sessions)}
    reader = TaskReader(spool)
    reader.begin()

    def add(session: str, state: str, calls: int, last: float) -> None:
        before = found.get(session, TaskCounts(Counter(), 0.0))
        before.states[state] += calls
        found[session] = before._replace(last=max(before.last, last))

    for directory in scanner.directories():
        names = scanner.names(directory.path)
        last = _last_submission(names)
        if directory.place == "done":
            for seen, calls in reader.read_directory(scanner, directory, names):
                add(directory.path.split("/")[1], seen.state, calls, last)
        elif directory.place == "waiting":
            session = _session_of_bucket(spool, scanner, directory, names)
            for task_file, number in scanner.group(directory, names).items() if session else ():
                add(session, "waiting", number * count_calls("waiting", task_file), last)
                if task_file.first:  # calls that have ended in a pack that waits again
                    add(session, UNREAD, number * task_file.first, last)
        else:
            for location in filter(None, (scanner.locate(directory, name) for name in names)):
                view = TaskView(spool, location)
                if view.session:  # else it moved, or is unreadable
                    states = PackView(view).states() if location.task_file.calls else {view.state: 1}
                    for state, number in states.items():
                        add(view.session, state, number, submitted_at(view.id))
    return dict(sorted(found.items()))


def _last_submission(names: Iterable[str]) -> float:
    """Return the time of the latest submission among these names; 0 without a task."""
    tasks = [task for name in names if is_task_id(task := name[:ID_LENGTH])]
    return max(map(submitted_at, tasks), default=0.0)


def _session_of_bucket(spool: Spool, scanner: SpoolScanner, bucket: TaskDirectory, names: Iterable[str]) -> str:
    """Return the session of the tasks in a bucket, by the first header that can be read; "" without one."""
    for name in itertools.islice(names, _TRIED):
        location = scanner.locate(bucket, name)
        if location is not None and (session := TaskView(spool, location).session):
            return session
    return ""


def _locations(scanner: SpoolScanner, session: str) -> Iterator[TaskLocation]:
    """Yield the tasks that may be of a session, in the order in which a task moves."""
    submitter = submitter_of(session)
    yield from scanner.task_files("held", "waiting", claimed=False)
    for lane in scanner.valid_paths("ready", parse_lane):
        for bucket in scanner.valid_paths(lane, is_bucket):
            if series_of(bucket.rpartition("/")[2])[1] == submitter:
                yield from scanner.task_files("waiting", bucket, claimed=False)
    yield from scanner.task_files("running", "claimed", claimed=True)
    yield from scanner.task_files("done", f"results/{session}", claimed=True)
    yield from scanner.task_files("failed", "failed", claimed=None)


def _belongs_to(view: TaskView, session: str) -> bool:
    """Whether a readable task is of a session, and in a shared spool also of this account."""
    if view.header is None or view.header.session != session:
        return False
    lane = parse_lane(view.header.lane)
    return not view.spool.shared or (lane is not None and lane.user == view.uid == view.spool.account)
