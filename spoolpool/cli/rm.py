"""``spool rm``."""

from __future__ import annotations

import sys

import click

from spoolpool.cli.output import echo_stderr
from spoolpool.cli.task_selection import Selection, confirm, selects
from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import CANCELLED, parse_link
from spoolpool.monitor.query import TaskView
from spoolpool.protocol.dependencies import remove_links
from spoolpool.system import files


@click.command()
@selects("done", "raised", "lost", "cancelled", "failed", everything=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(selection: Selection, yes: bool) -> None:
    """Remove failed tasks, and outcomes that nobody has collected.

    \b
      spool rm SPOOL --state failed --older-than 7d
      spool rm SPOOL --session sweep --yes

    Who still waits for them waits in vain. Tasks that wait or run are cancelled first: 'spool cancel'.
    """
    chosen = selection.chosen()
    confirm("remove", chosen, yes)
    kept = False
    for view in chosen:
        if needed := needed_by(view):
            kept = True
            echo_stderr(f"{view.id} stays: task {needed} waits for its result. Cancel that first.")
        elif remove(view):
            selection.note("removed", view)
            click.echo(f"{view.id} was removed.")
        else:
            click.echo(f"{view.id} is gone: somebody else took it.")
    if not chosen:
        echo_stderr("Nothing that fits is done or failed.")
    if kept:
        sys.exit(SpoolpoolError.exit_code)


def needed_by(view: TaskView) -> str:
    """A task that needs the result of this one; empty if none does."""
    if view.location.place != "done":
        return ""
    edges = map(parse_link, files.list_names(f"{view.spool.layout.needs}/{view.session}"))
    return next((edge.needed_by for edge in edges if edge is not None and edge.task == view.id), "")


def remove(view: TaskView) -> bool:
    """Take a task away for good, as whoever collects it; False if somebody else did."""
    spool, task_file, header = view.spool, view.location.task_file, view.header
    if header is not None:
        remove_links(spool, header)
    # the token first: an outcome without a token is rubbish, a token without its outcome would be a loss
    parent, _, name = view.location.path.rpartition("/")
    place = spool.directory(f"{spool.path}/{parent}") if "/" in parent else f"{spool.path}/{parent}"
    removed = files.remove(f"{place}/{name}")
    if removed and view.location.place == "done" and task_file.worker != CANCELLED:
        outgoing = spool.directory(f"{spool.layout.outgoing}/{view.session}")
        files.remove(f"{outgoing}/{task_file.name}")
    return removed
