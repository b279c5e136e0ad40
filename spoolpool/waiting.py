"""Tasks that are held back: one that raised waits a while before it is tried again.

How long is measured by each observer with its own monotonic clock, from the moment at which it first saw the
task in ``waiting/``; the worker that put it there saw it first. So no clocks are compared, and the death of that
worker only makes the wait longer.
"""

from __future__ import annotations

import contextlib
import logging
import time

from spoolpool import fsio, layout
from spoolpool.claim import read_task, requeue_from
from spoolpool.errors import SpoolpoolError
from spoolpool.layout import Token
from spoolpool.spool import Spool
from spoolpool.task import TaskHeader

log = logging.getLogger(__name__)

_LONGEST = 300.0
_PUT_OFF = 1.0  # seconds after which something that failed is tried again


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
        self._due: dict[Token, float] = {}
        self._headers: dict[Token, TaskHeader] = {}

    @property
    def due(self) -> float | None:
        """When the next task that is known here may go on, by this process's monotonic clock."""
        return min(self._due.values(), default=None)

    def round(self) -> int:
        """Look at ``waiting/`` once; returns how many tasks went on.

        Nothing is raised: what cannot be done now is done a while later.
        """
        waiting = self._spool.layout.waiting
        try:
            tokens = {token for token in map(layout.parse_token, fsio.names(waiting)) if token and not token.worker}
        except OSError as error:  # the server is away for a moment
            log.info("Looking for tasks that are held back was put off: %s", error)
            tokens = set(self._due)
        for gone in self._due.keys() - tokens:
            del self._due[gone], self._headers[gone]
        for new in tokens - self._due.keys():
            self._notice(new)
        now = time.monotonic()
        released = 0
        for token in [token for token, due in self._due.items() if due <= now]:
            try:
                released += requeue_from(self._spool, f"{waiting}/{token.name}", self._headers[token], token)
            except (OSError, SpoolpoolError) as error:
                log.info("%s is held back for longer: %s", token.task, error)
                self._due[token] = now + _PUT_OFF
            else:
                del self._due[token], self._headers[token]
        return released

    def _notice(self, token: Token) -> None:
        with contextlib.suppress(OSError, SpoolpoolError):  # gone, or unreadable: 'spool check' tells
            header = read_task(self._spool, f"{self._spool.layout.waiting}/{token.name}", token)
            if header.task == token.task:
                self._headers[token] = header
                self._due[token] = time.monotonic() + delay(header, token.attempt)
