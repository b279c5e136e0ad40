"""Where everything stands in a spool: one look at every name, while the spool is in use.

No file is opened, and no link is followed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from spoolpool.format.layout import Layout
from spoolpool.format.names import (
    AUTOSCALE_LOCK,
    DependencyLink,
    TaskFile,
    is_bucket,
    is_job_file,
    is_object_file,
    is_rendezvous,
    is_session,
    is_task_id,
    is_unfinished,
    is_worker_id,
    parse_lane,
    parse_lease,
    parse_link,
    parse_output_file,
    parse_task_file,
    session_of,
    writer_of,
)
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

Place = Literal["held", "waiting", "running", "done", "failed"]
"""Where the file of a task is: ``waiting/``, ``ready/``, ``claimed/``, ``results/`` or ``failed/``."""

PLACES: tuple[Place, ...] = ("held", "waiting", "running", "done", "failed")
"""All places, in the order in which a task moves through them."""

_REMOVED = (".nfs", ".fuse_hidden")
"""How NFS and FUSE call a removed file as long as somebody has it open: an array that is mapped, say."""


class TaskLocation(NamedTuple):
    """The file of a task, where it was seen."""

    place: Place
    directory: str
    """Below the spool's."""
    task_file: TaskFile

    @property
    def path(self) -> str:
        """Below the spool's directory."""
        return f"{self.directory}/{self.task_file.name}"

    @property
    def lane(self) -> str:
        """Of a task that waits in one; else its header has to say it."""
        return self.directory.split("/")[1] if self.place == "waiting" else ""

    @property
    def session(self) -> str:
        """Of a task that is done; else its header has to say it."""
        return self.directory.split("/")[1] if self.place == "done" else ""


class SpoolScanner:
    """Lists directories below a spool, and notes what does not belong there or could not be listed."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.unknown: list[str] = []
        self.unlisted: dict[str, str] = {}

    def tasks(self, places: Collection[Place] = PLACES) -> Iterator[TaskLocation]:
        """The files of all tasks, one after the other, and so in bounded memory.

        The places come in the order in which a task moves, so that one that moves meanwhile is not missed. It
        may be seen twice.
        """
        if "held" in places:
            yield from self.task_files("held", "waiting", claimed=False)
        if "waiting" in places:
            for lane in self.good("ready", parse_lane):
                for bucket in self.good(lane, is_bucket):
                    yield from self.task_files("waiting", bucket, claimed=False)
        if "running" in places:
            yield from self.task_files("running", "claimed", claimed=True)
        if "done" in places:
            yield from self.of_sessions("results")
        if "failed" in places:
            yield from self.task_files("failed", "failed", claimed=None)

    def names(self, directory: str) -> list[str]:
        """What is in a directory; none where it is gone, is a link, or cannot be listed, which is noted."""
        path = f"{self.root}/{directory}"
        try:
            if files.is_directory(path):
                return sorted(name for name in files.list_names(path) if not name.startswith(_REMOVED))
            if os.path.lexists(path):
                self.unknown.append(directory)
        except OSError as error:
            self.unlisted[directory] = error.strerror or str(error)
        return []

    def good(self, directory: str, good: Callable[[str], object]) -> list[str]:
        """Paths of what has a good name."""
        names = self.names(directory)
        self.unknown += [f"{directory}/{name}" for name in names if not good(name)]
        return [f"{directory}/{name}" for name in names if good(name)]

    def task_files(self, place: Place, directory: str, *, claimed: bool | None) -> Iterator[TaskLocation]:
        """The task files in a directory; with or without a worker in the name (None: either)."""
        for name in self.names(directory):
            task_file = parse_task_file(name)
            if task_file is not None and claimed in (None, bool(task_file.worker)):
                yield TaskLocation(place, directory, task_file)
            else:
                self.unknown.append(f"{directory}/{name}")

    def of_sessions(self, directory: str) -> Iterator[TaskLocation]:
        """The files of ``results/`` or ``outgoing/``, of all sessions."""
        for path in self.good(directory, is_session):
            yield from self.task_files("done", path, claimed=True)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Every token of a spool by the place in which it stands, seen in one pass; keys are paths below the spool."""

    ready: dict[str, TaskFile]
    """Those in ``waiting/`` too."""
    claimed: dict[str, TaskFile]
    results: dict[str, tuple[str, TaskFile]]
    outgoing: dict[str, tuple[str, TaskFile]]
    failed: dict[str, TaskFile]
    needs: dict[str, DependencyLink]
    unfinished: set[str]
    """What is being written in ``tmp/``, by name."""
    marks: list[str]
    """Tasks that are to be cancelled."""
    unknown: list[str]
    """What has no name of a spool's, or is no directory where one should be."""
    missing: list[str]
    """Directories that every spool has."""
    unlisted: dict[str, str]
    """Directories that could not be listed, with the reasons: nothing in them was seen."""

    @property
    def complete(self) -> bool:
        """Whether all was seen, so that what was not seen is not there."""
        return not (self.missing or self.unlisted or set(Layout.DIRECTORIES).intersection(self.unknown))


def scan(spool: Spool) -> Snapshot:
    """List the whole tree once.

    An outcome is looked for first, then its token in the order in which it moves, so that one that moves
    meanwhile is seen in one place at least.
    """
    walk = SpoolScanner(spool.path)
    top = walk.names(".")
    known = {*Layout.DIRECTORIES, *Layout.ON_DEMAND, "spool.json"}
    needs = dict(_edges(walk))
    unfinished = {path.partition("/")[2] for path in walk.good("tmp", _may_be_in_tmp)}
    marks = [path.partition("/")[2] for path in walk.good("cancel", is_task_id)]
    outgoing = {each.path: (each.session, each.task_file) for each in walk.of_sessions("outgoing")}
    found: dict[Place, list[TaskLocation]] = {place: [] for place in PLACES}
    for each in walk.tasks():
        found[each.place].append(each)
    for worker in walk.good("workers", is_worker_id):
        walk.good(worker, workers.ENTRY_FILES.__contains__)
    walk.good("objects", is_object_file)
    walk.good("sessions", session_of)
    walk.good("journal", writer_of)
    walk.good("logs", parse_output_file)
    walk.good("jobs", lambda name: name == AUTOSCALE_LOCK or is_job_file(name))
    return Snapshot(
        ready={each.path: each.task_file for each in (*found["held"], *found["waiting"])},
        claimed={each.path: each.task_file for each in found["running"]},
        results={each.path: (each.session, each.task_file) for each in found["done"]},
        outgoing=outgoing,
        failed={each.path: each.task_file for each in found["failed"]},
        needs=needs,
        unfinished=unfinished,
        marks=marks,
        unknown=walk.unknown + [name for name in top if name not in known],
        missing=[name for name in Layout.DIRECTORIES if name not in top],
        unlisted=walk.unlisted,
    )


def waiting_tasks(spool: Spool) -> Counter[str]:
    """How many tasks wait in each lane that has some."""
    return Counter(standing.lane for standing in SpoolScanner(spool.path).tasks({"waiting"}))


def _edges(walk: SpoolScanner) -> Iterator[tuple[str, DependencyLink]]:
    """What is needed, by path; listed before the tasks: an edge goes before the one that needs it."""
    for directory in walk.good("needs", is_session):
        for path in walk.good(directory, lambda name: parse_link(name) or parse_lease(name)):
            edge = parse_link(path.rpartition("/")[2])
            if edge is not None:
                yield path, edge


def _may_be_in_tmp(name: str) -> bool:
    return is_unfinished(name) or is_rendezvous(name)
