"""What an operation of the filesystem that failed means for whoever asked for it."""

from __future__ import annotations

import os

from spoolpool.errors import SpoolDenied, SpoolFull, SpoolpoolError
from spoolpool.system import files


class explained:  # noqa: N801  a context, as contextlib's; a generator would cost three times as much at each task
    """Turn an ``OSError`` into an error that says what was being done, where, and what to do."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if not isinstance(error, OSError):
            return
        doing = self._doing
        where = f" ({files.display_path(os.fsdecode(error.filename))})" if error.filename else ""
        if error.errno in files.FULL:
            raise SpoolFull(
                f"Cannot {doing}: {error.strerror}{where}. Free space, inodes or quota there; nothing of "
                "it was left in the spool."
            ) from error
        if error.errno in files.DENIED:
            raise SpoolDenied(
                f"Cannot {doing}: {error.strerror}{where}. Ask the owner of the spool for the right to "
                "write, or use another spool."
            ) from error
        raise SpoolpoolError(f"Cannot {doing}: {error.strerror}{where}.") from error
