"""``spool gc``."""

from __future__ import annotations

import click

from spoolpool import settings
from spoolpool.cli.output import explained


@click.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.option("-n", "--dry-run", is_flag=True, help="List what would go, and keep it.")
@click.option("--results", type=float, help="Days for which outcomes that nobody collected are kept.")
@click.option("--unfinished", type=float, help="Days for which unfinished writes are kept.")
@click.option("--journals", type=float, help="Days for which journals are kept.")
@click.option("--logs", type=float, help="Days for which captured output is kept.")
@explained
def gc(directory: str, dry_run: bool, **days: float | None) -> None:
    """Remove from SPOOL what nobody will ask for any more.

    What is kept for how long stands in the spool's spool.json; the options say otherwise for this once. Tasks
    that wait, run or failed are never removed.
    """
    import msgspec

    from spoolpool import garbage
    from spoolpool.spool import Spool

    spool = Spool(directory)
    given = {name: value * 86400 for name, value in days.items() if value is not None}
    found = garbage.rubbish(spool, msgspec.structs.replace(spool.config.keep, **given))
    if dry_run:
        for each in found:
            click.echo(f"{each.path}  ({each.why})")
    count = len(found) if dry_run else garbage.remove(spool, found)
    click.echo(f"{'Would remove' if dry_run else 'Removed'} {count} file(s) and directories.")
