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
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
def rm(selection: Selection, yes: bool) -> None:
    """Remove failed tasks and uncollected outcomes.

    \b
      spool rm SPOOL --state failed --older-than 7d
      spool rm SPOOL --session sweep --yes

    Futures that wait for removed tasks fail with TaskVanished. Queued and running tasks must be cancelled first: 'spool
    cancel'.
    """
    chosen = selection.explicit_files()
    confirm("remove", chosen, yes)
    kept = False
    for view in chosen:
        if needed := needed_by(view):
            kept = True
            echo_stderr(f"{view.id} stays: task {needed} needs its result. Cancel that task first.")
        elif remove(view):
            selection.log_event("removed", view)
            click.echo(f"{view.id} was removed.")
        else:
            click.echo(f"{view.id} was already collected or moved.")
    if not chosen and not selection.is_incomplete:
        echo_stderr("No matching task is done or failed.")
    if kept:
        sys.exit(SpoolpoolError.exit_code)


def needed_by(view: TaskView) -> str:
    """Return a task that depends on this one; empty if there is none."""
    if view.location.place != "done":
        return ""
    links = map(parse_link, files.list_names(f"{view.spool.layout.needs}/{view.session}"))
    return next((link.needed_by for link in links if link is not None and link.task == view.id), "")


def remove(view: TaskView) -> bool:
    """Remove a task and its outcome like a collector; return False if another process removed it first."""
    spool, task_file, header = view.spool, view.location.task_file, view.header
    parent, _, name = view.location.path.rpartition("/")
    place = spool.directory(f"{spool.layout.root}/{parent}") if "/" in parent else f"{spool.layout.root}/{parent}"
    if not files.exists(f"{place}/{name}"):  # it may have been retried since, and then it needs its links
        return False
    if header is not None:
        remove_links(spool, header)
    # the task file first: an orphan outcome is garbage, a task file without its outcome would be a lost result
    removed = files.remove(f"{place}/{name}")
    if removed and view.location.place == "done" and task_file.worker != CANCELLED:
        outgoing = spool.directory(f"{spool.layout.outgoing}/{view.session}")
        files.remove(f"{outgoing}/{task_file.name}")
    return removed
