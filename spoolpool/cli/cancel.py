"""``spool cancel``."""

from __future__ import annotations

import click

from spoolpool.cli.output import echo_stderr
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
    for view in chosen:
        if _take_back(view):
            selection.note("cancelled", view)
            click.echo(f"{view.id} was taken back.")
        else:
            request(selection.spool, view.id)
            selection.note("cancel asked", view)
            click.echo(f"{view.id} is to be cancelled.")
    if not chosen:
        echo_stderr("Nothing that fits waits or runs.")


def _take_back(view: TaskView) -> bool:
    """Whether nobody had claimed the task, and now nobody will."""
    header, location = view.header, view.location
    if location.place == "running" or header is None:
        return False
    view.spool.open_session(header.session)  # where the token goes; it may have been closed as empty
    return cancel_task(view.spool, header, location.task_file, delayed=location.place == "held")
