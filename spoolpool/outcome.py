"""What an outcome holds: a value, the values of several ranks, or an exception with where it happened."""

from __future__ import annotations

from typing import Any

from spoolpool import pickling
from spoolpool.envelope import Envelope
from spoolpool.errors import BadTaskFile, SpoolpoolError
from spoolpool.task import Failure, OutcomeHeader


class RemoteTraceback(Exception):
    """The traceback on the worker's side; the cause of an exception that came back from a task."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


def remote_error(error: BaseException, failure: Failure | None) -> BaseException:
    """Attach where it happened to an exception that came back, as a cause."""
    if failure is not None and failure.traceback:
        text = f"\n\nOn rank {failure.rank}, host {failure.host}:\n{failure.traceback}"
        error.__cause__ = RemoteTraceback(text)
    return error


def value_of(outcome: OutcomeHeader, content: Envelope) -> Any:
    """The value that an outcome holds; raises the exception that it holds, with its remote traceback."""
    if outcome.kind == "result":
        if outcome.ranks == 1:
            return pickling.loads(content.payload, content.buffers)
        values, used = [], 0
        for payload, count in pickling.loads(content.payload):
            values.append(pickling.loads(payload, content.buffers[used : used + count]))
            used += count
        return values
    try:
        error = pickling.loads(content.payload, content.buffers)
    except SpoolpoolError as reason:
        error = reason
    if not isinstance(error, BaseException):
        error = BadTaskFile(f"The outcome of {outcome.task} should hold an exception and holds {type(error).__name__}.")
    raise remote_error(error, outcome.failure)
