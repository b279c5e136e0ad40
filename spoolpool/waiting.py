"""Tasks that are held back: one that raised waits a while before it is tried again.

How long is measured by each observer with its own monotonic clock, from the moment at which it first saw the
task in ``waiting/``; the worker that put it there saw it first. So no clocks are compared, and the death of that
worker only makes the wait longer.
"""

from __future__ import annotations

import contextlib
import time

from spoolpool import envelope, fsio, layout, task
from spoolpool.claim import requeue_from
from spoolpool.errors import SpoolpoolError
from spoolpool.layout import Token
from spoolpool.spool import Spool
from spoolpool.task import TaskHeader

_LONGEST = 300.0


def delay(header: TaskHeader, attempt: int) -> float:
    """Seconds before this attempt: twice as long each time, five minutes at most."""
    return min(_LONGEST, header.retry_delay * 2.0 ** max(0, attempt - 2))


def hold_back(spool: Spool, token: Token) -> None:
    """Put a claimed task that raised into ``waiting/``; it costs an attempt.

    An error is left to recovery: the claim, if it still stands, is this worker's.
    """
    fsio.move(spool.layout.claimed_token(token), f"{spool.layout.waiting}/{token.requeued().name}")


class Releaser:
    """Lets held-back tasks go on when their time has come. Any number of them may do so at once."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._due: dict[str, float] = {}
        self._headers: dict[str, TaskHeader] = {}

    @property
    def due(self) -> float | None:
        """When the next task that is known here may go on, by this process's monotonic clock."""
        return min(self._due.values(), default=None)

    def round(self) -> int:
        """Look at ``waiting/`` once; returns how many tasks went on."""
        names = {name for name in fsio.names(self._spool.layout.waiting) if layout.parse_token(name)}
        for gone in self._due.keys() - names:
            del self._due[gone], self._headers[gone]
        for new in names - self._due.keys():
            self._notice(new)
        now = time.monotonic()
        released = 0
        for name in [name for name, due in self._due.items() if due <= now]:
            token = layout.parse_token(name)
            assert token is not None  # its name was parsed when it was noticed
            requeue_from(self._spool, f"{self._spool.layout.waiting}/{name}", self._headers[name], token)
            released += 1
            del self._due[name], self._headers[name]
        return released

    def _notice(self, name: str) -> None:
        path = f"{self._spool.layout.waiting}/{name}"
        token = layout.parse_token(name)
        assert token is not None  # the caller has parsed it
        with contextlib.suppress(OSError, SpoolpoolError):  # gone, or unreadable: 'spool check' tells
            fd = fsio.open_file(path)
            try:
                header = task.decode_task(envelope.read_header(fd, fsio.size(fd), path), path)
            finally:
                fsio.close(fd)
            self._headers[name] = header
            self._due[name] = time.monotonic() + delay(header, token.attempt)
