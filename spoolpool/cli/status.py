"""``spool status``."""

from __future__ import annotations

import click

from spoolpool import settings
from spoolpool.cli.output import explained, shown


@click.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@explained
def status(directory: str) -> None:
    """Show what waits in SPOOL, what runs, who works, and first of all what blocks."""
    from spoolpool.report import status as look
    from spoolpool.spool import Spool

    spool = Spool(directory)
    found = look(spool)
    for lane, reason in found.blocked.items():
        click.echo(shown(f"BLOCKED  {found.waiting[lane]} task(s) of {lane}: {reason}."))
    if not found.groups and found.held_back:
        click.echo(f"BLOCKED  {found.held_back} task(s) that are to be tried again: no worker group is alive.")
    if not found.groups and found.running:
        click.echo(f"BLOCKED  {found.running} task(s) of groups that died: no worker group is alive to take them over.")
    click.echo(f"Spool    {spool.path}")
    click.echo(f"Waiting  {sum(found.waiting.values())}")
    for lane, count in found.waiting.items():
        click.echo(f"         {count:>8}  {lane}")
    if found.held_back:
        click.echo(f"Held     {found.held_back} to be tried again")
    click.echo(f"Running  {found.running}")
    click.echo(f"Done     {found.to_collect} to be collected")
    click.echo(f"Failed   {found.failed}")
    click.echo(f"Groups   {len(found.groups)}")
    for info in found.groups:
        job = f" job {info.job}" if info.job else ""
        tags = f", tags {', '.join(info.tags)}" if info.tags else ""
        text = (
            f"         {info.worker}  {info.process.host}{job}  {info.ranks} rank(s) x {info.threads} thread(s)"
            f", {info.gpus} GPU(s), Python {info.python}{tags}, by {info.user}"
        )
        click.echo(shown(text))
