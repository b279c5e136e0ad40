"""``spool accept``."""

from __future__ import annotations

import click

from spoolpool.cli.output import echo_escaped, report_errors
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.protocol.spool import Spool
from spoolpool.security import known_spools


@click.command()
@takes_spool()
@report_errors
def accept(directory: str) -> None:
    """Accept SPOOL with its present owner, mode and id, if it is new here or differs from the one that was known.

    The first use of a spool records them for your account. A spool that was replaced is refused, and one that others
    may have put there is refused at its first use. Ask its owner for the id before you accept it: 'spool init' printed
    it. Your processes then submit to the spool, and serve it. No account becomes trusted to run code as yours, except
    the owner of a dropbox.
    """
    spool = Spool(directory, accept=True)
    echo_escaped(f"Accepted {spool.path} of {spool.identity}, recorded in {known_spools.record_path(spool.path)}.")
