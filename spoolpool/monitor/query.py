"""Views of the tasks in a spool, and queries that select them. Headers are read; nothing is unpickled."""

from __future__ import annotations

import fnmatch
import functools
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from spoolpool.errors import BadTaskFile, SpoolpoolError
from spoolpool.format import headers
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, submitted_at
from spoolpool.monitor.scan import PLACES, Place, TaskLocation
from spoolpool.monitor.states import STATE_OF_OUTCOME, STATES, State, state_in_failed
from spoolpool.protocol import journal, workers
from spoolpool.protocol.journal import Event
from spoolpool.protocol.outcomes import read_outcome_header
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_header_data
from spoolpool.system import accounts, files


class Attempt(NamedTuple):
    """One attempt of a task, or another event in its life. Entries of journals are not verified."""

    attempt: int
    """0 if it is unknown."""
    worker: str
    host: str
    started: float
    """Seconds since the epoch, the host's clock; 0 if it is unknown."""
    ended: float
    """Like ``started``."""
    what: str
    """Description of the end."""


class ViewContent(NamedTuple):
    """Header of a task's file, and the properties of the file."""

    header: TaskHeader | None
    uid: int
    since: float
    problem: str
    gone: bool = False


class TaskView:
    """A task at its location in a spool, and the content of its files; each file is read once, when it is needed.

    A header is as its writer made it: names in it were checked, but text must be escaped before it is shown.
    """

    def __init__(self, spool: Spool, location: TaskLocation) -> None:
        self.spool = spool
        self.location = location

    @property
    def id(self) -> str:
        """Task id."""
        return self.location.task_file.task

    @property
    def submitted(self) -> float:
        """Time of the submission: seconds since the epoch, by the submitting host's clock."""
        return submitted_at(self.id)

    @functools.cached_property
    def _content(self) -> ViewContent:
        path = f"{self.spool.layout.root}/{self.location.path}"
        uid, since = -1, 0.0
        try:
            with files.reading(path) as (fd, status):
                uid, since = status.st_uid, max(status.st_mtime, status.st_ctime)
                data = read_header_data(self.spool, fd, status.st_size, path, self.location.task_file)
                header = headers.decode_task(data, path)
            if header.task != self.id:
                raise BadTaskFile(f"The header of {path} names another task ({header.task}).")
        except OSError as error:
            return ViewContent(None, uid, since, error.strerror or str(error), error.errno in files.GONE)
        except (ValueError, SpoolpoolError) as error:
            return ViewContent(None, uid, since, str(error))
        return ViewContent(header, uid, since, "")

    @property
    def content(self) -> ViewContent:
        """Content of the task's file."""
        return self._content

    @property
    def header(self) -> TaskHeader | None:
        """Header of the task's file; None if it cannot be read: see :attr:`problem`."""
        return self._content.header

    @property
    def problem(self) -> str:
        """Reason for which the header cannot be read."""
        return self._content.problem

    @property
    def gone(self) -> bool:
        """Whether the task moved away from its location before its file was read."""
        return self._content.gone

    @property
    def uid(self) -> int:
        """Account that owns the file; -1 if it is unknown."""
        return self._content.uid

    @property
    def owner(self) -> str:
        """Name of the account that owns the file; empty if it is unknown."""
        return accounts.account_name(self.uid) if self.uid >= 0 else ""

    @property
    def since(self) -> float:
        """Time at which the file came to its location: seconds since the epoch, by the server's clock; 0 if unknown."""
        return self._content.since

    @functools.cached_property
    def outcome(self) -> OutcomeHeader | None:
        """Header of the outcome of a finished task; None for other tasks, or if it cannot be read (yet)."""
        if self.location.place != "done" or self.location.task_file.worker == CANCELLED:
            return None
        try:
            return read_outcome_header(self.spool, self.session, self.location.task_file)
        except (OSError, SpoolpoolError):
            return None

    @property
    def state(self) -> State:
        """State of the task; a header is read for a finished one."""
        if self.location.task_file.worker == CANCELLED:
            return "cancelled"
        if self.location.place == "failed":
            return state_in_failed(self.location.task_file, self.header)
        if self.location.task_file.is_open:
            return "waiting"
        return STATE_OF_OUTCOME[self.outcome.kind] if self.outcome else self.location.place

    @property
    def lane(self) -> str:
        """Name of the lane; empty if it is unknown."""
        return self.location.lane or (self.header.lane if self.header else "")

    @property
    def session(self) -> str:
        """Name of the session; empty if it is unknown."""
        return self.location.session or (self.header.session if self.header else "")

    @property
    def name(self) -> str:
        """Name of the function, for people."""
        return self.header.name if self.header else ""

    @property
    def label(self) -> str:
        """Label of the task, else a preview of its arguments in parentheses; empty if it has neither."""
        return headers.label_of(self.header) if self.header else ""

    @property
    def title(self) -> str:
        """Name and label of the task; for one whose header cannot be read, the reason."""
        return f"{self.name} {self.label}".rstrip() or f"({self.problem})"

    def attempts(self) -> list[Attempt]:
        """Return the known attempts by the time of their ends: from journals, the outcome, and the present claim.

        The events of the last second of a killed worker are missing.
        """
        events = _without_ended_claims(journal.about(self.spool, [self.id]))
        if self.location.place == "running":
            claim = self.location.task_file
            events = [each for each in events if each.event != "claimed" or each.attempt != claim.attempt]
        found = [_attempt(event) for event in events]
        outcome = self.outcome
        if outcome is not None and not any(event.event == "task" and event.by == outcome.worker for event in events):
            end = describe_end(outcome.kind, outcome.failure.type if outcome.failure else "")
            times = outcome.started, outcome.ended
            found.append(Attempt(outcome.attempt, outcome.worker, outcome.host, *times, end))
        if self.location.place == "running":
            task_file = self.location.task_file
            info = workers.read_worker(self.spool, task_file.worker)
            host = info.process.host if info else ""
            found.append(Attempt(task_file.attempt, task_file.worker, host, self.since, 0.0, "running"))
        return found


_ENDS = ("task", "raised", "recovered", "given back")
"""Events that end an attempt, or a claim."""


def _without_ended_claims(events: list[Event]) -> list[Event]:
    """Return the events without the begins of attempts whose ends are known."""
    ended = {(each.worker or each.by, each.attempt) for each in events if each.event in _ENDS}
    return [each for each in events if each.event != "claimed" or (each.by, each.attempt) not in ended]


def _attempt(event: Event) -> Attempt:
    if event.event == "task":
        what = describe_end(event.kind, event.type)
        if not event.published:
            what += "; not published, because the worker was taken for dead"
    elif event.event == "raised":
        what = f"raised {event.type}; to be tried again"
    else:
        what = event.text.partition(": ")[2] or event.event
    return Attempt(event.attempt, event.by, event.host, event.started, event.ended or event.t, what)


def describe_end(kind: str, error: str) -> str:
    """Return the end of an attempt as text."""
    words = {"result": "returned", "error": f"raised {error or 'an exception'}", "lost": "lost with its workers"}
    return words.get(kind, kind or "ended")


_CALL_ENDS: frozenset[State] = frozenset(STATE_OF_OUTCOME.values())


@dataclass(frozen=True, kw_only=True)
class Query:
    """Conditions on tasks. Empty ones are ignored; patterns are those of a shell."""

    states: Collection[State] = ()
    lane: str = ""
    """Pattern of the lane's name."""
    queue: str = ""
    user: str = ""
    """Account that owns the task's file."""
    session: str = ""
    name: str = ""
    """Pattern of the function's name, or of its last part: ``fail`` matches ``module.fail``."""
    label: str = ""
    """Pattern of the label, or of the preview of the arguments of a task without a label."""
    older_than: float | None = None
    """Seconds since the submission, at least."""
    newer_than: float | None = None
    """Seconds since the submission, at most."""

    @property
    def is_empty(self) -> bool:
        """Whether every task matches."""
        return self == Query()

    @property
    def places(self) -> set[Place]:
        """Places of the tasks that can match."""
        return {place for state in self.states for place in STATES[state]} or set(PLACES)

    @property
    def pack_places(self) -> set[Place]:
        """Places of the packs that can have calls which match, besides those of :attr:`places`."""
        found: set[Place] = {"held", "running"} if "waiting" in self.states else set()
        return found | {"held", "waiting", "running"} if _CALL_ENDS.intersection(self.states) else found

    def matches(self, view: TaskView) -> bool:
        """Whether a task meets all conditions; a file is opened only if its name is not enough."""
        # in this order: the first need only the name, the next a header, the last an outcome
        return (
            (self.older_than is None or time.time() - view.submitted >= self.older_than)
            and (self.newer_than is None or time.time() - view.submitted <= self.newer_than)
            and (not self.session or view.session == self.session)
            and (not self.queue or view.lane.partition(".")[0] == self.queue)
            and (not self.lane or fnmatch.fnmatchcase(view.lane, self.lane))
            and (not self.user or view.owner == self.user)
            and (not self.name or any(fnmatch.fnmatchcase(view.name, like) for like in (self.name, f"*.{self.name}")))
            and (not self.label or _has_label(view.header, self.label))
            and (not self.states or view.state in self.states)
        )


def _has_label(header: TaskHeader | None, pattern: str) -> bool:
    return header is not None and fnmatch.fnmatchcase(header.label or header.arguments, pattern)
