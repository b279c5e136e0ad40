"""``spool ls``."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any

import click

from spoolpool.cli.output import echo_escaped
from spoolpool.cli.task_columns import COLUMNS, LONG, USUAL, ColumnNames, Table, record, sort_key
from spoolpool.cli.task_selection import Selection, selects
from spoolpool.monitor.query import TaskView
from spoolpool.system.text import escape_line

_AT_ONCE = 1000  # ids that are written at once


@click.command()
@selects()
@click.option("-l", "--long", is_flag=True, help="Print full ids, sessions and lanes.")
@click.option("-q", "--ids", is_flag=True, help="Print ids only, for scripts; opens no file but those of packs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per task and line.")
@click.option("--columns", type=ColumnNames(), metavar="NAMES", help="Columns, as in task,state,label.")
@click.option("--sort", type=click.Choice(tuple(COLUMNS)), metavar="NAME", help="Column that decides the order.")
@click.option("-r", "--reverse", is_flag=True, help="Reverse the order.")
@click.option("--no-header", is_flag=True, help="Leave out the line with the names of the columns.")
@click.option("-n", "--limit", type=click.IntRange(1), help="Maximum number of tasks.")
def ls(
    selection: Selection,
    long: bool,
    ids: bool,
    as_json: bool,
    columns: tuple[str, ...] | None,
    sort: str | None,
    reverse: bool,
    no_header: bool,
    limit: int | None,
) -> None:
    """List the tasks of SPOOL: all tasks, named tasks, or tasks that match the filters.

    \b
      spool ls SPOOL                               all tasks
      spool ls SPOOL --state running --user ada    running tasks of ada
      spool ls SPOOL --name relax --older-than 2h  by function and age
      spool ls SPOOL --label 'Al *' --sort age     by label, the youngest first
      spool ls SPOOL --columns task,label,ran      other columns
      spool ls SPOOL -q --state failed             ids, for a script

    A TASK is an id, or the beginning or end of one id.
    """
    if ids and sort is None and not reverse:
        _print_ids(islice(selection.tasks(), limit))
        return
    table = Table(columns or (LONG if long else USUAL), long)

    def line_of(view: TaskView) -> str:
        if ids:
            return view.id
        if as_json:
            return json.dumps(record(view, columns) if columns else record(view))
        return escape_line(table.row(view))

    titled = not (ids or as_json or no_header)
    for line in _in_order(selection.tasks(), line_of, sort, reverse, limit):
        if titled:
            click.echo(click.style(table.title(), bold=True))
            titled = False
        echo_escaped(line)


def _print_ids(views: Iterator[TaskView]) -> None:
    while ids := [view.id for view in islice(views, _AT_ONCE)]:
        click.echo("\n".join(ids))


def _in_order(
    views: Iterable[TaskView], line_of: Any, sort: str | None, reverse: bool, limit: int | None
) -> Iterator[str]:
    """Yield the lines of tasks: as they are found, or sorted; then only the lines are kept in memory."""
    if sort is None and not reverse:
        yield from map(line_of, islice(views, limit))
        return
    number = count()
    key = (lambda _: (True, 0)) if sort is None else sort_key(sort)
    # the number keeps the order of equal tasks, and lines are not compared
    keyed = ((key(view), next(number), line_of(view)) for view in views)
    if limit is None:
        found = sorted(keyed, reverse=reverse)
    else:
        found = (heapq.nlargest if reverse else heapq.nsmallest)(limit, keyed)
    yield from (line for *_, line in found)
