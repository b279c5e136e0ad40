"""``spool ls``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from spoolpool.cli.output import echo_escaped
from spoolpool.cli.task_selection import Selection, selects
from spoolpool.monitor.query import TaskView
from spoolpool.system.text import format_duration

_AT_ONCE = 1000  # ids that are written at once


@click.command()
@selects()
@click.option("-l", "--long", is_flag=True, help="Print full ids, sessions and lanes.")
@click.option("-q", "--ids", is_flag=True, help="Print ids only, for scripts; opens no file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per task and line.")
@click.option("-n", "--limit", type=click.IntRange(1), help="Maximum number of tasks.")
def ls(selection: Selection, long: bool, ids: bool, as_json: bool, limit: int | None) -> None:
    """List the tasks of SPOOL: all tasks, named tasks, or tasks that match the filters.

    \b
      spool ls SPOOL                               all tasks
      spool ls SPOOL --state running --user ada    running tasks of ada
      spool ls SPOOL --name relax --older-than 2h  by function and age
      spool ls SPOOL -q --state failed             ids, for a script

    A TASK is an id, or the beginning or end of one id.
    """
    if ids:
        _print_ids(islice(selection.tasks(), limit))
        return
    titled = sys.stdout.isatty() and not as_json
    for view in islice(selection.tasks(), limit):
        if titled:
            click.echo(
                click.style(_row("TASK", "STATE", "AGE", "USER", "LANE", "SESSION", "NAME", long=long), bold=True)
            )
            titled = False
        if as_json:
            click.echo(json.dumps(record(view)))
        else:
            since = format_duration(time.time() - view.submitted)
            name = view.name or f"({view.problem})"
            row = _row(view.id, view.state, since, view.owner, view.lane, view.session, name, long=long)
            echo_escaped(row)


def _print_ids(views: Iterator[TaskView]) -> None:
    while ids := [view.id for view in islice(views, _AT_ONCE)]:
        click.echo("\n".join(ids))


def _row(task: str, state: str, since: str, user: str, lane: str, session: str, name: str, *, long: bool) -> str:
    """Return a row: at most 80 characters, unless the name is long; ``long``: nothing is cut."""
    if long:
        return f"{task:<29}  {state:<9}  {since:>6}  {user:<8}  {lane:<24}  {session:<16}  {name}"
    return f"{task[-10:]:<10}  {state:<9}  {since:>6}  {user[:8]:<8}  {lane[:22]:<22}  {name}"


def record(view: TaskView) -> dict[str, Any]:
    """Return a task as JSON. The keys are documented in docs/cli.md."""
    task_file, header, outcome = view.location.task_file, view.header, view.outcome
    return {
        "task": view.id,
        "state": view.state,
        "path": view.location.path,
        "lane": view.lane,
        "session": view.session,
        "name": view.name,
        "user": view.owner,
        "submitted": view.submitted,
        "since": view.since,
        "claim": task_file.claim,
        "attempt": task_file.attempt,
        "worker": task_file.worker,
        "host": header.host if header else "",
        "started": outcome.started if outcome else 0.0,
        "ended": outcome.ended if outcome else 0.0,
        "problem": view.problem,
    }
