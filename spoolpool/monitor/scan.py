"""Scan of the names in a spool while it is in use. No file is opened, and no symbolic link is followed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

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
from spoolpool.protocol.workers import NeededTime
from spoolpool.system import files

Place = Literal["held", "waiting", "running", "done", "failed"]
"""Directory of a task's file: ``waiting/``, ``ready/``, ``claimed/``, ``results/`` or ``failed/``."""

PLACES: tuple[Place, ...] = ("held", "waiting", "running", "done", "failed")
"""All places, in the order in which a task moves through them."""

DIRECTORIES: dict[Place, str] = {
    "held": "waiting",
    "waiting": "ready",
    "running": "claimed",
    "done": "results",
    "failed": "failed",
}
"""Directory of each place."""

_REMOVED = (".nfs", ".fuse_hidden")
"""Prefixes of the names that NFS and FUSE give to a removed file while a process has it open (a mapped array, say)."""


class TaskLocation(NamedTuple):
    """Location of a task's file at the time of the scan."""

    place: Place
    directory: str
    """Relative to the spool's directory."""
    task_file: TaskFile

    @property
    def path(self) -> str:
        """Path of the file relative to the spool's directory."""
        return f"{self.directory}/{self.task_file.name}"

    @property
    def calls(self) -> int:
        """Number of calls in the file that are to run, or of a finished task, of all."""
        done = 0 if self.place == "done" else self.task_file.first
        return max(1, self.task_file.calls - done)

    @property
    def lane(self) -> str:
        """Lane of a waiting task; empty for other tasks: their headers name it."""
        return self.directory.split("/")[1] if self.place == "waiting" else ""

    @property
    def session(self) -> str:
        """Session of a finished task; empty for other tasks: their headers name it."""
        return self.directory.split("/")[1] if self.place == "done" else ""


class SpoolScanner:
    """Lists directories of a spool; records unknown names and directories that cannot be listed."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.unknown: list[str] = []
        self.unlisted: dict[str, str] = {}

    def tasks(self, places: Collection[Place] = PLACES) -> Iterator[TaskLocation]:
        """Yield the location of every task, in bounded memory.

        The places are listed in the order in which a task moves, so a task that moves meanwhile is not missed; it may
        be yielded twice.
        """
        if "held" in places:
            yield from self.task_files("held", "waiting", claimed=False)
        if "waiting" in places:
            for lane in self.valid_paths("ready", parse_lane):
                for bucket in self.valid_paths(lane, is_bucket):
                    yield from self.task_files("waiting", bucket, claimed=False)
        if "running" in places:
            yield from self.task_files("running", "claimed", claimed=True)
        if "done" in places:
            yield from self.session_files("results")
        if "failed" in places:
            yield from self.task_files("failed", "failed", claimed=None)

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory; none if it is gone, is a symbolic link, or cannot be listed (recorded)."""
        path = f"{self.root}/{directory}"
        try:
            if files.is_directory(path):
                return sorted(name for name in files.list_names(path) if not name.startswith(_REMOVED))
            if os.path.lexists(path):
                self.unknown.append(directory)
        except OSError as error:
            self.unlisted[directory] = error.strerror or str(error)
        return []

    def valid_paths(self, directory: str, valid: Callable[[str], object]) -> list[str]:
        """Return the paths of the valid names in a directory; record the others as unknown."""
        names = self.names(directory)
        self.unknown += [f"{directory}/{name}" for name in names if not valid(name)]
        return [f"{directory}/{name}" for name in names if valid(name)]

    def task_files(self, place: Place, directory: str, *, claimed: bool | None) -> Iterator[TaskLocation]:
        """Yield the task files in a directory: with a worker in the name, without one, or either (None)."""
        for name in self.names(directory):
            task_file = parse_task_file(name)
            if task_file is not None and claimed in (None, bool(task_file.worker)):
                yield TaskLocation(place, directory, task_file)
            else:
                self.unknown.append(f"{directory}/{name}")

    def session_files(self, directory: str) -> Iterator[TaskLocation]:
        """Yield the files of all sessions in ``results/`` or ``outgoing/``."""
        for path in self.valid_paths(directory, is_session):
            yield from self.task_files("done", path, claimed=True)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Names in a spool, from one pass over the whole tree. All paths are relative to the spool's directory."""

    ready: dict[str, TaskFile]
    """Waiting tasks by path; delayed ones, in ``waiting/``, too."""
    claimed: dict[str, TaskFile]
    results: dict[str, TaskFile]
    outgoing: dict[str, TaskFile]
    """Outcomes, each named as the task file that it belongs to."""
    failed: dict[str, TaskFile]
    links: dict[str, DependencyLink]
    unfinished: set[str]
    """Names of the files that are being written in ``tmp/``."""
    cancel_requests: set[str]
    """Ids of the tasks to be cancelled."""
    unknown: set[str]
    """Paths without a valid name, and other things in the place of a directory."""
    missing: set[str]
    """Directories that every spool has, and this one does not."""
    unlisted: dict[str, str]
    """Directories that could not be listed, with the reasons: their content is not in the snapshot."""

    @property
    def tasks(self) -> dict[str, TaskFile]:
        """All task files by path."""
        return {**self.ready, **self.claimed, **self.results, **self.failed}

    @property
    def complete(self) -> bool:
        """Whether every directory was listed, so that a name that is not in the snapshot did not exist."""
        return not (self.missing or self.unlisted or self.unknown.intersection(Layout.DIRECTORIES))

    def __and__(self, other: Snapshot) -> Snapshot:
        """Return the names that are in both snapshots."""

        def both(one: Any, two: Any) -> Any:
            return one & two if isinstance(one, set) else {path: each for path, each in one.items() if path in two}

        return Snapshot(
            **{each.name: both(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)}
        )

    def __or__(self, other: Snapshot) -> Snapshot:
        """Return the names that are in either snapshot."""
        return Snapshot(**{each.name: getattr(self, each.name) | getattr(other, each.name) for each in fields(self)})


def scan(spool: Spool) -> Snapshot:
    """List the whole tree once.

    The outcomes are listed before the tasks, and the tasks in the order in which they move, so that a task that moves
    meanwhile is seen in at least one place. Links are listed first: a submitter makes them before the dependent task.
    """
    scanner = SpoolScanner(spool.layout.root)
    top = scanner.names(".")
    known = {*Layout.DIRECTORIES, *Layout.ON_DEMAND, "spool.json"}
    links = dict(_links(scanner))
    unfinished = {path.partition("/")[2] for path in scanner.valid_paths("tmp", _may_be_in_tmp)}
    requests = {path.partition("/")[2] for path in scanner.valid_paths("cancel", is_task_id)}
    outgoing = {each.path: each.task_file for each in scanner.session_files("outgoing")}
    found: dict[Place, dict[str, TaskFile]] = {place: {} for place in PLACES}
    for each in scanner.tasks():
        found[each.place][each.path] = each.task_file
    for worker in scanner.valid_paths("workers", is_worker_id):
        scanner.valid_paths(worker, workers.is_entry_file)
    scanner.valid_paths("objects", lambda name: is_object_file(name) or parse_lease(name))
    scanner.valid_paths("sessions", session_of)
    scanner.valid_paths("journal", writer_of)
    scanner.valid_paths("logs", lambda name: parse_output_file(name) or parse_task_file(name))
    scanner.valid_paths("jobs", lambda name: name == AUTOSCALE_LOCK or is_job_file(name))
    return Snapshot(
        ready=found["held"] | found["waiting"],
        claimed=found["running"],
        results=found["done"],
        outgoing=outgoing,
        failed=found["failed"],
        links=links,
        unfinished=unfinished,
        cancel_requests=requests,
        unknown={*scanner.unknown, *(name for name in top if name not in known)},
        missing={name for name in Layout.DIRECTORIES if name not in top},
        unlisted=scanner.unlisted,
    )


def waiting_tasks(spool: Spool) -> Counter[str]:
    """Return the number of waiting tasks by lane, as :func:`waiting_needs`."""
    return Counter({lane: sum(needed.values()) for lane, needed in waiting_needs(spool).items()})


def waiting_needs(spool: Spool) -> dict[str, Counter[NeededTime]]:
    """Return the number of waiting tasks by lane and by the time that they need.

    In a shared spool only the tasks of the account that the lane names are counted: no worker claims others.
    """
    found: dict[str, Counter[NeededTime]] = {}
    scanner = SpoolScanner(spool.layout.root)
    for directory in scanner.valid_paths("ready", parse_lane):
        lane = parse_lane(directory.partition("/")[2])
        if lane is None or (spool.shared and _owner(spool, directory) != lane.user):
            continue
        for bucket in scanner.valid_paths(directory, is_bucket):
            tasks = list(scanner.task_files("waiting", bucket, claimed=False))
            if spool.shared and _owner(spool, bucket) != lane.user:  # made again by a worker, or by another account
                tasks = [each for each in tasks if _owner(spool, each.path) == lane.user]
            if tasks:
                needed = found.setdefault(lane.name, Counter())
                needed.update(NeededTime.of(each.task_file) for each in tasks)
    return found


def _owner(spool: Spool, path: str) -> int | None:
    try:
        return files.owner(f"{spool.layout.root}/{path}")
    except OSError:  # unknown
        return None


def _links(scanner: SpoolScanner) -> Iterator[tuple[str, DependencyLink]]:
    for directory in scanner.valid_paths("needs", is_session):
        for path in scanner.valid_paths(directory, lambda name: parse_link(name) or parse_lease(name)):
            link = parse_link(path.rpartition("/")[2])
            if link is not None:
                yield path, link


def _may_be_in_tmp(name: str) -> bool:
    return is_unfinished(name) or is_rendezvous(name) or is_bucket(name)
