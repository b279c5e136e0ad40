"""Outcome files, and their publication by rank 0 or, in an emergency, by any rank or thread."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from spoolpool import settings
from spoolpool.calls.run import RankResult, failure_report
from spoolpool.errors import DependencyFailed, NotASpool, SpoolFull, TaskCancelled, WorkerLost
from spoolpool.format import envelope, headers
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import Kind, OutcomeHeader, TaskHeader
from spoolpool.format.names import TaskFile
from spoolpool.protocol import outcome_log
from spoolpool.protocol.claim import Claim, GiveBack
from spoolpool.protocol.journal import Journal, submitters_journal
from spoolpool.protocol.outcome_log import OutcomeLog
from spoolpool.protocol.presence import GRACE
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_owned_task
from spoolpool.protocol.worker_registration import report_end
from spoolpool.system import files
from spoolpool.system.backoff import Backoff
from spoolpool.system.processes import hostname
from spoolpool.worker.task_journal import TaskJournal

log = logging.getLogger(__name__)

_CANCELLED = f"{TaskCancelled.__module__}.{TaskCancelled.__qualname__}"
_LOST = f"{WorkerLost.__module__}.{WorkerLost.__qualname__}"


def outcome_parts(
    header: TaskHeader,
    task_file: TaskFile,
    report: RankResult,
    ranks: int,
    started: float,
    *,
    attempt: int = 0,
    call: int | None = None,
) -> list[Buffer]:
    """Return the contents of the outcome file of a task, or of the record of one ``call`` of a pack."""
    kind: Kind = "error" if report.failure else "result"
    if call is not None:
        kind = kind_of_call(report)
    outcome = OutcomeHeader(
        task=header.task,
        kind=kind,
        worker=task_file.worker,
        host=hostname(),
        attempt=attempt or task_file.attempt,
        started=started,
        ended=time.time(),
        ranks=ranks,
        failure=report.failure,
        usage=report.usage,
        call=call,
    )
    return envelope.pack(headers.encode(outcome), report.payload, report.buffers)


def cancelled_parts(task_file: TaskFile) -> list[Buffer]:
    """Return the contents of the outcome file of a task that was cancelled, or whose dependency was."""
    outcome = OutcomeHeader(task=task_file.task, kind="cancelled", worker=task_file.worker, host=hostname())
    return envelope.pack(headers.encode(outcome), b"")


def dependency_failure_report(error: DependencyFailed) -> RankResult:
    """Return the report of a task whose dependency failed; without a traceback, its cause is that task's exception."""
    report = failure_report(error, 0)
    assert report.failure is not None
    return report._replace(failure=msgspec.structs.replace(report.failure, traceback=""))


def is_cancellation(report: RankResult) -> bool:
    """Return whether a call ended because its task was cancelled while it ran."""
    return report.failure is not None and report.failure.type == _CANCELLED


def kind_of_call(report: RankResult) -> Kind:
    """Return the kind of the outcome of a call of a pack, which may be cancelled or lost alone."""
    if report.failure is None:
        return "result"
    kinds: dict[str, Kind] = {_CANCELLED: "cancelled", _LOST: "lost"}
    return kinds.get(report.failure.type, "error")


class EmergencyPublisher:
    """Publisher of the outcome of a task for any rank or thread, before it ends its group."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.journal: TaskJournal | None = None
        """Journal of the worker, on its rank 0."""

    def __call__(self, header: TaskHeader, task_file: TaskFile, report: RankResult, call: int | None = None) -> bool:
        """Publish a result, or delay the task for its next attempt; return False if another rank did.

        Of one ``call`` of a pack the outcome is appended, and the other calls are given back. Also tells the supervisor
        that the group is to be replaced, and did not die.
        """
        if call is not None:
            return self._end_call(header, task_file, report, call)
        spool = self._spool
        started = self.journal.started(task_file.task) if self.journal is not None else 0.0
        try:
            if is_cancellation(report):
                parts = cancelled_parts(task_file)
            elif task_file.attempt <= header.retries:
                Claim(spool, header, task_file).delay()
                self._end(header, task_file, report, started, retried=True)
                return True
            else:
                parts = outcome_parts(header, task_file, report, 1, started)
            claim = self._claim(header, task_file)
            claim.write_outcome(parts)
        except FileExistsError:  # another failed rank was first
            return False
        published = claim.commit()
        self._end(header, task_file, report, started, published=published)
        return True

    def _claim(self, header: TaskHeader, task_file: TaskFile) -> Claim:
        spool = self._spool
        owner = read_owned_task(spool, spool.layout.claimed_task(task_file), task_file)[1] if spool.shared else None
        return Claim(spool, header, task_file, owner)

    def _end_call(self, header: TaskHeader, task_file: TaskFile, report: RankResult, call: int) -> bool:
        claim = self._claim(header, task_file)
        started = self.journal.started(task_file.task) if self.journal is not None else 0.0
        parts = outcome_parts(header, task_file, report, 1, started, call=call)
        if not claim.append_outcome(call, parts):
            return False
        if claim.has_outcome(os.geteuid()):  # it was the last one
            published = claim.commit()
            found = outcome_log.find_log(self._spool, header.session, task_file, files.regular_status)
            ends = Counter(each.header.kind for each in found.outcomes)
            self._end(header, task_file, RankResult(b"", (), None), started, published=published, ends=ends)
        else:
            report_end(self._spool, task_file.worker, "renew")
            journal = Journal(self._spool, submitters_journal(), task_file.worker)
            claim.give_back(GiveBack(reason=f"its call {call} did not end when it was interrupted"), journal)
        return True

    def _end(
        self,
        header: TaskHeader,
        task_file: TaskFile,
        report: RankResult,
        started: float,
        *,
        retried: bool = False,
        published: bool = True,
        ends: Mapping[Kind, int] | None = None,
    ) -> None:
        report_end(self._spool, task_file.worker, "renew")
        # rank 0 may be on another host, and only processes of one host append to a file
        journal = self.journal or TaskJournal(Journal(self._spool, submitters_journal(), task_file.worker))
        if retried and report.failure is not None:
            journal.write_retry(task_file, header, report.failure, started, time.time())
        else:
            failure = None if is_cancellation(report) else report.failure
            kind: Kind = "result" if ends else "error" if failure else "cancelled"
            ended = time.time()
            journal.write_end(
                task_file,
                header,
                kind=kind,
                failure=failure,
                started=started,
                ended=ended,
                published=published,
                ends=ends,
            )
        journal.flush()


class Publisher:
    """Writes and commits the outcomes of one group with this number of ranks."""

    def __init__(self, spool: Spool, ranks: int, journal: Journal) -> None:
        self._spool = spool
        self._ranks = ranks
        self._journal = journal

    def publish(self, claim: Claim, parts: list[Buffer], started: float, stopping: Callable[[], bool]) -> bool:
        """Write and commit the outcome of a call that was ``started`` at this time.

        Returns False if the claim was lost, or if another thread has reported the task at the end of the walltime.
        While the disk is full, tries again for the length of a lease, then publishes that error in place of the result.
        While the spool is missing, tries again for a while, then raises :class:`NotASpool`. If ``stopping`` says
        meanwhile that the worker is to end, releases the task and raises :class:`SpoolFull`.
        """
        # a claim can be lost after a lease of silence only; then nothing is to be written that must be removed again
        if time.time() - started > self._spool.config.lease and not self._exists(claim):
            return False

        def replace(report: RankResult) -> None:
            nonlocal parts
            parts = outcome_parts(claim.header, claim.task_file, report, 1, started)

        return self._persist(claim, lambda: self._write(claim, parts), replace, stopping, commit=True)

    def publish_log(self, claim: Claim, started: float) -> bool:
        """Commit a pack whose log has the outcomes of all calls; returns False as :meth:`publish`."""
        if time.time() - started > self._spool.config.lease and not self._exists(claim):
            return False
        with claim.publishing:
            return not claim.committed and claim.commit()

    def append(
        self,
        claim: Claim,
        outcomes: OutcomeLog,
        report: RankResult,
        parts_of: Callable[[RankResult], list[Buffer]],
        stopping: Callable[[], bool],
    ) -> None:
        """Append the outcome of a call to the log of its pack, with the same errors as :meth:`publish`."""
        parts, kind = parts_of(report), kind_of_call(report)

        def replace(report: RankResult) -> None:
            nonlocal parts, kind
            parts, kind = parts_of(report), kind_of_call(report)

        self._persist(claim, lambda: outcomes.append(parts, kind), replace, stopping, commit=False)

    def _persist(
        self,
        claim: Claim,
        write: Callable[[], None],
        replace: Callable[[RankResult], None],
        stopping: Callable[[], bool],
        *,
        commit: bool,
    ) -> bool:
        """Write an outcome, and commit it if asked; see :meth:`publish`."""
        backoff: Backoff | None = None
        deadline = missing_since = 0.0
        while True:
            with claim.publishing:  # not during the pauses: the report at the end of the walltime does not wait
                if claim.committed:
                    return False
                error = self._try(write)
                if error is None:
                    return not commit or claim.commit()
            if isinstance(error, NotASpool):  # it may be moved away for a moment, or mounted again
                if not missing_since:
                    log.warning("Cannot write the outcome of %s yet: %s", claim.task_file.task, error)
                    missing_since = time.monotonic()
                if time.monotonic() - missing_since > GRACE or stopping():
                    raise error
                Backoff(0.5, 0.5).sleep()
            else:
                log.warning("Cannot write the outcome of %s yet: %s", claim.task_file.task, error)
                if backoff is None:
                    backoff = Backoff(0.1, 5.0, 2.0)
                    deadline = time.monotonic() + self._spool.config.lease
                if time.monotonic() > deadline:
                    reason = SpoolFull(
                        f"The task ran, but its result could not be stored in {self._spool.path}: {error.strerror}."
                    )
                    replace(failure_report(reason, 0))
                if stopping():
                    why = GiveBack(reason=f"its outcome could not be written ({error.strerror}), and its group ended")
                    claim.give_back(why, self._journal)
                    raise SpoolFull(
                        f"The worker ended before the result of task {claim.task_file.task} could be written to "
                        f"{self._spool.path} ({error.strerror}). The task is ready again."
                    ) from error
                backoff.sleep()

    @staticmethod
    def _try(write: Callable[[], None]) -> NotASpool | OSError | None:
        """Write an outcome; return the error if that cannot be done now."""
        try:
            write()
        except (NotASpool, OSError) as error:
            return error
        return None

    @staticmethod
    def _exists(claim: Claim) -> bool:
        try:
            return claim.exists()
        except OSError:  # the server is unreachable for a moment
            return True

    def _write(self, claim: Claim, parts: list[Buffer]) -> None:
        """Create the outcome file, and replace an incomplete one of this claim."""
        try:
            claim.write_outcome(parts)
            return
        except FileExistsError:
            if self._ranks > 1:
                self._await_abort()
            if claim.task_file.calls:  # each of its calls has an outcome
                return
        # it is of this process: the request was repeated (NFS), or a partial write could not be removed
        if not claim.has_outcome(os.geteuid()):
            outgoing = self._spool.outgoing(claim.header.session, claim.owner)
            files.remove(f"{outgoing}/{claim.task_file.name}")
            claim.write_outcome(parts)

    def _await_abort(self) -> None:
        """Wait for the end: another rank may have published its exception, and is about to abort the group."""
        backoff = Backoff(0.05, 1.0)
        end = time.monotonic() + settings.GRACE
        while time.monotonic() < end:
            backoff.sleep()
