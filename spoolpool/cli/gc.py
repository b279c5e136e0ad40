"""``spool gc``."""

from __future__ import annotations

import click
import msgspec

from spoolpool import settings
from spoolpool.cli.output import echo_stderr, report_errors
from spoolpool.maintenance import check, garbage
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_DAYS = click.FloatRange(min=0)


@click.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.option("-n", "--dry-run", is_flag=True, help="List what would go, and keep it.")
@click.option("--results", type=_DAYS, help="Days for which outcomes that nobody collected are kept.")
@click.option("--sessions", type=_DAYS, help="The same, of a session without a name whose submitter is provably dead.")
@click.option("--unfinished", type=_DAYS, help="Days for which unfinished writes are kept.")
@click.option("--journals", type=_DAYS, help="Days for which journals are kept.")
@click.option("--cache", type=_DAYS, help="Days for which kept results are, since they were last used.")
@click.option("--logs", type=_DAYS, help="Days for which captured output is kept.")
@report_errors
def gc(directory: str, dry_run: bool, **days: float | None) -> None:
    """Remove from SPOOL what nobody will ask for any more.

    What is kept for how long stands in the spool's spool.json; the options say otherwise for this once. Tasks
    that wait, run or failed are never removed. Outcomes that lost their task, since whoever collected them died
    in the middle of it, go as in 'spool check --repair', with its patience.
    """
    spool = Spool(directory)
    given = {name: value * 86400 for name, value in days.items() if value is not None}
    orphans = [each for each in check.check(spool, deep=False) if each.kind == "orphan outcome"]
    if orphans and not dry_run:
        seconds = max(spool.config.lease, spool.config.caches)
        echo_stderr(f"A second look at {len(orphans)} outcome(s) that lost their task follows in {seconds:g} s.")
        check.repair(spool, orphans)
        orphans = [each for each in orphans if not files.exists(f"{spool.path}/{each.path}")]
    found = garbage.find_garbage(spool, msgspec.structs.replace(spool.config.keep, **given))
    if dry_run:
        for path, why in [
            *((each.path, "an outcome without a task") for each in orphans),
            *((each.path, each.reason) for each in found),
        ]:
            click.echo(f"{path}  ({why})")
    count = len(orphans) + (len(found) if dry_run else garbage.remove(spool, found))
    click.echo(f"{'Would remove' if dry_run else 'Removed'} {count} file(s) and directories.")
