"""``spool gc``."""

from __future__ import annotations

import click
import msgspec

from spoolpool.cli.output import echo_escaped, echo_stderr, report_errors
from spoolpool.cli.quantities import Days
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.client.temporary_spool import abandoned_spools
from spoolpool.maintenance import check, garbage, repair
from spoolpool.protocol import abandoned_spools as abandoned
from spoolpool.protocol.spool import Spool
from spoolpool.system import files


@click.command()
@takes_spool()
@click.option("-n", "--dry-run", is_flag=True, help="List the files that would be removed, with the reasons.")
@click.option("--results", type=Days(), help="Days to keep uncollected outcomes.")
@click.option("--sessions", type=Days(), help="The same, for unnamed sessions whose submitter is provably dead.")
@click.option("--unfinished", type=Days(), help="Days to keep unfinished writes.")
@click.option("--journals", type=Days(), help="Days to keep journals.")
@click.option("--cache", type=Days(), help="Days to keep cached results after their last use.")
@click.option("--logs", type=Days(), help="Days to keep captured output.")
@click.option("--temporary", is_flag=True, help="Also temporary spools on this host whose executors were killed.")
@report_errors
def gc(directory: str, dry_run: bool, temporary: bool, **periods: float | None) -> None:
    """Remove expired results, logs and journals from SPOOL.

    \b
      spool gc SPOOL --dry-run
      spool gc SPOOL --results 7d

    The options override, for this run, the periods in the spool's spool.json. Queued, running and failed tasks are
    never removed, nor is anything of a submitter that may be alive. Old files that stay for that reason, or because
    they cannot be read, are listed on standard error. Orphan outcomes, whose collector died halfway, are removed as by
    'spool check --repair', after the same delay.
    """
    spool = Spool(directory)
    given = {name: seconds for name, seconds in periods.items() if seconds is not None}
    orphans = [each for each in check.check(spool, deep=False) if each.kind == "orphan outcome"]
    if orphans and not dry_run:
        seconds = max(spool.config.lease, spool.config.caches)
        echo_stderr(f"Waiting {seconds:g} s before the second check of {len(orphans)} orphan outcome(s).")
        repair.repair(spool, orphans)
        orphans = [each for each in orphans if not files.exists(f"{spool.layout.root}/{each.path}")]
    found = garbage.find_garbage(spool, msgspec.structs.replace(spool.config.keep, **given), _report)
    if dry_run:
        for path, reason in [
            *((each.path, "orphan outcome") for each in orphans),
            *((each.path, each.reason) for each in found),
        ]:
            click.echo(f"{path}  ({reason})")
    count = len(orphans) + (len(found) if dry_run else garbage.remove(spool, found, _report))
    if temporary:
        count += _collect_temporary(dry_run=dry_run)
    click.echo(f"{'Would remove' if dry_run else 'Removed'} {count} file(s) and directories.")


def _collect_temporary(*, dry_run: bool) -> int:
    """Remove the temporary spools of dead processes, or list them; return the number of their directories."""
    found = abandoned_spools()
    if not dry_run:
        return len(abandoned.remove(found))
    found = abandoned.removable(found)
    for each in found:
        echo_escaped(f"{each.path}  (temporary spool of a process that was killed)")
    return len(found)


def _report(path: str, reason: str) -> None:
    echo_escaped(f"{path} stays: {reason}.", err=True)
