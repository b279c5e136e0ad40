"""``spool retry``."""

from __future__ import annotations

import click

from spoolpool.cli.output import echo_stderr
from spoolpool.cli.task_selection import Selection, selects
from spoolpool.errors import SpoolpoolError
from spoolpool.protocol.failed_tasks import retry_task


@click.command()
@selects("failed", "lost", "raised", usual=("failed", "lost"), everything=True)
def retry(selection: Selection) -> None:
    """Requeue failed and lost tasks, and named ones that raised, under the same ids and with all their attempts.

    \b
      spool retry SPOOL e7819e56d5
      spool retry SPOOL --name relax --older-than 1h
      spool retry SPOOL --session sweep --state raised
      spool retry SPOOL --all

    The sessions that submitted the tasks get the outcomes.
    """
    failures: list[SpoolpoolError] = []
    chosen = selection.explicit_files()
    for view in chosen:
        try:
            session = view.session if view.location.place == "done" else ""
            click.echo(f"{retry_task(selection.spool, view.location.task_file.name, session)} waits again.")
            selection.log_event("retried", view)
        except SpoolpoolError as error:  # continue with the other tasks
            failures.append(error)
    for failure in failures[1:]:
        echo_stderr(str(failure))
    if failures:
        raise failures[0]
    if not chosen and not selection.is_incomplete:
        echo_stderr("No matching task is lost or failed; tasks that raised need their id or --state raised.")
