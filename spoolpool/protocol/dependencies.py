"""The outcomes of tasks for those that need them, as a worker finds and reads them.

Which tasks have ended is known from listings of ``results/`` and from what the worker committed itself. A token in
there does not move as long as something needs it, so that what was seen once is not looked for again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError

from spoolpool.calls.results import DependencyValue, error_of
from spoolpool.errors import BadTaskFile, DependencyFailed, NotTrusted, SpoolVersion
from spoolpool.format.envelope import Envelope
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile, parse_task_file
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

_SESSIONS, _REMEMBERED = 100, 50_000  # sessions, and tokens of one
_BECAUSE = ", because "


class NotEnded(Exception):
    """Something that is needed has no outcome yet, as far as can be seen."""


class OutcomeIndex:
    """The tasks of some sessions that have their outcomes. Not for use from several threads at once."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._tokens: dict[str, dict[str, TaskFile]] = {}

    def note(self, session: str, task_file: TaskFile) -> None:
        """This worker committed a task; forgotten at once if nobody asked about its session."""
        known = self._tokens.get(session)
        if known is not None and len(known) < _REMEMBERED:
            known[task_file.task] = task_file

    def look(self, session: str) -> None:
        """List what has ended in a session."""
        if len(self._tokens) > _SESSIONS:
            self._tokens.clear()
        task_files = map(parse_task_file, files.list_names(f"{self._spool.layout.results}/{session}"))
        self._tokens[session] = {
            task_file.task: task_file for task_file in task_files if task_file is not None and task_file.worker
        }

    def forget(self, session: str, name: str) -> None:
        """The outcome of a task was not where its token says."""
        self._tokens.get(session, {}).pop(name, None)

    def task_file(self, session: str, name: str) -> TaskFile | None:
        """The committed token of a task, if it was seen."""
        return self._tokens.get(session, {}).get(name)


class Dependencies:
    """Gives a worker what its tasks need; ``trust`` says whose outcomes are read."""

    def __init__(self, spool: Spool, trust: Trust, ended: OutcomeIndex) -> None:
        self._spool = spool
        self._trust = trust
        self._ended = ended

    def gather(self, header: TaskHeader, mine: Callable[[], bool]) -> list[DependencyValue] | None:
        """The results that a call needs; None where its claim is not the caller's any more, as ``mine`` says.

        Raises :class:`DependencyFailed` or ``CancelledError`` where the call must not be made. A task that is claimed
        was let go because everything that it needs had ended: what is not there, or not whole, is looked for as long
        as caches may hide it. If it is then still not there, a fault of the disk or a person took it away.
        """
        backoff = Backoff(0.005, 1.0)
        end = time.monotonic() + max(self._spool.config.lease, self._spool.config.caches)
        while True:
            try:
                return [self._read(header, session, name) for session, name in header.needed()]
            except (NotEnded, OSError, BadTaskFile) as reason:
                if not mine():
                    return None
                if time.monotonic() > end:
                    raise DependencyFailed(f"{_name(header)} was not run{_BECAUSE}{reason}") from None
            backoff.sleep()

    def _read(self, header: TaskHeader, session: str, name: str) -> DependencyValue:
        task_file = self._ended.task_file(session, name)
        if task_file is None:
            self._ended.look(session)
            task_file = self._ended.task_file(session, name)
        if task_file is None:
            raise NotEnded(f"the outcome of task {name} is not in {self._spool.layout.results}/{session} any more.")
        if task_file.worker == CANCELLED:
            raise CancelledError
        try:
            outgoing = self._spool.held(f"{self._spool.layout.outgoing}/{session}")
            outcome, content = read_outcome(self._spool, session, task_file, self._trust, outgoing)
        except (NotTrusted, SpoolVersion) as error:
            raise DependencyFailed(f"{_name(header)} was not run{_BECAUSE}of an outcome: {error}") from error
        except (OSError, BadTaskFile):
            self._ended.forget(session, name)
            raise
        if outcome.kind == "cancelled":
            raise CancelledError
        if outcome.kind != "result":
            raise _failed(header, outcome, content)
        return DependencyValue(session, name, outcome.ranks, content.payload, content.buffers)


def _failed(header: TaskHeader, outcome: OutcomeHeader, content: Envelope) -> DependencyFailed:
    """Why a task is not run; its cause is the exception of the one that failed first."""
    cause = error_of(outcome, content)
    if isinstance(cause, DependencyFailed):  # not nested, or a long chain of tasks would be a long chain of causes
        because, cause = str(cause).partition(_BECAUSE)[2], cause.__cause__ or cause
    else:
        because = f"task {outcome.task} failed: {type(cause).__name__}: {cause}"
    error = DependencyFailed(f"{_name(header)} was not run{_BECAUSE}{because}")
    error.__cause__ = cause
    return error


def _name(header: TaskHeader) -> str:
    return f"Task {header.task} ({header.name})" if header.name else f"Task {header.task}"
