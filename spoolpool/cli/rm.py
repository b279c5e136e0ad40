"""``spool rm``."""

from __future__ import annotations

import click

from spoolpool.cli.output import say
from spoolpool.cli.selection import Selection, confirm, selects


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
    from spoolpool import fsio, layout

    chosen = selection.chosen()
    confirm("remove", chosen, yes)
    for sight in chosen:
        session, token = sight.session, sight.standing.token
        if sight.header is not None:  # nothing is needed for it any more
            selection.spool.remove_edges(sight.header)
        # the token first: an outcome without a token is rubbish, a token without its outcome would be a loss
        removed = fsio.remove(f"{selection.spool.path}/{sight.standing.path}")
        if removed and sight.standing.place == "done" and token.worker != layout.CANCELLED:
            fsio.remove(selection.spool.layout.outcome(session, token))
        if removed:
            selection.note("removed", sight)
        click.echo(f"{sight.id} {'was removed' if removed else 'is gone: somebody else took it'}.")
    if not chosen:
        say("Nothing that fits is done or failed.")
