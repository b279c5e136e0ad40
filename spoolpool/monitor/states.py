"""States of a task: the one definition for all commands, reports and counts.

A task in the spool has the state of its place, where a finished one is divided by the kind of its outcome. A task that
is gone has the state of its last event in the journals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from spoolpool.format import headers
from spoolpool.format.headers import Kind, TaskHeader
from spoolpool.format.names import TaskFile

if TYPE_CHECKING:
    from spoolpool.monitor.scan import Place
    from spoolpool.protocol.journal import Event

State = Literal["held", "waiting", "running", "done", "raised", "lost", "cancelled", "failed"]
"""State of a task in the spool. ``lost`` tasks that were collected, and ``failed`` ones, are kept in ``failed/``."""

STATES: dict[State, tuple[Place, ...]] = {
    "held": ("held",),
    "waiting": ("waiting",),
    "running": ("running",),
    "done": ("done",),
    "raised": ("done",),
    "lost": ("done", "failed"),
    "cancelled": ("done",),
    "failed": ("failed",),
}
"""All states, with the places in which the task's file can be."""

STATE_OF_OUTCOME: dict[Kind, State] = {"result": "done", "error": "raised", "lost": "lost", "cancelled": "cancelled"}
"""State of a finished task by the kind of its outcome."""

End = Literal["done", "raised", "lost", "cancelled", "failed", "vanished", "removed"]
"""State of a task that will not run (again). ``vanished`` and ``removed`` ones are not in the spool: a third party
removed the file, or a person did with ``spool rm`` before its end was known."""

ENDS: tuple[End, ...] = ("done", "raised", "lost", "cancelled", "failed", "vanished", "removed")
"""All ends, in the order in which they are shown."""

UNREAD = "unread"
"""Stands for the state of a finished task whose outcome was not read."""


def state_in_failed(task_file: TaskFile, header: TaskHeader | None) -> State:
    """Return the state of a task in ``failed/``: lost if it has used up its attempts or give-backs, else set aside."""
    if header is None:
        return "failed"
    return "lost" if max(task_file.attempt, task_file.releases) >= headers.attempts(header) else "failed"


def end_of_event(event: Event) -> End | None:
    """Return the end of a task that an event records; None if the task goes on, or if the event is of another kind."""
    kind = event.kind
    if event.event == "task":
        kind = (kind or "result") if event.published else ""
    elif event.event == "cancelled":
        kind = "cancelled"
    elif event.event == "set aside" or (event.event == "recovered" and kind == "set aside"):
        return "failed"
    elif event.event == "vanished":
        return "vanished"
    elif event.event not in ("recovered", "given back", "collected"):
        return None
    return STATE_OF_OUTCOME.get(kind)  # type: ignore[call-overload,no-any-return]  # any text


def next_end(before: End | None, event: Event) -> End | None:
    """Return the end of a task after an event, given its end before it."""
    if event.event == "retried":
        return None
    if event.event == "removed":
        return before or "removed"
    return end_of_event(event) or before


def end_after(events: Iterable[Event]) -> End | None:
    """Return the end of a task after its events, in the order of their times; None if they tell none."""
    end: End | None = None
    for event in events:
        end = next_end(end, event)
    return end


def describe_counts(counts: Mapping[str, int], always: Iterable[str] = ()) -> str:
    """Return the numbers of tasks by state as text, in the order of the states; zeros only for those in ``always``."""
    wanted = set(always)
    order = ["pending", *STATES, *(each for each in (*ENDS, UNREAD) if each not in STATES)]
    order += sorted(set(counts) - set(order))
    words = {UNREAD: "ended, not read"}
    return ", ".join(
        f"{counts.get(state, 0)} {words.get(state, state)}" for state in order if counts.get(state) or state in wanted
    )
