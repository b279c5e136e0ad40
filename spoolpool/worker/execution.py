"""Execution of claimed tasks, from the claim to the committed outcome."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from typing import NamedTuple

from spoolpool.calls.results import DependencyValue
from spoolpool.calls.run import RankResult
from spoolpool.calls.run import failure_report as failed_call
from spoolpool.context import assisting
from spoolpool.errors import DependencyFailed, NotTrusted, SpoolDenied, SpoolpoolError, WorkerLost
from spoolpool.format import headers
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import Failure, Kind
from spoolpool.protocol import lost_attempts
from spoolpool.protocol.cancel import IN_PACK, CancelRequests
from spoolpool.protocol.claim import Claim, GiveBack
from spoolpool.protocol.dependencies import Dependencies, OutcomeIndex
from spoolpool.protocol.objects import read_object
from spoolpool.protocol.outcome_log import OutcomeLog
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
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
        may_go_on: Callable[[float], bool],
    ) -> None:
        """``may_go_on``: does the duties after a call that began at a monotonic time, and tells whether one follows."""
        self._spool = spool
        self._group = group
        self._trust = trust
        self._claims = claims
        self._dependencies = Dependencies(spool, trust, outcomes)
        self._publisher = Publisher(spool, group.size, housekeeping.journal)
        self._cancel_requests = CancelRequests(spool)
        self._housekeeping = housekeeping
        self._is_stopping = is_stopping
        self._may_go_on = may_go_on
        self._journal = journal
        group.watch_long_calls(journal.write_late)
        self._thread = os.getpid(), threading.get_ident()
        self._claim_seen = 0.0

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
        if task_file.calls and not self._cancel_requests.apply_to(task_file.task, claim.owner):
            self._run_pack(claim, started)
            return
        if task_file.attempt > headers.attempts(header) and not task_file.calls:
            lost = [each for _, each in sorted(lost_attempts.kept(self._spool, task_file.task).items())]
            used_up = f"Task {task_file.task} has used up its attempts."
            title = headers.title_of(header)
            claim.report_lost(lost_attempts.message(task_file.task, lost, title) if lost else used_up, lost)
            self._journal.write_end(task_file, header, kind="lost", failure=None, started=started, ended=time.time())
            return
        outcome = (
            ClaimOutcome(cancelled_parts(task_file))
            if self._cancel_requests.apply_to(task_file.task, claim.owner)
            else self._outcome(claim, started)
        )
        if outcome is None:
            return
        self._publish(claim, outcome, started)

    def _publish(
        self, claim: Claim, outcome: ClaimOutcome, started: float, ends: Mapping[Kind, int] | None = None
    ) -> None:
        published = self._publisher.publish(claim, outcome.parts, started, self._is_stopping)
        self._end(claim, outcome.report, started, outcome.ran, published=published, ends=ends)

    def _end(
        self,
        claim: Claim,
        report: RankResult | None,
        started: float,
        ran: float,
        *,
        published: bool,
        ends: Mapping[Kind, int] | None = None,
    ) -> None:
        """Note the end of a claim with an outcome; ``ends`` are those of the calls of a pack."""
        task_file, header = claim.task_file, claim.header
        self._journal.write_end(
            task_file,
            header,
            kind=kind_of(report),
            failure=report and report.failure,
            started=started,
            ended=time.time(),
            ran=ran,
            published=published,
            usage=report and report.usage,
            ends=ends,
        )
        self._housekeeping.note_end(claim, published=published)
        if published:
            self._cancel_requests.withdraw(task_file)

    def _run_pack(self, claim: Claim, started: float) -> None:
        """Run the calls of a pack without an outcome, and commit the log of their outcomes."""
        from spoolpool.worker.pack_run import PackRun  # most groups begin with a task of one call

        task_file, header = claim.task_file, claim.header
        if self._group.size > 1:
            raise NotTrusted(f"{task_file.name} has several calls for a group of {self._group.size} ranks.")
        begun = self._claim_seen = time.monotonic()
        outcomes = claim.open_log(self._trust)
        with outcomes:
            attempt = task_file.attempt if outcomes.done == task_file.first else 1
            if attempt > headers.attempts(header) and outcomes.done < task_file.calls:
                self._append(claim, outcomes, self._lost_report(task_file.task), started, attempt - 1)
                attempt = 1
            run = PackRun(
                outcomes,
                claim.calls,
                attempt,
                append=functools.partial(self._append, claim, outcomes),
                may_go_on=functools.partial(self._may_begin_call, claim),
                is_cancelled=functools.partial(self._is_cancelled, claim),
                on_call=functools.partial(self._claims.note_progress, claim),
            )
            report: RankResult | None = None
            if not (run.is_done or outcomes.is_whole):
                self._journal.begin_call(task_file, header, started)
                try:
                    with assisting(self._spool.config.id, self._assist):
                        report, _ = self._group.run(TaskCall(task_file, header, (b"", ()), pack=run))
                finally:
                    self._journal.end_call(task_file, header.name, time.monotonic() - begun)
                self._spool.restore()
            if run.error is not None:
                raise run.error
            ran = time.monotonic() - begun
            if run.is_cancelled:
                outcomes.ends["cancelled"] += task_file.calls - outcomes.done
                self._publish(claim, ClaimOutcome(cancelled_parts(task_file), None, ran), started, outcomes.ends)
                return
            if report is not None and report.failure is not None:  # of the whole pack
                parts = outcome_parts(header, task_file, report, 1, started)
                outcomes.ends["error"] += task_file.calls - outcomes.done
                self._publish(claim, ClaimOutcome(parts, report, ran), started, outcomes.ends)
                return
            if not (run.is_done or outcomes.is_whole):
                claim.give_back(GiveBack(reason=self._claims.reason_to_end(claim)), self._housekeeping.journal)
                return
            outcomes.sync()
        published = self._publisher.publish_log(claim, started)
        result = RankResult(b"", (), None, report and report.usage)
        self._end(claim, result, started, ran, published=published, ends=outcomes.ends)

    def _may_begin_call(self, claim: Claim, began: float) -> bool:
        """Return whether a further call of a pack may begin, after one that began at a monotonic time."""
        if not self._may_go_on(began) or self._group.tainted or not self._claims.has_time(claim):
            return False
        return not self._is_lost(claim)

    def _is_cancelled(self, claim: Claim, call: int | None = None) -> bool:
        """Return whether the cancellation of a pack, or of one of its calls, is requested."""
        return self._cancel_requests.apply_to(claim.task_file.task, claim.owner, call, age=IN_PACK)

    def _is_lost(self, claim: Claim) -> bool:
        """Return whether the claim of a pack was lost, as far as can be seen; looks once a lease."""
        now = time.monotonic()
        if now - self._claim_seen < self._spool.config.lease:
            return False
        self._claim_seen = now
        return not claim.exists() and files.exists(self._spool.layout.claimed)  # else the spool is away for a moment

    def _append(self, claim: Claim, outcomes: OutcomeLog, report: RankResult, started: float, attempt: int = 0) -> bool:
        """Append the outcome of the next call of a pack to the log of the claim.

        Returns False, and appends nothing, if the call was interrupted because the whole pack was cancelled.
        """
        if is_cancellation(report):
            self._cancel_requests.list_again()
            if self._is_cancelled(claim):
                return False
        header, task_file, call = claim.header, claim.task_file, outcomes.done

        def parts_of(result: RankResult) -> list[Buffer]:
            return outcome_parts(header, task_file, result, 1, started, attempt=attempt, call=call)

        self._publisher.append(claim, outcomes, report, parts_of, self._is_stopping)
        return True

    def _lost_report(self, task: str) -> RankResult:
        """Return the result of a call whose workers died in all its attempts."""
        lost = [each for _, each in sorted(lost_attempts.kept(self._spool, task).items())]
        text = lost_attempts.message(task, lost) if lost else f"A call of task {task} has used up its attempts."
        return failed_call(WorkerLost(text, lost), 0)

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
