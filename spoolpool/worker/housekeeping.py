"""Periodic duties of a worker beside its tasks."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from spoolpool.protocol.claim import Claim
from spoolpool.protocol.delayed_tasks import DelayedTasks
from spoolpool.protocol.dependencies import OutcomeIndex
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import End, Registration
from spoolpool.protocol.workers import WorkerInfo, read_workers
from spoolpool.system import open_directory
from spoolpool.system.processes import ProcessId

log = logging.getLogger(__name__)

CHECK_INTERVAL = 0.5
"""Seconds after which also a busy worker checks whether it should continue."""
_LONG_TASK = 0.02  # seconds of a task after which that check costs nothing in comparison


class Housekeeping:
    """Heartbeat, recovery rounds, release of delayed tasks, journal, and the check whether to continue."""

    def __init__(
        self,
        spool: Spool,
        info: WorkerInfo,
        registration: Registration,
        outcomes: OutcomeIndex,
        journal: Journal,
        owner: ProcessId | None,
    ) -> None:
        self._spool = spool
        self._info = info
        self._registration = registration
        self._owner = owner
        self._recovery = Recovery(spool, journal)
        self._presence = Presence(spool)
        self.delayed = DelayedTasks(spool, outcomes)
        self.journal = journal
        self._presence_due = 0.0
        self._check_due = 0.0
        self._round_due = 0.0

    @property
    def worker_count(self) -> int:
        """Number of workers of the spool in the last round of recovery."""
        return self._recovery.worker_count

    def begin(self) -> None:
        """Record the start of the worker."""
        entry = open_directory.display_path(self._registration.directory)
        self.journal.write("worker started", worker=entry, job=self._info.job, ranks=self._info.ranks)
        self.journal.flush()  # the worker may die before its first task has ended

    def end(self, end: End | None) -> None:
        """Remove the worker's entry and record its end; ``end`` is for its supervisor."""
        self._registration.close(unfinished=self._recovery.has_discards(self._info.worker), end=end)
        self._presence.close()
        self.journal.write("worker ended")
        self.journal.close()

    def remove_abandoned_spool(self) -> None:
        """Remove the temporary spool of an executor that was killed, if no other worker is left in it."""
        spool, owner = self._spool, self._owner
        abandoned = spool.temporary and owner is not None and owner.is_provably_dead()
        if abandoned and all(info.process.is_provably_dead() for info in read_workers(spool)):
            spool.remove()

    def is_check_due(self) -> bool:
        """Return whether :meth:`should_continue` was not called for a while."""
        return time.monotonic() >= self._check_due

    def should_continue(self) -> bool:
        """Return whether no stop was requested in the spool, and the owner of the worker lives.

        Raises :class:`BrokenSpool` if the spool was removed, moved or replaced.
        """
        self._check_due = time.monotonic() + CHECK_INTERVAL
        try:
            # check(): the entry of this worker may be missing because its spool is
            if self._registration.is_stop_requested() and self._presence.check():
                return False
        except OSError:  # the server is unreachable for a moment
            pass
        return not (self._owner and self._owner.is_provably_dead())

    def after_task(self, began: float) -> bool:
        """Do the duties that are due after a task that began at a time of the monotonic clock.

        Returns False if the worker is to end.
        """
        # after each short task the check would cost as much as the claim
        is_due = self.is_check_due() or time.monotonic() - began > _LONG_TASK
        continues = self.should_continue() if is_due else True
        return self.run_due() and continues

    def run_due(self, resume_forgotten: Callable[[], None] | None = None) -> bool:
        """Do the duties that are due; return False if the worker is to end.

        An idle worker gives ``resume_forgotten``, which is called after a round of recovery. Raises
        :class:`BrokenSpool` as :meth:`should_continue`.
        """
        now = time.monotonic()
        if (due := self.delayed.due) is not None and due <= now:
            self.release_delayed()
        if now < self._round_due:
            return True
        self._round_due = now + self._spool.config.lease / 4 * random.uniform(0.75, 1.25)
        if now >= self._presence_due or not self._presence.last:
            self._presence_due = now + self._spool.config.lease
            if not self._presence.check():  # from missing files nothing is to be concluded
                return True
        self.journal.flush()
        if not self._registration.keep_heartbeat():
            log.warning("The entry of this worker was removed: it was taken for dead. It ends.")
            return False
        try:
            for line in self._recovery.round():
                log.warning("Recovered %s", line)
            if resume_forgotten is not None and self._recovery.took_round:
                resume_forgotten()
        except OSError as error:  # the server is unreachable for a moment
            log.info("Recovery was put off: %s", error)
        self.release_delayed()
        return True

    def next_due(self) -> float | None:
        """Return the monotonic time at which an idle worker has a duty, apart from its rounds; None without one.

        Writes the journal if its lines are a second old.
        """
        due = self.delayed.due
        if self.journal.flush(age=1.0):
            soon = time.monotonic() + 1.0
            return soon if due is None else min(due, soon)
        return due

    def release_delayed(self) -> None:
        """Release the delayed tasks that are ready by now."""
        try:
            self.delayed.round()
        except OSError as error:  # the server is unreachable for a moment
            log.info("The check of delayed tasks was put off: %s", error)

    def note_end(self, claim: Claim, *, published: bool) -> None:
        """Release the tasks that depend on a committed one; discard the outcome of a claim that was lost."""
        if published:
            self.delayed.record_commit(claim.header.session, claim.task_file)
        else:
            log.warning(
                "Task %s was taken from this worker, which was thought dead: its outcome is discarded.",
                claim.task_file.task,
            )
            if not claim.discard_outcome():
                self._recovery.discard(claim.header.session, claim.task_file)
