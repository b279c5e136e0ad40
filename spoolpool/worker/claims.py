"""Claims of one worker: the active ones, and the sources of new ones."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable

from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import Lane, TaskFile
from spoolpool.protocol.claim import ASKED_TO_END, WALLTIME_ENDED, Claim, GiveBack
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.security.trust import Trust
from spoolpool.system import fork

log = logging.getLogger(__name__)

_WARNING_SECONDS = 60.0
"""Seconds before the end of a walltime at which a batch system may warn, as with ``sbatch --signal=B:USR1@60``."""


class Claims:
    """Claims of one worker. The first active claim is the one of the loop, each further one is of a subtask.

    A *subtask* is a task that the running task has submitted and waits for.
    """

    def __init__(
        self,
        spool: Spool,
        info: WorkerInfo,
        trust: Trust,
        serves: Callable[[Lane], bool],
        on_set_aside: Callable[[TaskFile, str], None],
        seconds_left: Callable[[], float],
    ) -> None:
        """``seconds_left``: until this worker begins no more tasks."""
        self._seconds_left = seconds_left
        self._new_claimer = functools.partial(
            Claimer, spool, info.worker, serves, trust, on_set_aside=on_set_aside, seconds_left=seconds_left
        )
        self.claimer = self._new_claimer(info.weights)
        """Source of the tasks for the loop."""
        self._subtask_claimers: dict[str, Claimer] = {}
        self._active: list[Claim] = []
        self._begun: dict[Claim, float] = {}
        self.uncertain = False
        """Whether an error may have hidden a claim that was made in this worker's name."""
        fork.call_in_child(self, Claims.close_locks)

    def close_locks(self) -> None:
        """Close the locks in a forked child, where they would testify that a dead worker lives."""
        for claim in self._active:
            claim.close()

    def next_subtask(self, submitter: str) -> Claim | None:
        """Claim the next task of one submitter."""
        if submitter not in self._subtask_claimers:
            self._subtask_claimers[submitter] = self._new_claimer(submitter=submitter)
        return self._subtask_claimers[submitter].next()

    def next_forgotten(self) -> Claim | None:
        """Return a claim in this worker's name that is not active."""
        claim = self.claimer.forgotten([claim.task_file for claim in self._active])
        self.uncertain = claim is not None  # there may be more
        return claim

    def begin(self, claim: Claim) -> None:
        """Count a claim among the active ones, until :meth:`end`."""
        self._begun[claim] = time.monotonic()
        self._active.append(claim)

    def end(self, claim: Claim) -> None:
        """Close the lock of a claim that is no longer active."""
        claim.close()
        self._active.remove(claim)
        del self._begun[claim]
        if not self._active:
            self._subtask_claimers.clear()

    def has_time(self, claim: Claim) -> bool:
        """Return whether a call of a claimed pack may begin, by its time limit."""
        return self._seconds_left() > claim.header.time_limit

    def reason_to_end(self, claim: Claim) -> str:
        """Return the reason to release a claim between two calls of a pack."""
        return ASKED_TO_END if self.has_time(claim) else WALLTIME_ENDED

    def note_progress(self, claim: Claim) -> None:
        """Note that a call of a pack begins: the time of its end is counted from here."""
        self._begun[claim] = time.monotonic()

    def release(self, journal: Journal) -> bool:
        """Release the tasks of all active claims, from any thread; return whether there were any.

        The main thread may be about to commit one of them: one of the two renames succeeds.
        """
        over = -self._seconds_left()
        at_walltime = over > -_WARNING_SECONDS
        reason = WALLTIME_ENDED if at_walltime else ASKED_TO_END
        claims = dict(self._begun)
        for claim, begun in claims.items():
            task = claim.task_file.task
            ran = max(0.0, time.monotonic() - begun - max(0.0, over))
            why = GiveBack(reason=reason, ran=ran, at_walltime=at_walltime)
            try:
                if claim.give_back(why, journal):
                    log.warning("Task %s was released: it did not end in time.", task)
            except (OSError, SpoolpoolError) as error:  # recovery requeues it after the death of this worker
                log.warning("Cannot release task %s: %s", task, error)
        return bool(claims)
