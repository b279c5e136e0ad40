"""``spool top``: the same as ``spool status --watch``."""

from spoolpool.cli.status import top

__all__ = ["top"]
