"""Execution of claimed tasks, from the claim to the committed outcome."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from typing import NamedTuple

from spoolpool.calls.results import DependencyValue
from spoolpool.calls.run import RankResult
from spoolpool.calls.run import failure_report as failed_call
from spoolpool.context import assisting
from spoolpool.errors import DependencyFailed, NotTrusted, SpoolDenied, SpoolpoolError
from spoolpool.format import headers
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import Failure
from spoolpool.protocol import lost_attempts
from spoolpool.protocol.cancel import CancelRequests
from spoolpool.protocol.claim import Claim, GiveBack
from spoolpool.protocol.dependencies import Dependencies, OutcomeIndex
from spoolpool.protocol.objects import read_object
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.worker.claims import Claims
from spoolpool.worker.group import Group, TaskCall
from spoolpool.worker.housekeeping import Housekeeping
from spoolpool.worker.publish import (
    Publisher,
    cancelled_parts,
    dependency_failure_report,
    is_cancellation,
    outcome_parts,
)
from spoolpool.worker.task_journal import TaskJournal, kind_of

log = logging.getLogger(__name__)


class ClaimOutcome(NamedTuple):
    """Outcome of one claim."""

    parts: list[Buffer]
    """Contents of the outcome file."""
    report: RankResult | None = None
    """Result of the call; None if it was cancelled."""
    ran: float = 0.0
    """Seconds that the call took on all ranks."""


class Execution:
    """Runs claimed tasks in a group and publishes their outcomes."""

    def __init__(
        self,
        spool: Spool,
        group: Group,
        trust: Trust,
        *,
        claims: Claims,
        outcomes: OutcomeIndex,
        housekeeping: Housekeeping,
        journal: TaskJournal,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._spool = spool
        self._group = group
        self._trust = trust
        self._claims = claims
        self._dependencies = Dependencies(spool, trust, outcomes)
        self._publisher = Publisher(spool, group.size, housekeeping.journal)
        self._cancel_requests = CancelRequests(spool)
        self._housekeeping = housekeeping
        self._is_stopping = is_stopping
        self._journal = journal
        group.watch_long_calls(journal.write_late)
        self._thread = os.getpid(), threading.get_ident()

    def run(self, claim: Claim) -> None:
        """Run a claimed task and publish its outcome."""
        self._claims.begin(claim)
        try:
            self._run(claim)
        except (SpoolDenied, NotTrusted) as error:  # no worker may write its outcome; this one continues
            if claim.set_aside(str(error)):
                self._journal.write_set_aside(claim.task_file, str(error))
        finally:
            self._claims.end(claim)

    def resume_forgotten(self) -> None:
        """Resume a task that is claimed in this worker's name, and that it does not work on."""
        claim = self._claims.next_forgotten()
        if claim is None:
            return
        with claim:
            if claim.has_outcome(os.geteuid()):
                claim.commit()
            elif claim.exists():
                # checked in this order: between the two checks a recoverer may have committed the outcome
                self.run(claim)

    def _run(self, claim: Claim) -> None:
        task_file, header = claim.task_file, claim.header
        started = time.time()
        if task_file.attempt > headers.attempts(header):
            lost = [each for _, each in sorted(lost_attempts.kept(self._spool, task_file.task).items())]
            used_up = f"Task {task_file.task} has used up its attempts."
            claim.report_lost(lost_attempts.message(task_file.task, lost) if lost else used_up, lost)
            self._journal.write_end(task_file, header, kind="lost", failure=None, started=started, ended=time.time())
            return
        outcome = (
            ClaimOutcome(cancelled_parts(task_file))
            if self._cancel_requests.apply_to(task_file, claim.owner)
            else self._outcome(claim, started)
        )
        if outcome is None:
            return
        published = self._publisher.publish(claim, outcome.parts, started, self._is_stopping)
        report = outcome.report
        self._journal.write_end(
            task_file,
            header,
            kind=kind_of(report),
            failure=report and report.failure,
            started=started,
            ended=time.time(),
            ran=outcome.ran,
            published=published,
        )
        self._housekeeping.note_end(claim, published=published)
        if published:
            self._cancel_requests.withdraw(task_file.task)

    def _outcome(self, claim: Claim, started: float) -> ClaimOutcome | None:
        """Run the call, unless a dependency prevents it; return None if this claim will have no outcome."""
        task_file, header = claim.task_file, claim.header
        dependencies: Sequence[DependencyValue] = ()
        if header.needs:
            try:
                found = self._dependencies.gather(header, lambda: self._may_wait(claim))
            except CancelledError:
                return ClaimOutcome(cancelled_parts(task_file))
            except DependencyFailed as error:
                report = dependency_failure_report(error)
                return ClaimOutcome(outcome_parts(header, task_file, report, 1, started), report)
            if found is None:
                return None
            dependencies = found
        begun = time.monotonic()
        self._journal.begin_call(task_file, header, started)
        try:
            report, ranks = self._call(claim, dependencies)
        finally:
            ran = time.monotonic() - begun
            self._journal.end_call(task_file, header.name, ran)
        if is_cancellation(report):
            return ClaimOutcome(cancelled_parts(task_file), None, ran)
        if report.failure and self._retry(claim, report.failure, started):
            return None
        return ClaimOutcome(outcome_parts(header, task_file, report, ranks, started), report, ran)

    def _may_wait(self, claim: Claim) -> bool:
        """Return whether to wait on for the dependencies of a claimed task; release it if this worker is to end."""
        if self._is_stopping():
            reason = "its group ended while it waited for the values of its dependencies"
            claim.give_back(GiveBack(reason=reason), self._housekeeping.journal)
            return False
        return claim.exists()

    def _call(self, claim: Claim, dependencies: Sequence[DependencyValue]) -> tuple[RankResult, int]:
        header = claim.header
        init = None
        if header.init and not self._group.is_initialized(header.init):
            try:
                found = read_object(self._spool, header.init, self._trust, claim.owner)
            except (SpoolpoolError, OSError) as error:
                reason = SpoolpoolError(f"The init_function of session {header.session} cannot be read: {error}")
                return failed_call(reason, 0), 1
            init = (found.payload, found.buffers)
        content = claim.content.payload, claim.content.buffers
        # in a larger group the other ranks are not free for subtasks
        assistance = assisting(self._spool.config.id, self._assist) if self._group.size == 1 else nullcontext()
        with assistance:
            result = self._group.run(TaskCall(claim.task_file, header, content, init, dependencies))
        self._spool.restore()
        return result

    def _assist(self, submitter: str) -> bool:
        """Run a subtask in the thread of the task that waits for it: perhaps no other group is free for it."""
        if (os.getpid(), threading.get_ident()) != self._thread:
            return False
        try:
            if self._claims.uncertain:
                self.resume_forgotten()
            claim = self._claims.next_subtask(submitter)
            if claim is not None:
                self.run(claim)
            return claim is not None
        except (OSError, SpoolpoolError) as error:  # it does not concern the waiting task, which waits on
            log.warning("A subtask was put off: %s", error)
            self._claims.uncertain = True
            return False

    def _retry(self, claim: Claim, failure: Failure, started: float) -> bool:
        """Delay a task that raised, if it has retries left; return whether this claim has ended."""
        task_file = claim.task_file
        if task_file.attempt > claim.header.retries:
            return False
        self._journal.write_retry(task_file, claim.header, failure, started, time.time())
        try:
            claim.delay()
        except OSError as error:  # fenced, or a transient fault: the process that finds the claim continues with it
            log.info("Cannot delay task %s: %s", task_file.task, error)
            if claim.exists():
                return False
        self._housekeeping.release_delayed()
        return True
