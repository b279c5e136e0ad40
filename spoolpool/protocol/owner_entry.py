"""Entry of a process that keeps groups on other hosts: their guards observe its heartbeat.

It is a directory among those of the workers, with a heartbeat and without a worker. Like that of a dead worker it is
removed by a recoverer if the process is killed.
"""

from __future__ import annotations

import contextlib

from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import new_worker_id
from spoolpool.protocol.heartbeat import Heartbeat, heartbeat_interval
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import remove_worker
from spoolpool.system import files


class OwnerEntry:
    """Entry of this process, with a heartbeat that a busy Python cannot hold up."""

    def __init__(self, spool: Spool) -> None:
        """Make the entry. Raises a subclass of ``OSError`` that says what failed."""
        self._spool = spool
        self.id = new_worker_id()
        """Name of the entry."""
        with files.translate_errors(f"announce a supervisor in {spool.path}"):
            self._make()
            self._heartbeat = Heartbeat(f"{spool.layout.worker(self.id)}/beat", heartbeat_interval(spool))

    def _make(self) -> None:
        directory = self._spool.layout.worker(self.id)
        self._spool.make_directories(directory)
        with contextlib.suppress(FileExistsError):
            self._spool.write_public(f"{directory}/beat", [])

    def keep(self) -> None:
        """Start the heartbeat again if it ended, also after a recoverer took this process for dead."""
        if not self._heartbeat.keep():
            # the server is away, or the spool is gone, which the caller finds out
            with contextlib.suppress(OSError, SpoolpoolError):
                self._make()
                self._heartbeat.keep()

    def close(self) -> None:
        """Remove the entry: the groups have ended. Harmless when repeated."""
        self._heartbeat.close()
        remove_worker(self._spool, self.id)
