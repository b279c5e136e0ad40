"""What happened: one append-only file of JSON lines per writer, for people and reports.

Nothing in the protocol depends on it. Lines are gathered for up to a second, so that a task costs no
system call for its line; a crash loses the last second of them.
"""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

from spoolpool import fsio
from spoolpool.identity import hostname
from spoolpool.spool import Spool

_encode = msgspec.json.Encoder().encode


class Journal:
    """The journal of one writer: a worker or a session. Not for use from several threads at once."""

    def __init__(self, spool: Spool, writer: str) -> None:
        self._path = f"{spool.layout.journal}/{writer}.jsonl"
        self._lines: list[bytes] = []
        self._flushed = time.monotonic()
        self._fd = -1
        self._who = {"by": writer, "uid": os.geteuid(), "host": hostname()}

    def write(self, event: str, **fields: object) -> None:
        """Note an event; ``fields`` are JSON values."""
        self._lines.append(_encode({"t": time.time(), "event": event, **self._who, **fields}))
        if len(self._lines) >= 256 or time.monotonic() - self._flushed > 1.0:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered; a journal that cannot be written is no reason to stop work."""
        if not self._lines:
            return
        self._flushed = time.monotonic()
        data = b"\n".join(self._lines) + b"\n"
        with contextlib.suppress(OSError):
            if self._fd < 0:
                self._fd = fsio.open_append(self._path)
            fsio.append(self._fd, data)
            self._lines.clear()
        if len(self._lines) > 100_000:  # the disk stays full
            del self._lines[:50_000]

    def close(self) -> None:
        """Flush and close; harmless when repeated."""
        self.flush()
        if self._fd >= 0:
            fsio.close(self._fd)
            self._fd = -1
