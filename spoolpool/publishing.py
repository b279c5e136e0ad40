"""Outcomes as files, and their way into the spool where not rank 0 but another one must publish."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import msgspec

from spoolpool import envelope, fsio, settings, task
from spoolpool.backoff import Backoff
from spoolpool.call import Report, failed
from spoolpool.claim import Claim, commit, give_back, has_outcome, read_owned_task, write_outcome
from spoolpool.envelope import Buffer
from spoolpool.errors import DependencyFailed, SpoolFull, TaskCancelled
from spoolpool.identity import hostname
from spoolpool.layout import Token
from spoolpool.spool import Spool
from spoolpool.task import Kind, OutcomeHeader, TaskHeader
from spoolpool.waiting import hold_back

log = logging.getLogger(__name__)

_CANCELLED = f"{TaskCancelled.__module__}.{TaskCancelled.__qualname__}"


def outcome_parts(header: TaskHeader, token: Token, report: Report, ranks: int, started: float) -> list[Buffer]:
    """The file of an outcome."""
    kind: Kind = "error" if report.failure else "result"
    outcome = OutcomeHeader(
        task=header.task,
        kind=kind,
        worker=token.worker,
        host=hostname(),
        attempt=token.attempt,
        started=started,
        ended=time.time(),
        ranks=ranks,
        failure=report.failure,
    )
    return envelope.pack(task.encode(outcome), report.payload, report.buffers)


def cancelled_parts(token: Token) -> list[Buffer]:
    """The file that says that a task was not run, since it was cancelled, or something that it needs."""
    outcome = OutcomeHeader(task=token.task, kind="cancelled", worker=token.worker, host=hostname())
    return envelope.pack(task.encode(outcome), b"")


def not_run(error: DependencyFailed) -> Report:
    """The report of a call that was not made; there is no traceback, so that the cause stays the other's exception."""
    report = failed(error, 0)
    assert report.failure is not None
    return report._replace(failure=msgspec.structs.replace(report.failure, traceback=""))


def was_cancelled(report: Report) -> bool:
    """Whether a call ended since its task was cancelled while it ran."""
    return report.failure is not None and report.failure.type == _CANCELLED


def publish_for_group(spool: Spool) -> Callable[[TaskHeader, Token, Report], bool]:
    """A function by which any rank or thread can publish the outcome of its group's task before it ends the group."""

    def publish(header: TaskHeader, token: Token, report: Report) -> bool:
        try:
            if was_cancelled(report):
                parts = cancelled_parts(token)
            elif token.attempt <= header.retries:
                hold_back(spool, token)
                return True
            else:
                parts = outcome_parts(header, token, report, 1, 0.0)
            owner = read_owned_task(spool, spool.layout.claimed_token(token), token)[1] if spool.shared else None
            write_outcome(spool, header.session, token, parts, owner)
        except FileExistsError:  # another failed rank was first
            return False
        commit(spool, header.session, token, owner)
        return True

    return publish


class Publisher:
    """Writes and commits the outcomes of one group of so many ranks."""

    def __init__(self, spool: Spool, ranks: int) -> None:
        self._spool = spool
        self._ranks = ranks

    def publish(self, claim: Claim, parts: list[Buffer], started: float, stopping: Callable[[], bool]) -> bool:
        """Write and commit; whether that was ours to do.

        Tries on while the disk is full, then publishes that instead of the result. Where the worker is to end
        meanwhile, as ``stopping`` says, it gives the task back and raises :class:`SpoolFull`.
        """
        session = claim.header.session
        rhythm: Backoff | None = None
        deadline = 0.0
        while True:
            try:
                self._write(claim, parts)
                break
            except OSError as error:
                log.warning("Cannot write the outcome of %s yet: %s", claim.token.task, error)
                if rhythm is None:
                    rhythm = Backoff(0.1, 5.0, 2.0)
                    deadline = time.monotonic() + self._spool.config.lease
                if time.monotonic() > deadline:
                    reason = SpoolFull(
                        f"The task ran, but its result could not be stored in {self._spool.path}: {error.strerror}."
                    )
                    parts = outcome_parts(claim.header, claim.token, failed(reason, 0), 1, started)
                if stopping():
                    give_back(self._spool, claim.header, claim.token)
                    raise SpoolFull(
                        f"Ended before the result of {claim.token.task} could be written ({error.strerror}): it "
                        "waits again."
                    ) from error
                rhythm.sleep()
        return commit(self._spool, session, claim.token, claim.owner)

    def _write(self, claim: Claim, parts: list[Buffer]) -> None:
        """Make the file of an outcome, whatever lies in its place."""
        session, token = claim.header.session, claim.token
        try:
            write_outcome(self._spool, session, token, parts, claim.owner)
            return
        except FileExistsError:
            if self._ranks > 1:
                self._await_abort()
        # nobody else made it: a request was repeated, or this process made half of it and could not take it away
        if not has_outcome(self._spool, session, token, claim.owner, os.geteuid()):
            outgoing = self._spool.outgoing(session, claim.owner)
            fsio.remove(f"{outgoing}/{token.name}")
            write_outcome(self._spool, session, token, parts, claim.owner)

    def _await_abort(self) -> None:
        """Another rank may have published its exception; then it is about to end the group."""
        rhythm = Backoff(0.05, 1.0)
        end = time.monotonic() + settings.GRACE
        while time.monotonic() < end:
            rhythm.sleep()
