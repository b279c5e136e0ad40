"""Scan of the names in a spool while it is in use. No file is opened, and no symbolic link is followed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol

from spoolpool.format.cancel_requests import is_request, task_of
from spoolpool.format.journal_names import writer_of
from spoolpool.format.layout import Layout
from spoolpool.format.name_groups import group_names
from spoolpool.format.names import (
    AUTOSCALE_LOCK,
    DependencyLink,
    TaskFile,
    is_bucket,
    is_job_file,
    is_object_file,
    is_rendezvous,
    is_session,
    is_unfinished,
    is_worker_id,
    parse_lane,
    parse_lease,
    parse_link,
    parse_output_file,
    parse_task_file,
    session_of,
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
        return count_calls(self.place, self.task_file)

    @property
    def lane(self) -> str:
        """Lane of a waiting task; empty for other tasks: their headers name it."""
        return self.directory.split("/")[1] if self.place == "waiting" else ""

    @property
    def session(self) -> str:
        """Session of a finished task; empty for other tasks: their headers name it."""
        return self.directory.split("/")[1] if self.place == "done" else ""


class TaskDirectory(NamedTuple):
    """Directory with tasks of one place."""

    place: Place
    path: str
    """Relative to the spool's directory."""
    claimed: bool | None
    """Whether the names have a worker; None if they may."""


def count_calls(place: Place, task_file: TaskFile) -> int:
    """Return the number of calls in a task file that are to run, or of a finished task, of all."""
    done = 0 if place == "done" else task_file.first
    return max(1, task_file.calls - done)


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
        for each in self.directories(places):
            yield from self.task_files(each.place, each.path, claimed=each.claimed)

    def directories(self, places: Collection[Place] = PLACES) -> Iterator[TaskDirectory]:
        """Yield the directories with tasks, in the same order, each before it is listed."""
        if "held" in places:
            yield TaskDirectory("held", "waiting", False)
        if "waiting" in places:
            for lane in self.valid_paths("ready", parse_lane):
                for bucket in self.valid_paths(lane, is_bucket):
                    yield TaskDirectory("waiting", bucket, False)
        if "running" in places:
            yield TaskDirectory("running", "claimed", True)
        if "done" in places:
            for path in self.valid_paths("results", is_session):
                yield TaskDirectory("done", path, True)
        if "failed" in places:
            yield TaskDirectory("failed", "failed", None)

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
        where = TaskDirectory(place, directory, claimed)
        for name in self.names(directory):
            location = self.locate(where, name)
            if location is not None:
                yield location

    def locate(self, directory: TaskDirectory, name: str) -> TaskLocation | None:
        """Return the task with a name in a directory; None for any other name, which is recorded."""
        task_file = parse_task_file(name)
        if task_file is not None and directory.claimed in (None, bool(task_file.worker)):
            return TaskLocation(directory.place, directory.path, task_file)
        self.unknown.append(f"{directory.path}/{name}")
        return None

    def group(self, directory: TaskDirectory, names: Sequence[str]) -> Counter[TaskFile]:
        """Count the task files among the names in a directory, by all parts but task, claim number and attempt."""
        groups = group_names(names)
        wrong = [each for each in groups.counts if directory.claimed not in (None, bool(each.worker))]
        self.unknown += [f"{directory.path}/{name}" for name in groups.others]
        if wrong:
            workers_of = {each.worker for each in wrong}
            for each in wrong:
                del groups.counts[each]
            parsed = ((name, parse_task_file(name)) for name in names)
            self.unknown += [f"{directory.path}/{name}" for name, each in parsed if each and each.worker in workers_of]
        return groups.counts

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
    """Names of the cancel requests."""
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


NOTHING = Snapshot(
    ready={},
    claimed={},
    results={},
    outgoing={},
    failed={},
    links={},
    unfinished=set(),
    cancel_requests=set(),
    unknown=set(),
    missing=set(),
    unlisted={},
)
"""Snapshot of a spool of which no name was looked at."""


class Selector(Protocol):
    """Selection of tasks, by ids and by names of their files."""

    def __contains__(self, task: str, /) -> bool:
        """Return whether a task is wanted."""
        ...

    def select(self, names: Collection[str], /) -> list[str]:
        """Return those of some names that begin with the id of such a task."""
        ...


def scan(spool: Spool, wanted: Selector | None = None) -> Snapshot:
    """List the whole tree once; with ``wanted``, the snapshot has the names of no other tasks.

    The outcomes are listed before the tasks, and the tasks in the order in which they move, so that a task that moves
    meanwhile is seen in at least one place. Links are listed first: a submitter makes them before the dependent task.
    """
    scanner = SpoolScanner(spool.layout.root)

    def task_files(directory: TaskDirectory) -> Iterator[TaskLocation]:
        names = scanner.names(directory.path)
        if wanted is not None:
            scanner.group(directory, names)  # records the unknown ones
            names = wanted.select(names)
        return filter(None, (scanner.locate(directory, name) for name in names))

    top = scanner.names(".")
    links = {
        path: link
        for path, link in list_links(scanner)
        if wanted is None or link.task in wanted or link.needed_by in wanted
    }
    unfinished = {path.partition("/")[2] for path in scanner.valid_paths("tmp", may_be_in_tmp)}
    requests = {path.partition("/")[2] for path in scanner.valid_paths("cancel", is_request)}
    outgoing = {
        each.path: each.task_file
        for path in scanner.valid_paths("outgoing", is_session)
        for each in task_files(TaskDirectory("done", path, True))
    }
    found: dict[Place, dict[str, TaskFile]] = {place: {} for place in PLACES}
    for directory in scanner.directories():
        for each in task_files(directory):
            found[each.place][each.path] = each.task_file
    list_others(scanner)
    return Snapshot(
        ready=found["held"] | found["waiting"],
        claimed=found["running"],
        results=found["done"],
        outgoing=outgoing,
        failed=found["failed"],
        links=links,
        unfinished=unfinished if wanted is None else {task for task in unfinished if task in wanted},
        cancel_requests=requests if wanted is None else {name for name in requests if task_of(name) in wanted},
        unknown={*scanner.unknown, *(name for name in top if name not in _KNOWN)},
        missing={name for name in Layout.DIRECTORIES if name not in top},
        unlisted=scanner.unlisted,
    )


_KNOWN = frozenset((*Layout.DIRECTORIES, *Layout.ON_DEMAND, "spool.json"))


def list_others(scanner: SpoolScanner) -> None:
    """List the directories without tasks, for the sake of the unknown names in them."""
    for worker in scanner.valid_paths("workers", is_worker_id):
        scanner.valid_paths(worker, workers.is_entry_file)
    scanner.valid_paths("objects", lambda name: is_object_file(name) or parse_lease(name))
    scanner.valid_paths("sessions", session_of)
    scanner.valid_paths("journal", writer_of)
    scanner.valid_paths("logs", lambda name: parse_output_file(name) or parse_task_file(name))
    scanner.valid_paths("jobs", lambda name: name == AUTOSCALE_LOCK or is_job_file(name))


def has_all_directories(scanner: SpoolScanner) -> bool:
    """List the top of a spool; return whether it has the directories of a spool, and nothing unknown."""
    top = scanner.names(".")
    return _KNOWN.issuperset(top) and set(top).issuperset(Layout.DIRECTORIES)


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
            names = scanner.names(bucket)
            if spool.shared and _owner(spool, bucket) != lane.user:  # made again by a worker, or by another account
                names = [name for name in names if _owner(spool, f"{bucket}/{name}") == lane.user]
            for task_file, number in scanner.group(TaskDirectory("waiting", bucket, False), names).items():
                found.setdefault(lane.name, Counter())[NeededTime.of(task_file)] += number
    return found


def _owner(spool: Spool, path: str) -> int | None:
    try:
        return files.owner(f"{spool.layout.root}/{path}")
    except OSError:  # unknown
        return None


def list_links(scanner: SpoolScanner) -> Iterator[tuple[str, DependencyLink]]:
    """Yield the paths of all dependency links."""
    for directory in scanner.valid_paths("needs", is_session):
        for path in scanner.valid_paths(directory, lambda name: parse_link(name) or parse_lease(name)):
            link = parse_link(path.rpartition("/")[2])
            if link is not None:
                yield path, link


def may_be_in_tmp(name: str) -> bool:
    """Return whether a name can occur in ``tmp/``."""
    return is_unfinished(name) or is_rendezvous(name) or is_bucket(name)
