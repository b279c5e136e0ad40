"""The tasks of one session that are in a spool, wherever they stand: headers are read, nothing is unpickled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from spoolpool.errors import SpoolpoolError
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import (
    TaskFile,
    is_bucket,
    is_session,
    parse_lane,
    series_of,
    session_of,
    submitted_at,
    submitter_of,
)
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import Place, SpoolScanner, TaskLocation
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_owned_task
from spoolpool.system import files

_PASSES = 5  # at most: a task may move back, from where it was not looked for yet to where it was


class SessionTask(NamedTuple):
    """A task, where it was seen."""

    place: Place
    task_file: TaskFile
    header: TaskHeader


class Inventory(NamedTuple):
    """What was found."""

    entries: list[SessionTask]
    """In the order of submission."""
    unlisted: dict[str, str]
    """Directories that could not be listed, with the reasons; in a dropbox its owner alone sees all."""


class Standings(NamedTuple):
    """What a session has in a spool."""

    places: Counter[Place]
    """Tasks, by where they stand."""
    last: float
    """When the last of them was submitted: seconds since the epoch, by the submitting host's clock; 0 without tasks."""


def find_session_tasks(spool: Spool, session: str) -> Inventory:
    """Look for the tasks of a session with a name; of a shared spool, this account's alone.

    What cannot be read is left out: 'spool check' tells of it. It costs the opening of each file, and those of others
    that run, are held back or failed; of what waits, the session's buckets alone are looked into.
    """
    found: dict[str, SessionTask] = {}
    others: set[str] = set()
    unlisted: dict[str, str] = {}
    for _ in range(_PASSES):
        walk = SpoolScanner(spool.path)
        sure = True
        for standing in _walk(walk, session):
            name = standing.task_file.task
            if name in others or name in found:
                continue
            try:
                header = _read(spool, session, standing)
            except OSError:  # gone meanwhile: to where it is looked for next, or back
                sure = False
                continue
            if header is None:
                others.add(name)
            else:
                found[name] = SessionTask(standing.place, standing.task_file, header)
                sure = False
        unlisted = walk.unlisted
        if sure:
            break
    return Inventory(sorted(found.values(), key=lambda entry: entry.task_file.task.partition("-")[2]), unlisted)


def sessions(spool: Spool, walk: SpoolScanner) -> dict[str, Standings]:
    """All sessions that are there, with what they have; of what waits, one header of each bucket is read."""
    names = {session_of(name) for name in files.list_names(spool.layout.sessions)}
    names |= {path.rpartition("/")[2] for path in walk.valid_paths("results", is_session)}
    found = {name: Standings(Counter(), 0.0) for name in filter(None, names)}
    of_bucket: dict[str, str] = {}
    for standing in walk.tasks():
        session = standing.session or of_bucket.get(standing.directory, "")
        if not session:
            header = TaskView(spool, standing).header
            session = header.session if header is not None else ""  # it moved on, or 'spool check' tells
            if standing.place == "waiting":
                of_bucket[standing.directory] = session
        if session:
            before = found.get(session, Standings(Counter(), 0.0))
            before.places[standing.place] += 1
            submitted = max(before.last, submitted_at(standing.task_file.task))
            found[session] = before._replace(last=submitted)
    return dict(sorted(found.items()))


def _walk(walk: SpoolScanner, session: str) -> Iterator[TaskLocation]:
    """In the order in which tasks move."""
    submitter = submitter_of(session)
    yield from walk.task_files("held", "waiting", claimed=False)
    for lane in walk.valid_paths("ready", parse_lane):
        for bucket in walk.valid_paths(lane, is_bucket):
            if series_of(bucket.rpartition("/")[2])[1] == submitter:
                yield from walk.task_files("waiting", bucket, claimed=False)
    yield from walk.task_files("running", "claimed", claimed=True)
    yield from walk.task_files("done", f"results/{session}", claimed=True)
    yield from walk.task_files("failed", "failed", claimed=None)


def _read(spool: Spool, session: str, standing: TaskLocation) -> TaskHeader | None:
    """The header of a task that is of the session; None for others, and for what cannot be read."""
    try:
        header, owner = read_owned_task(spool, f"{spool.path}/{standing.path}", standing.task_file)
    except SpoolpoolError:
        return None
    except OSError as error:
        if error.errno in files.GONE:
            raise
        return None
    ours = header.session == session and header.task == standing.task_file.task and spool.account in (None, owner)
    return header if ours else None
