"""``spool traceback``."""

from __future__ import annotations

import click

from spoolpool.cli.output import echo_escaped, escape_lines
from spoolpool.cli.task_selection import Selection, selects
from spoolpool.errors import BadRequest


@click.command()
@selects("raised", "lost", "failed")
def traceback(selection: Selection) -> None:
    """Show the tracebacks of failed tasks, from the headers of their outcomes. Nothing is unpickled.

    \b
      spool traceback SPOOL e7819e56d5
      spool traceback SPOOL --name relax

    The traceback of a collected task is only in the exception that its submitter got.
    """
    chosen = selection.explicit_tasks()
    if not chosen:
        raise BadRequest(
            f"No matching task of {selection.spool.path} has failed: see 'spool ls {selection.spool.path}'."
        )
    for number, view in enumerate(chosen):
        if number:
            click.echo()
        failure = view.outcome.failure if view.outcome else None
        echo_escaped(f"{view.id}  {view.title}")
        if failure is None:
            click.echo(f"It is kept as {view.spool.path}/{view.location.path}; 'spool show' shows its attempts.")
            continue
        echo_escaped(f"{failure.type} on rank {failure.rank}, host {failure.host or 'unknown'}")
        click.echo(escape_lines(failure.traceback or failure.message))
