"""``spool top``: 'spool status --watch', in fewer letters."""

from spoolpool.cli.status import top

__all__ = ["top"]
