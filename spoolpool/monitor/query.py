"""Which tasks are there: by id, by a part of one, or by what they are. Headers are read, nothing is unpickled."""

from __future__ import annotations

import fnmatch
import functools
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from spoolpool.errors import BadRequest, BadTaskFile, SpoolpoolError
from spoolpool.format import headers
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, submitted_at
from spoolpool.monitor.scan import PLACES, Place, SpoolScanner, TaskLocation
from spoolpool.protocol.outcomes import read_outcome_header
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import task_label
from spoolpool.system import accounts, files

State = Literal["held", "waiting", "running", "done", "raised", "lost", "cancelled", "failed"]
"""What a task is doing: its place, where ``done`` is told apart by how it ended. ``failed`` is what is kept in
``failed/``: lost with its workers, or unreadable."""

STATES: dict[State, Place] = {
    "held": "held",
    "waiting": "waiting",
    "running": "running",
    "done": "done",
    "raised": "done",
    "lost": "done",
    "cancelled": "done",
    "failed": "failed",
}
"""Every state, with the place in which the task's file stands."""

_ENDS: dict[str, State] = {"result": "done", "error": "raised", "lost": "lost", "cancelled": "cancelled"}


class _Content(NamedTuple):
    header: TaskHeader | None
    owner: str
    since: float
    problem: str
    gone: bool = False


class TaskView:
    """A task that was found, and what its files say; each is read once, when it is asked for.

    Anybody may have written what a header says: names in it were checked, texts are for people and are shown escaped.
    """

    def __init__(self, spool: Spool, standing: TaskLocation) -> None:
        self.spool = spool
        self.location = standing

    @property
    def id(self) -> str:
        """Task id."""
        return self.location.task_file.task

    @property
    def submitted(self) -> float:
        """Seconds since the epoch, by the submitting host's clock."""
        return submitted_at(self.id)

    @functools.cached_property
    def _content(self) -> _Content:
        path = f"{self.spool.path}/{self.location.path}"
        owner, since = "", 0.0
        try:
            with files.reading(path) as (fd, status):
                owner, since = accounts.account_name(status.st_uid), max(status.st_mtime, status.st_ctime)
                header = headers.decode_task(
                    self.spool.read_header(fd, status.st_size, path, task_label(self.id)), path
                )
            if header.task != self.id:
                raise BadTaskFile(f"{path} says that it is task {header.task}.")
        except OSError as error:
            return _Content(None, owner, since, error.strerror or str(error), error.errno in files.GONE)
        except (ValueError, SpoolpoolError) as error:
            return _Content(None, owner, since, str(error))
        return _Content(header, owner, since, "")

    @property
    def header(self) -> TaskHeader | None:
        """What the task's file says; None where it cannot be read (any more): see :attr:`problem`."""
        return self._content.header

    @property
    def problem(self) -> str:
        """Why the header cannot be had."""
        return self._content.problem

    @property
    def gone(self) -> bool:
        """Whether the file was there no more when it was to be read: the task has moved on."""
        return self._content.gone

    @property
    def owner(self) -> str:
        """Account to which the file belongs."""
        return self._content.owner

    @property
    def since(self) -> float:
        """When the file came to its place: seconds since the epoch, by the server's clock; 0 if that is not known."""
        return self._content.since

    @functools.cached_property
    def outcome(self) -> OutcomeHeader | None:
        """How a task that is done ended; None for others, and where the outcome cannot be read (yet)."""
        if self.location.place != "done" or self.location.task_file.worker == CANCELLED:
            return None
        try:
            return read_outcome_header(self.spool, self.session, self.location.task_file)
        except (OSError, SpoolpoolError):
            return None

    @property
    def state(self) -> State:
        """What the task is doing; reads the outcome's header of one that is done."""
        if self.location.task_file.worker == CANCELLED:
            return "cancelled"
        return _ENDS[self.outcome.kind] if self.outcome else self.location.place

    @property
    def lane(self) -> str:
        """Name of its lane; empty where that cannot be had."""
        return self.location.lane or (self.header.lane if self.header else "")

    @property
    def session(self) -> str:
        """Its session; empty where that cannot be had."""
        return self.location.session or (self.header.session if self.header else "")

    @property
    def name(self) -> str:
        """What is called, for people."""
        return self.header.name if self.header else ""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What tasks must be like. What is empty asks nothing; patterns are those of a shell."""

    states: Collection[State] = ()
    """One of these."""
    lane: str = ""
    """Pattern of the lane's name."""
    queue: str = ""
    user: str = ""
    """Account to which the task's file belongs."""
    session: str = ""
    name: str = ""
    """Pattern of what is called, or of its last part: ``fail`` is found by ``module.fail``."""
    older_than: float | None = None
    """Seconds since it was submitted."""

    @property
    def is_empty(self) -> bool:
        """Whether every task fits."""
        return self == Query()

    @property
    def places(self) -> set[Place]:
        """Where tasks can stand that fit."""
        return {STATES[state] for state in self.states} or set(PLACES)

    def fits(self, sight: TaskView) -> bool:
        """Whether a task is like that; opens a file only where its name does not tell."""
        # in this order: the first need a name alone, the next a header, the last an outcome
        return (
            (self.older_than is None or time.time() - sight.submitted >= self.older_than)
            and (not self.session or sight.session == self.session)
            and (not self.queue or sight.lane.partition(".")[0] == self.queue)
            and (not self.lane or fnmatch.fnmatchcase(sight.lane, self.lane))
            and (not self.user or sight.owner == self.user)
            and (not self.name or any(fnmatch.fnmatchcase(sight.name, like) for like in (self.name, f"*.{self.name}")))
            and (not self.states or sight.state in self.states)
        )


def select(spool: Spool, query: Query, walk: SpoolScanner | None = None) -> Iterator[TaskView]:
    """The tasks that fit, each once, as they are met; ``walk`` tells afterwards what could not be listed."""
    seen = set()
    for standing in (walk or SpoolScanner(spool.path)).tasks(query.places):
        sight = TaskView(spool, standing)
        if sight.id not in seen and query.fits(sight):
            seen.add(sight.id)
            yield sight


def named(spool: Spool, words: Iterable[str], query: Query, walk: SpoolScanner | None = None) -> list[TaskView]:
    """The tasks that have these ids, or ids that alone begin or end like this, and that fit the query.

    Raises :class:`BadRequest` for a word that fits none or several.
    """
    found: dict[str, dict[str, TaskView]] = {word: {} for word in words}
    for standing in (walk or SpoolScanner(spool.path)).tasks(query.places):
        name = standing.task_file.task
        for word, fits in found.items():
            if word and (name.startswith(word) or name.endswith(word)):
                sight = TaskView(spool, standing)
                if query.fits(sight):
                    fits[name] = sight
    for word, fits in found.items():
        if len(fits) != 1:
            which = f" ({', '.join(sorted(fits)[:3])}{', ...' if len(fits) > 3 else ''})" if fits else ""
            like = f" that are {' or '.join(sorted(query.states))}" if query.states else ""
            raise BadRequest(
                f"{word!r} fits {len(fits)} tasks{which} in {spool.path}{like}; it must fit one. "
                f"'spool ls {spool.path}' shows the ids."
            )
    return list({sight.id: sight for fits in found.values() for sight in fits.values()}.values())
