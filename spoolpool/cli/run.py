"""``spool run``; it shares its code with ``spool submit``."""

from spoolpool.cli.submit import run

__all__ = ["run"]
