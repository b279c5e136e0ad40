"""Where everything stands in a spool: one look at every name, while the spool is in use.

No file is opened, and no link is followed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from spoolpool import fsio, layout, registry
from spoolpool.layout import Edge, Token
from spoolpool.spool import Spool

Place = Literal["held", "waiting", "running", "done", "failed"]
"""Where the file of a task is: ``waiting/``, ``ready/``, ``claimed/``, ``results/`` or ``failed/``."""

PLACES: tuple[Place, ...] = ("held", "waiting", "running", "done", "failed")
"""All places, in the order in which a task moves through them."""

_REMOVED = (".nfs", ".fuse_hidden")
"""How NFS and FUSE call a removed file as long as somebody has it open: an array that is mapped, say."""


class Standing(NamedTuple):
    """The file of a task, where it was seen."""

    place: Place
    directory: str
    """Below the spool's."""
    token: Token

    @property
    def path(self) -> str:
        """Below the spool's directory."""
        return f"{self.directory}/{self.token.name}"

    @property
    def lane(self) -> str:
        """Of a task that waits in one; else its header has to say it."""
        return self.directory.split("/")[1] if self.place == "waiting" else ""

    @property
    def session(self) -> str:
        """Of a task that is done; else its header has to say it."""
        return self.directory.split("/")[1] if self.place == "done" else ""


class Walk:
    """Lists directories below a spool, and notes what does not belong there or could not be listed."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.unknown: list[str] = []
        self.unlisted: dict[str, str] = {}

    def tasks(self, places: Collection[Place] = PLACES) -> Iterator[Standing]:
        """The files of all tasks, one after the other, and so in bounded memory.

        The places come in the order in which a task moves, so that one that moves meanwhile is not missed. It
        may be seen twice.
        """
        if "held" in places:
            yield from self.tokens("held", "waiting", claimed=False)
        if "waiting" in places:
            for lane in self.good("ready", layout.parse_lane):
                for bucket in self.good(lane, layout.is_bucket):
                    yield from self.tokens("waiting", bucket, claimed=False)
        if "running" in places:
            yield from self.tokens("running", "claimed", claimed=True)
        if "done" in places:
            yield from self.of_sessions("results")
        if "failed" in places:
            yield from self.tokens("failed", "failed", claimed=None)

    def names(self, directory: str) -> list[str]:
        """What is in a directory; none where it is gone, is a link, or cannot be listed, which is noted."""
        path = f"{self.root}/{directory}"
        try:
            if fsio.is_directory(path):
                return sorted(name for name in fsio.names(path) if not name.startswith(_REMOVED))
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

    def tokens(self, place: Place, directory: str, *, claimed: bool | None) -> Iterator[Standing]:
        """The task files in a directory; with or without a worker in the name (None: either)."""
        for name in self.names(directory):
            token = layout.parse_token(name)
            if token is not None and claimed in (None, bool(token.worker)):
                yield Standing(place, directory, token)
            else:
                self.unknown.append(f"{directory}/{name}")

    def of_sessions(self, directory: str) -> Iterator[Standing]:
        """The files of ``results/`` or ``outgoing/``, of all sessions."""
        for path in self.good(directory, layout.is_session):
            yield from self.tokens("done", path, claimed=True)


@dataclass(frozen=True, kw_only=True)
class Census:
    """Every token of a spool by the place in which it stands, seen in one pass; keys are paths below the spool."""

    ready: dict[str, Token]
    """Those in ``waiting/`` too."""
    claimed: dict[str, Token]
    results: dict[str, tuple[str, Token]]
    outgoing: dict[str, tuple[str, Token]]
    failed: dict[str, Token]
    needs: dict[str, Edge]
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
        return not (self.missing or self.unlisted or set(layout.Layout.DIRECTORIES).intersection(self.unknown))


def census(spool: Spool) -> Census:
    """List the whole tree once.

    An outcome is looked for first, then its token in the order in which it moves, so that one that moves
    meanwhile is seen in one place at least.
    """
    walk = Walk(spool.path)
    top = walk.names(".")
    known = {*layout.Layout.DIRECTORIES, *layout.Layout.ON_DEMAND, "spool.json"}
    needs = dict(_edges(walk))
    unfinished = {path.partition("/")[2] for path in walk.good("tmp", _may_be_in_tmp)}
    marks = [path.partition("/")[2] for path in walk.good("cancel", layout.is_task_id)]
    outgoing = {each.path: (each.session, each.token) for each in walk.of_sessions("outgoing")}
    found: dict[Place, list[Standing]] = {place: [] for place in PLACES}
    for each in walk.tasks():
        found[each.place].append(each)
    for worker in walk.good("workers", layout.is_worker_id):
        walk.good(worker, registry.ENTRY.__contains__)
    walk.good("objects", layout.is_object_file)
    walk.good("sessions", layout.session_of)
    walk.good("journal", layout.writer_of)
    walk.good("logs", layout.parse_log)
    walk.good("jobs", lambda name: name == layout.LOCK or layout.is_job_file(name))
    return Census(
        ready={each.path: each.token for each in (*found["held"], *found["waiting"])},
        claimed={each.path: each.token for each in found["running"]},
        results={each.path: (each.session, each.token) for each in found["done"]},
        outgoing=outgoing,
        failed={each.path: each.token for each in found["failed"]},
        needs=needs,
        unfinished=unfinished,
        marks=marks,
        unknown=walk.unknown + [name for name in top if name not in known],
        missing=[name for name in layout.Layout.DIRECTORIES if name not in top],
        unlisted=walk.unlisted,
    )


def waiting_tasks(spool: Spool) -> Counter[str]:
    """How many tasks wait in each lane that has some."""
    return Counter(standing.lane for standing in Walk(spool.path).tasks({"waiting"}))


def _edges(walk: Walk) -> Iterator[tuple[str, Edge]]:
    """What is needed, by path; listed before the tasks: an edge goes before the one that needs it."""
    for directory in walk.good("needs", layout.is_session):
        for path in walk.good(directory, lambda name: layout.parse_edge(name) or layout.parse_hold(name)):
            edge = layout.parse_edge(path.rpartition("/")[2])
            if edge is not None:
                yield path, edge


def _may_be_in_tmp(name: str) -> bool:
    return layout.is_unfinished(name) or layout.is_meeting(name)
