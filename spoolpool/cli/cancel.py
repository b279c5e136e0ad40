"""``spool cancel``."""

from __future__ import annotations

import click

from spoolpool.cli.output import say
from spoolpool.cli.task_selection import Selection, confirm, selects
from spoolpool.monitor.query import TaskView
from spoolpool.protocol.cancel import cancel_task, request


@click.command()
@selects("held", "waiting", "running", everything=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def cancel(selection: Selection, yes: bool) -> None:
    """Take tasks back that wait, and ask for an end of those that run.

    \b
      spool cancel SPOOL e7819e56d5
      spool cancel SPOOL --session sweep --state waiting --yes

    Who submitted them sees them as cancelled.
    """
    chosen = selection.chosen()
    confirm("cancel", chosen, yes)
    for sight in chosen:
        if _take_back(sight):
            selection.note("cancelled", sight)
            click.echo(f"{sight.id} was taken back.")
        else:
            request(selection.spool, sight.id)
            selection.note("cancel asked", sight)
            click.echo(f"{sight.id} is to be cancelled.")
    if not chosen:
        say("Nothing that fits waits or runs.")


def _take_back(sight: TaskView) -> bool:
    """Whether nobody had claimed the task, and now nobody will."""
    header, standing = sight.header, sight.location
    if standing.place == "running" or header is None:
        return False
    sight.spool.open_session(header.session)  # where the token goes; it may have been closed as empty
    return cancel_task(sight.spool, header, standing.task_file, delayed=standing.place == "held")
