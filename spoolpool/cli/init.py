"""``spool init``."""

from __future__ import annotations

from typing import Any

import click

from spoolpool import settings
from spoolpool.cli.output import report_errors
from spoolpool.protocol.spool import Spool


@click.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL, type=click.Path(file_okay=False))
@click.option(
    "--durability",
    type=click.Choice(["none", "data", "full"]),
    default="data",
    show_default=True,
    help="What a task survives: none = the crash of a process, data = of the node, full = the loss of power.",
)
@click.option(
    "--lease",
    type=float,
    default=settings.LEASE,
    show_default=True,
    help="Seconds that a claim outlives its worker's last sign of life.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(1, 99),
    default=settings.MAX_ATTEMPTS,
    show_default=True,
    help="Claims of a task that may end with the death of the worker.",
)
@click.option(
    "--caches",
    type=float,
    default=settings.CACHE_SECONDS,
    show_default=True,
    help="Seconds for which a client may see names that are gone (1 on a local filesystem).",
)
@click.option(
    "--output",
    type=click.FloatRange(min=0),
    default=settings.OUTPUT / (1 << 20),
    show_default=True,
    help="MiB that are kept of what one rank of a task prints; 0: none, it goes where the worker's output goes.",
)
@click.option("--signed", is_flag=True, help="Sign every file with a key; then run 'spool key new SPOOL'.")
@click.option("--max-waiting", type=click.IntRange(1), help="Tasks of one user that may wait.  [default: no bound]")
@click.option(
    "--mode",
    type=click.Choice(["private", "group", "dropbox"]),
    default="private",
    show_default=True,
    help="Who may use it: private = you alone, group = the members of --group, dropbox = everybody may drop tasks, "
    "which run as you.",
)
@click.option("--group", metavar="NAME", help="The group of --mode group; a group of your own for --mode dropbox.")
@report_errors
def init(directory: str, mode: str, group: str | None, durability: str, output: float, **options: Any) -> None:
    """Make a new spool in SPOOL, a directory on the filesystem that submitters and workers share.

    \b
      spool init /shared/me/spool                              only you can use it
      spool init /shared/project/spool --mode group --group project
    """
    spool = Spool.create(
        directory,
        mode=mode,  # type: ignore[arg-type]  # click lets nothing else through
        group=group,
        durability=durability,  # type: ignore[arg-type]
        output=int(output * (1 << 20)),
        **options,
    )
    click.echo(f"Made the spool {spool.path} (id {spool.config.id}).")
