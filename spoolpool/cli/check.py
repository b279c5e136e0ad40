"""``spool check``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter

import click

from spoolpool.cli.output import echo_escaped, report_errors
from spoolpool.cli.progress_bar import progress_bar
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.maintenance import check as checking
from spoolpool.maintenance import repair as repairing
from spoolpool.protocol.spool import Spool

_MOST_LINES = 100  # findings of one kind: other accounts can cause any number


@click.command()
@takes_spool()
@click.option("--repair", is_flag=True, help="Repair known inconsistencies; leave unknown files alone.")
@click.option("--quick", is_flag=True, help="Check names only; do not read the files.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@report_errors
def check(directory: str, repair: bool, quick: bool, as_json: bool) -> None:
    """Check SPOOL for inconsistencies, also while it is in use.

    \b
      spool check SPOOL
      spool check SPOOL --repair

    The exit code is 0 if there are none, or if all were repaired, else 1. The repair of claims of dead workers takes
    about one lease; the repair of orphan or missing outcomes takes as long as NFS clients cache names (two minutes).
    """
    spool = Spool(directory, read_only=not repair)

    def look() -> list[checking.Finding]:
        with progress_bar("Checking") as progress:
            return checking.check(spool, deep=not quick, progress=progress)

    found = look()
    done = repairing.repair(spool, found) if repair else []
    left = look() if repair else found
    if as_json:
        findings = [{**dataclasses.asdict(each), "repairable": each.repairable} for each in left]
        click.echo(json.dumps({"spool": spool.path, "findings": findings, "done": done}, indent=1))
    else:
        for line in done[:_MOST_LINES]:
            echo_escaped(f"{'done':<14} {line}")
        if len(done) > _MOST_LINES:
            click.echo(f"{'done':<14} {len(done) - _MOST_LINES} more; --json lists all.")
        shown: Counter[str] = Counter()
        for each in left:
            shown[each.kind] += 1
            if shown[each.kind] <= _MOST_LINES:
                echo_escaped(f"{each.kind:<14} {each.path}: {each.text}.")
        for kind, count in shown.items():
            if count > _MOST_LINES:
                click.echo(f"{kind:<14} {count - _MOST_LINES} more; --json lists all.")
        if not left:
            click.echo(f"{spool.path}: nothing is wrong.")
    sys.exit(1 if left else 0)
