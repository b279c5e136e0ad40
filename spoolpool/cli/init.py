"""``spool init`` and ``spool accept``: create a spool, and accept one that is new here."""

from __future__ import annotations

from typing import Any

import click

from spoolpool import settings
from spoolpool.cli.output import echo_escaped, report_errors
from spoolpool.cli.quantities import Duration, Mebibytes
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.protocol.spool import Spool
from spoolpool.security import known_spools


@click.command()
@takes_spool(path=click.Path(file_okay=False))
@click.option(
    "--durability",
    type=click.Choice(["none", "data", "full"]),
    default="data",
    show_default=True,
    help="Events that tasks survive: none = crash of a process, data = also of the node, full = also loss of power.",
)
@click.option(
    "--lease",
    type=Duration(checks_range=False),
    help=f"Seconds from the last heartbeat of a worker until its claims expire.  [default: {settings.LEASE:g}, or as "
    "'spool config' shows]",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(1, 99),
    default=settings.MAX_ATTEMPTS,
    show_default=True,
    help="Attempts of a task that may end with the death of its worker.",
)
@click.option(
    "--caches",
    type=Duration(checks_range=False),
    help="Seconds for which a client of the filesystem may see removed names (1 on a local filesystem).  "
    f"[default: {settings.CACHE_SECONDS:g}, or as 'spool config' shows]",
)
@click.option(
    "--output",
    type=Mebibytes(),
    default=f"{settings.OUTPUT >> 20}",
    show_default=True,
    help="MiB of captured output per task and rank; 0: not captured, it goes to the output of the worker.",
)
@click.option(
    "--journal",
    type=Mebibytes(),
    default=f"{settings.JOURNAL >> 20}",
    show_default=True,
    help="MiB of all journals; beyond it the oldest events are replaced by their numbers.",
)
@click.option("--signed", is_flag=True, help="Sign every file with a key; 'spool key new SPOOL' then creates the key.")
@click.option("--max-waiting", type=click.IntRange(1), help="Limit of queued tasks per user.  [default: no limit]")
@click.option(
    "--mode",
    type=click.Choice(["private", "group", "dropbox"]),
    default="private",
    show_default=True,
    help="Permissions: private = only you, group = the members of --group, dropbox = every account may submit tasks, "
    "which run as you.",
)
@click.option("--group", metavar="NAME", help="Group of --mode group; for --mode dropbox a group of your own.")
@report_errors
def init(directory: str, mode: str, group: str | None, durability: str, output: int, **options: Any) -> None:
    """Create a spool in SPOOL, a directory on the filesystem that submitters and workers share.

    \b
      spool init /shared/me/spool                              for you only
      spool init /shared/project/spool --mode group --group project
    """
    spool = Spool.create(
        directory,
        mode=mode,  # type: ignore[arg-type]  # checked by click
        group=group,
        durability=durability,  # type: ignore[arg-type]
        output=output,
        **options,
    )
    click.echo(f"Created the spool {spool.path} (id {spool.config.id}).")


@click.command()
@takes_spool()
@report_errors
def accept(directory: str) -> None:
    """Accept SPOOL with its present owner, mode and id, if it is new here or differs from the one that was known.

    \b
      spool accept /shared/project/spool

    The first use of a spool records them for your account. A spool that was replaced is refused, and one that others
    may have put there is refused at its first use. Ask its owner for the id before you accept it: 'spool init' printed
    it. Your processes then submit to the spool, and serve it. No account becomes trusted to run code as yours, except
    the owner of a dropbox.
    """
    spool = Spool(directory, accept=True)
    echo_escaped(f"Accepted {spool.path} of {spool.identity}, recorded in {known_spools.record_path(spool.path)}.")
