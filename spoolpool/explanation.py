"""What an operation of the filesystem that failed means for whoever asked for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from spoolpool import fsio
from spoolpool.errors import SpoolDenied, SpoolFull, SpoolpoolError


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an ``OSError`` into an error that says what was being done, where, and what to do."""
    try:
        yield
    except OSError as error:
        where = f" ({fsio.plain(os.fsdecode(error.filename))})" if error.filename else ""
        if error.errno in fsio.FULL:
            raise SpoolFull(
                f"Cannot {doing}: {error.strerror}{where}. Free space, inodes or quota there; nothing of "
                "it was left in the spool."
            ) from error
        if error.errno in fsio.DENIED:
            raise SpoolDenied(
                f"Cannot {doing}: {error.strerror}{where}. Ask the owner of the spool for the right to "
                "write, or use another spool."
            ) from error
        raise SpoolpoolError(f"Cannot {doing}: {error.strerror}{where}.") from error
