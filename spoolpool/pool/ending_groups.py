"""Ending groups of a pool: requests to end, their repetition, and the release of the tasks that ended groups held."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from spoolpool.launch.launcher import CommandProcess, GroupProcess
from spoolpool.pool.slot import Slot
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

# worker_registration, children: imported where a group is to end, while others begin

if TYPE_CHECKING:
    from spoolpool.protocol.claim import Claim, GiveBack
    from spoolpool.protocol.journal import Journal
    from spoolpool.protocol.recovery import Recovery

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""Seconds, by default, for which the end of a pool waits for running tasks."""
_NO_ENTRY_SECONDS = 60.0  # for groups that are starting or exiting at the end; longer than NFS hides a new name
_MOST_AWAITED = 16  # processes whose ends are waited for at once


class EndingGroups:
    """Groups that were asked to end, or may have ended, with their processes. The pool calls it under its lock.

    Only :meth:`wait` and :meth:`close` are called without the lock, once the pool has no other groups.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._journal: Journal | None = None
        self._processes: dict[str, GroupProcess] = {}  # by worker id
        self._numbers: list[tuple[int, GroupProcess]] = []

    @functools.cached_property
    def recovery(self) -> Recovery:
        """Recovery of the claims of groups that have ended: it is imported while the first groups begin."""
        from spoolpool.protocol.journal import Journal, submitters_journal
        from spoolpool.protocol.recovery import Recovery

        if not self._spool.temporary:  # it is removed with its executor, and its journal would have no reader
            self._journal = Journal(self._spool, submitters_journal(), "supervisor")
        return Recovery(self._spool, self._journal, all_workers=True)  # rounds follow the death of a group of this pool

    def numbers(self) -> set[int]:
        """Return the numbers of the groups that still run."""
        return {number for number, process in self._numbers if process.poll() is None}

    def processes(self) -> list[GroupProcess]:
        """Return the processes of all groups here."""
        return list(self._processes.values())

    def add(self, slot: Slot) -> None:
        """Add the group of a slot, if it has one, without a request."""
        if slot.process is not None:
            self._processes[slot.worker] = slot.process

    def request(self, slot: Slot) -> None:
        """Ask the group of a slot to end, if it runs; start no other one in the slot."""
        from spoolpool.protocol import worker_registration

        slot.start_due = 0.0
        if slot.process is not None and slot.process.poll() is None:
            worker_registration.request_stop(self._spool, slot.worker)
            self._processes[slot.worker] = slot.process
            self._numbers = [each for each in self._numbers if each[1].poll() is None]
            self._numbers.append((slot.number, slot.process))

    def repeat_requests(self) -> None:
        """Ask the groups again: a group that was still starting had no entry for the first request."""
        if not self._processes:  # nearly always
            return
        from spoolpool.protocol import worker_registration

        for worker, process in list(self._processes.items()):
            if process.poll() is None:
                worker_registration.request_stop(self._spool, worker)
            else:
                worker_registration.take_end(self._spool, worker)
                del self._processes[worker]

    def wait(
        self,
        seconds: float | None,
        *,
        hurry: Callable[[], bool],
        at_walltime: bool,
        keep_entry: Callable[[], None],
    ) -> list[str]:
        """Wait for the ends of all groups, as :meth:`GroupPool.stop` says; return the tasks that were released.

        ``keep_entry`` is called once in a while.
        """
        from spoolpool.protocol import worker_registration
        from spoolpool.system import children

        backoff = Backoff(0.002, 0.1)
        begun = time.monotonic()
        no_entry_since: dict[str, float] = {}
        released: list[str] = []

        def release(worker: str) -> None:
            released.extend(self._release(worker, time.monotonic() - begun if at_walltime else None))

        while running := self._take_ended(release):
            keep_entry()
            now = time.monotonic()
            if hurry() or (seconds is not None and now - begun > seconds):
                late = running
            else:
                no_entry_since = {w: no_entry_since.get(w, now) for w in running if self._has_no_entry(w)}
                late = {worker for worker, since in no_entry_since.items() if now - since > _NO_ENTRY_SECONDS}
            over = now - begun if at_walltime else None
            taken = self._take_over(late, over)
            _end([self._processes[worker] for worker in late])
            for worker in late:
                worker_registration.take_end(self._spool, worker)
                del self._processes[worker]
            released += self.recovery.release(taken)
            for worker in running - late:
                # again: a group that was still starting had no entry for an earlier request
                worker_registration.request_stop(self._spool, worker)
            if pids := self._pids(running - late):
                children.wait_for_one(pids, backoff.next())
            elif running != late:
                backoff.sleep()
        return released

    def close(self) -> None:
        """Close the journal, after the end of all groups. May be repeated."""
        if self._journal is not None:
            self._journal.close()

    def _pids(self, workers: Iterable[str]) -> list[int]:
        """Return the processes of groups whose ends are worth a wake-up: some, since each costs two calls."""
        processes = (self._processes[worker] for worker in itertools.islice(workers, _MOST_AWAITED))
        return [process.pid for process in processes if isinstance(process, CommandProcess)]

    def _take_over(self, late: Iterable[str], over: float | None) -> list[tuple[Claim, GiveBack]]:
        """Take over the claims of groups that are about to be ended; ``over`` as in :meth:`Recovery.take_over`."""
        from spoolpool.protocol.claim import ASKED_TO_END, WALLTIME_ENDED

        taken = []
        reason = ASKED_TO_END if over is None else WALLTIME_ENDED
        for worker in late:
            try:
                taken += self.recovery.take_over(worker, reason, over=over)
            except OSError as error:  # the server does not answer for a moment: recovery finds the task later
                log.warning("The task of worker group %s cannot be released now: %s", worker, error)
        return taken

    def _take_ended(self, release: Callable[[str], None]) -> set[str]:
        """Forget the groups that have ended, after ``release`` of the tasks that they held; return the others."""
        for worker, process in list(self._processes.items()):
            if process.poll() is not None:
                release(worker)
                del self._processes[worker]
        return set(self._processes)

    def _release(self, worker: str, over: float | None) -> list[str]:
        """Release the tasks of an ended group; return them. The end was requested, so that it costs no attempt.

        A batch system that ends a job may have killed the group meanwhile. ``over`` are the seconds since its walltime
        ended, if that is the reason.
        """
        from spoolpool.protocol import worker_registration

        if worker_registration.take_end(self._spool, worker) is not None:
            return []
        return self.recovery.release(self._take_over([worker], over))

    def _has_no_entry(self, worker: str) -> bool:
        return files.is_missing(f"{self._spool.layout.worker(worker)}/info.json")


def _end(processes: Sequence[GroupProcess]) -> None:
    """End groups all at once: each may take some seconds, and the walltime may end before."""
    backoff = Backoff(0.002, 0.1)
    for kill in (False, True):
        running = [process for process in processes if process.poll() is None]
        for process in running:
            process.end(kill=kill)
        end = time.monotonic() + max((process.end_seconds for process in running), default=0.0)
        while time.monotonic() < end and any(process.poll() is None for process in running):
            backoff.sleep()
