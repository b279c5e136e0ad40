"""``spool cancel``."""

from __future__ import annotations

import click

from spoolpool.cli.output import echo_stderr
from spoolpool.cli.task_selection import Selection, confirm, selects
from spoolpool.monitor.calls import CallView
from spoolpool.monitor.query import TaskView
from spoolpool.protocol.cancel import cancel_task, request


@click.command()
@selects("held", "waiting", "running", everything=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
def cancel(selection: Selection, yes: bool) -> None:
    """Cancel queued tasks, and request the cancellation of running tasks.

    \b
      spool cancel SPOOL e7819e56d5
      spool cancel SPOOL --session sweep --state waiting --yes

    Their futures become cancelled.
    """
    chosen = selection.explicit_tasks()
    confirm("cancel", chosen, yes)
    for view in chosen:
        if _cancel_queued(view):
            selection.log_event("cancelled", view)
            click.echo(f"{view.id} was cancelled.")
        else:
            call = view.number if isinstance(view, CallView) else None
            request(selection.spool, view.location.task_file.task, call)
            selection.log_event("cancel asked", view)
            state = "running" if view.state == "running" else "waiting in a pack"
            click.echo(f"{view.id} is {state}; its cancellation was requested.")
    if not chosen:
        echo_stderr("No matching task is queued or running.")


def _cancel_queued(view: TaskView) -> bool:
    """Cancel a task that is not claimed yet; return whether that was possible."""
    header, location = view.header, view.location
    if location.place == "running" or header is None or isinstance(view, CallView):
        return False  # a call shares its file: its worker looks for the request before it begins the call
    view.spool.open_session(header.session)  # destination of the task file; may have been removed while empty
    return cancel_task(view.spool, header, location.task_file, delayed=location.place == "held")
