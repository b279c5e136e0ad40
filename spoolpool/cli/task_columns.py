"""Columns of lists of tasks: text for people, values for programs, and the order by a column."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click

from spoolpool.cli.output import format_time
from spoolpool.monitor.query import TaskView
from spoolpool.system.text import format_bytes, format_duration


class Column(NamedTuple):
    """Property of tasks."""

    value: Callable[[TaskView], Any]
    """Function that returns the value for programs: of one type for all tasks, or None."""
    text: Callable[[TaskView], str] | None = None
    """Function that returns the text for people; None: that of the value."""
    width: int = 0
    """Characters in a list; of the last column any number."""
    cut: bool = False
    """Whether a text that is longer is cut."""
    right: bool = False
    """Whether the text is aligned to the right."""


def _age(view: TaskView) -> float:
    return max(0.0, time.time() - view.submitted)


def _ran(view: TaskView) -> float | None:
    outcome = view.outcome
    return max(0.0, outcome.ended - outcome.started) if outcome is not None and outcome.started else None


def _used(name: str) -> Callable[[TaskView], float | None]:
    def value(view: TaskView) -> float | None:
        usage = view.outcome.usage if view.outcome is not None else None
        return None if usage is None else getattr(usage, name)

    return value


def _memory(view: TaskView) -> str:
    size = COLUMNS["memory"].value(view)
    return "-" if size is None else format_bytes(size)


def _time_of(name: str) -> Callable[[TaskView], str]:
    return lambda view: format_time(COLUMNS[name].value(view)) or "-"


def _duration_of(name: str) -> Callable[[TaskView], str]:
    def text(view: TaskView) -> str:
        seconds = COLUMNS[name].value(view)
        return "-" if seconds is None else format_duration(seconds, precise=name in _PRECISE)

    return text


COLUMNS: dict[str, Column] = {
    "task": Column(lambda view: view.id, lambda view: view.id[-10:], 10),
    "state": Column(lambda view: view.state, None, 9),
    "age": Column(_age, _duration_of("age"), 6, right=True),
    "user": Column(lambda view: view.owner, None, 8, cut=True),
    "lane": Column(lambda view: view.lane, None, 22, cut=True),
    "queue": Column(lambda view: view.lane.partition(".")[0], None, 8),
    "session": Column(lambda view: view.session, None, 16),
    "name": Column(lambda view: view.name, lambda view: view.name or f"({view.problem})", 14),
    "label": Column(lambda view: view.header.label if view.header else "", lambda view: view.label, 20),
    "arguments": Column(lambda view: view.header.arguments if view.header else "", None, 20),
    "submitted": Column(lambda view: view.submitted, _time_of("submitted"), 19),
    "since": Column(lambda view: view.since, _time_of("since"), 19),
    "started": Column(lambda view: view.outcome.started if view.outcome else 0.0, _time_of("started"), 19),
    "ended": Column(lambda view: view.outcome.ended if view.outcome else 0.0, _time_of("ended"), 19),
    "ran": Column(_ran, _duration_of("ran"), 7, right=True),
    "cpu": Column(_used("cpu"), _duration_of("cpu"), 7, right=True),
    "memory": Column(_used("memory"), _memory, 9, right=True),
    "claim": Column(lambda view: view.location.task_file.claim, None, 5, right=True),
    "attempt": Column(lambda view: view.location.task_file.attempt, None, 7, right=True),
    "worker": Column(lambda view: view.location.task_file.worker, None, 16),
    "host": Column(lambda view: view.header.host if view.header else "", None, 12),
    "path": Column(lambda view: view.location.path, None, 40),
    "problem": Column(lambda view: view.problem, None, 20),
}
"""All columns by name. The values and names are those of JSON."""

USUAL = ("task", "state", "age", "user", "lane", "name", "label")
LONG = ("task", "state", "age", "user", "lane", "session", "name", "label")

_PRECISE = ("cpu", "ran")
_RECORD = (
    *("task", "state", "path", "lane", "session", "name", "label", "arguments", "user", "submitted", "since", "claim"),
    *("attempt", "worker", "host", "started", "ended", "cpu", "memory", "problem"),
)
_LONG_WIDTHS = {"task": 29, "lane": 24}


def record(view: TaskView, columns: Sequence[str] = _RECORD) -> dict[str, Any]:
    """Return a task as JSON. The keys are documented in docs/cli.md."""
    return {name: COLUMNS[name].value(view) for name in columns}


class Table(NamedTuple):
    """Form of a list of tasks; ``long``: no text is cut."""

    columns: Sequence[str]
    long: bool = False

    def title(self) -> str:
        """Return the line with the names of the columns."""
        return self._line([name.upper() for name in self.columns])

    def row(self, view: TaskView) -> str:
        """Return the line of a task, not escaped."""
        return self._line([self._text(name, view) for name in self.columns])

    def _text(self, name: str, view: TaskView) -> str:
        column = COLUMNS[name]
        text = str(column.value(view)) if column.text is None or (self.long and name == "task") else column.text(view)
        return text[: column.width] if column.cut and not self.long else text

    def _line(self, texts: Sequence[str]) -> str:
        cells = []
        for name, text in zip(self.columns, texts, strict=True):
            column = COLUMNS[name]
            width = _LONG_WIDTHS.get(name, column.width) if self.long else column.width
            cells.append(f"{text:>{width}}" if column.right else f"{text:<{width}}")
        return "  ".join(cells).rstrip()


class ColumnNames(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in newer versions of click alone
    """Names of columns, separated by commas."""

    name = "columns"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names; a usage error lists all columns if one of them is unknown."""
        names = tuple(filter(None, (each.strip().lower() for each in value.split(","))))
        unknown = [each for each in names if each not in COLUMNS]
        if unknown or not names:
            wrong = f"there is no column {', '.join(map(repr, unknown))}" if unknown else "no column is named"
            self.fail(f"{wrong}; the columns are {', '.join(COLUMNS)}.", param, ctx)
        return names


def sort_key(name: str) -> Callable[[TaskView], tuple[bool, Any]]:
    """Return the sort key of tasks by a column; tasks without a value come first."""

    def key(view: TaskView) -> tuple[bool, Any]:
        value = COLUMNS[name].value(view)
        return (False, 0) if value is None else (True, value)

    return key
