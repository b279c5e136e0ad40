"""Names of cancel requests: the id of a task, or of a pack with the number of one of its calls."""

from __future__ import annotations

import re

from spoolpool.format.names import is_task_id
from spoolpool.system.patterns import lazy_pattern

_CALL = lazy_pattern(r"(?:\+\d{5})?", re.ASCII)


def request_name(task: str, call: int | None = None) -> str:
    """Return the name of the request to cancel a task, or one call of a pack."""
    return task if call is None else f"{task}+{call:05d}"


def is_request(name: str) -> bool:
    """Return whether a text is the name of a cancel request."""
    task = task_of(name)
    return is_task_id(task) and _CALL.fullmatch(name[len(task) :]) is not None


def task_of(name: str) -> str:
    """Return the task, or the pack, that a request names."""
    return name.partition("+")[0]
