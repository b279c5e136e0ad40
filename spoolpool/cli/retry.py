"""``spool retry``."""

from __future__ import annotations

import click

from spoolpool import settings
from spoolpool.cli.output import explained
from spoolpool.errors import BadRequest


@click.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.argument("tasks", metavar="[TASK]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every task that is kept in failed/.")
@explained
def retry(directory: str, tasks: tuple[str, ...], everything: bool) -> None:
    """Let failed tasks run again, under the same ids and with all their attempts.

    A TASK is an id, or the beginning or end of one.
    """
    from spoolpool import fsio, layout
    from spoolpool.claim import retry as run_again
    from spoolpool.spool import Spool

    spool = Spool(directory)
    kept = {name: token for name in fsio.names(spool.layout.failed) if (token := layout.parse_token(name))}
    if everything == bool(tasks):
        raise BadRequest(f"Name tasks, or --all. There are {len(kept)} in {spool.layout.failed}.")
    chosen = list(kept) if everything else []
    for wanted in tasks:
        fits = [name for name, token in kept.items() if token.task.startswith(wanted) or token.task.endswith(wanted)]
        if len({kept[name].task for name in fits}) != 1:
            raise BadRequest(f"{wanted!r} fits {len(fits)} tasks in {spool.layout.failed}; it must fit one.")
        chosen += fits
    for name in sorted(chosen):
        click.echo(f"{run_again(spool, name)} waits again.")
