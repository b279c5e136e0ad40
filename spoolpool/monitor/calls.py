"""Calls of packs as tasks of their own: id, state and outcome of each, from the file of its pack and from its log.

The calls with outcomes have ended. Of a pack that a worker has claimed, the next call runs, and those after it wait.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator

import msgspec

from spoolpool.errors import BadTaskFile, SpoolpoolError
from spoolpool.format.cancel_requests import request_name
from spoolpool.format.headers import CallHeader, OutcomeHeader
from spoolpool.format.names import TaskFile, is_task_id, parse_task_file, submitted_at
from spoolpool.monitor.query import Attempt, TaskView, ViewContent, describe_end
from spoolpool.monitor.scan import Place, TaskLocation
from spoolpool.monitor.states import STATE_OF_OUTCOME, State, state_in_failed
from spoolpool.protocol import open_packs, packs
from spoolpool.protocol.outcome_log import EMPTY, CallOutcome, Check, LogContent, read_log
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files


class PackView:
    """A pack at its location in a spool; each of its files is read once, when it is needed."""

    def __init__(self, view: TaskView) -> None:
        self.view = view

    @functools.cached_property
    def headers(self) -> list[CallHeader]:
        """Headers of the calls; empty if the file cannot be read, or has moved. A call without an id has one here."""
        view, task_file = self.view, self.view.location.task_file
        path = f"{view.spool.layout.root}/{view.location.path}"
        try:
            with files.reading(path) as (fd, _):
                if task_file.is_open:
                    count, _ = open_packs.count_calls(view.spool, fd, path, view.id)
                    task_file = task_file._replace(calls=count)
                calls = packs.read_calls(view.spool, fd, path, task_file)[1]
        except (OSError, ValueError, SpoolpoolError):
            return []
        found = [call.header(number) for number, call in enumerate(calls)]
        return [
            each if is_task_id(each.task) else msgspec.structs.replace(each, task=request_name(view.id, each.call))
            for each in found
        ]

    @property
    def calls(self) -> int:
        """Number of calls; an open pack is read for it."""
        task_file = self.view.location.task_file
        return len(self.headers) if task_file.is_open else task_file.calls

    @functools.cached_property
    def log(self) -> LogContent:
        """Outcomes of the calls so far; those that cannot be read are missing."""
        try:
            return self.read_log(files.regular_status)
        except (OSError, ValueError, SpoolpoolError):
            return EMPTY

    def read_log(self, check: Check) -> LogContent:
        """Return the outcomes of the calls so far. Raises ``OSError`` as open(2), and the exceptions of ``check``."""
        view = self.view
        task_file = self._log_file()
        if task_file is None:
            return EMPTY
        path = view.spool.layout.outcome(view.session, task_file)
        with files.reading(path, check) as (fd, _):
            return read_log(view.spool, fd, path, view.session, task_file)

    def _log_file(self) -> TaskFile | None:
        """Return the claim whose log counts: the present one, or else the latest."""
        view, task_file = self.view, self.view.location.task_file
        if view.location.place in ("running", "done"):
            return task_file
        if not task_file.first:
            return None
        found = map(parse_task_file, files.list_names(f"{view.spool.layout.outgoing}/{view.session}"))
        logs = [each for each in found if each and each.task == view.id and each.calls and each.worker]
        return max(logs, key=lambda each: each.claim, default=None)

    def outcome(self, number: int) -> OutcomeHeader | None:
        """Return the header of the outcome of a call; None if it has none."""
        outcomes = self.log.outcomes
        return outcomes[number].header if number < self.log.done else self._whole

    @property
    def _whole(self) -> OutcomeHeader | None:
        """Outcome of all further calls."""
        outcomes = self.log.outcomes
        return outcomes[-1].header if len(outcomes) > self.log.done else None

    def state(self, number: int) -> State:
        """Return the state of a call."""
        outcome, task_file = self.outcome(number), self.view.location.task_file
        place: Place = "waiting" if task_file.is_open else self.view.location.place
        if outcome is not None:
            return STATE_OF_OUTCOME[outcome.kind]
        if place == "done":
            return self.view.state
        if number < task_file.first:  # its outcome cannot be read
            return "done"
        if place == "failed":
            return state_in_failed(task_file, self.view.header)
        if place == "running" and number > max(self.log.done, task_file.first):
            return "waiting"
        return place

    def states(self) -> Counter[State]:
        """Return the number of calls by state."""
        return Counter(self.state(number) for number in range(self.calls))


class CallView(TaskView):
    """One call of a pack. Its location is that of the pack."""

    def __init__(self, pack: PackView, call: CallHeader) -> None:
        super().__init__(pack.view.spool, pack.view.location)
        self.pack = pack
        self.number = call.call
        """Number of the call in its pack, from 0."""
        self._call = call
        self._task = call.task

    @property
    def id(self) -> str:
        """Id of the call."""
        return self._task

    @property
    def submitted(self) -> float:
        """Time of the submission: seconds since the epoch, by the submitting host's clock."""
        return submitted_at(self._task if is_task_id(self._task) else self.pack.view.id)

    @functools.cached_property
    def _content(self) -> ViewContent:
        content, call = self.pack.view.content, self._call
        if content.header is None:
            return content
        name = content.header.name.removesuffix(f" x{self.location.task_file.calls}")
        of_call = {"task": call.task, "label": call.label, "arguments": call.arguments}
        return content._replace(header=msgspec.structs.replace(content.header, name=name, calls=0, **of_call))

    @functools.cached_property
    def outcome(self) -> OutcomeHeader | None:
        """Header of the outcome of the call; None if it has none, or if it cannot be read (yet)."""
        return self.pack.outcome(self.number)

    @property
    def state(self) -> State:
        """State of the call."""
        return self.pack.state(self.number)

    def read_outcome(self, trust: Trust) -> CallOutcome:
        """Return the outcome of the call from a trusted account; raises as :func:`.protocol.outcomes.read_outcome`."""
        log = self.pack.read_log(trust.check)
        if self.number >= len(log.outcomes) and len(log.outcomes) == log.done:
            raise BadTaskFile(f"The call {self._task} has no outcome in the log of its pack {self.pack.view.id}.")
        return log.outcomes[min(self.number, len(log.outcomes) - 1)]

    def attempts(self) -> list[Attempt]:
        """Return the attempt with the outcome; of a call that runs, the present one."""
        outcome = self.outcome
        if outcome is None:
            whole = self.pack.view.attempts() if self.state == "running" else []
            return [each for each in whole if each.what == "running"]
        end = describe_end(outcome.kind, outcome.failure.type if outcome.failure else "")
        return [Attempt(outcome.attempt, outcome.worker, outcome.host, outcome.started, outcome.ended, end)]


def views_at(spool: Spool, location: TaskLocation) -> Iterator[TaskView]:
    """Yield the calls at a location, or the task with one call.

    A pack that has moved yields none. One that cannot be read is yielded as one task.
    """
    view = TaskView(spool, location)
    if not location.task_file.calls:
        yield view
        return
    pack = PackView(view)
    for call in pack.headers:
        yield CallView(pack, call)
    if not pack.headers and not view.gone:
        yield view
