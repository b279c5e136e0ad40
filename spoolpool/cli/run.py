"""``spool run`` shares all but its words with ``spool submit``."""

from spoolpool.cli.submit import run

__all__ = ["run"]
