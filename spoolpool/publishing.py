"""Outcomes as files, and their way into the spool where not rank 0 but another one must publish."""

from __future__ import annotations

import time
from collections.abc import Callable

from spoolpool import envelope, task
from spoolpool.call import Report
from spoolpool.claim import commit, write_outcome
from spoolpool.envelope import Buffer
from spoolpool.identity import hostname
from spoolpool.layout import Token
from spoolpool.spool import Spool
from spoolpool.task import Kind, OutcomeHeader, TaskHeader
from spoolpool.waiting import hold_back


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


def publish_for_group(path: str, keys: bytes) -> Callable[[TaskHeader, Token, Report], bool]:
    """A function by which any rank can publish the outcome of its group's task before it aborts the group.

    ``keys`` are those of a signed spool, which rank 0 has read.
    """

    def publish(header: TaskHeader, token: Token, report: Report) -> bool:
        spool = Spool(path, keys=keys)
        try:
            if token.attempt <= header.retries:
                hold_back(spool, token)
                return True
            write_outcome(spool, header.session, token, outcome_parts(header, token, report, 1, 0.0))
        except FileExistsError:  # another failed rank was first
            return False
        commit(spool, header.session, token)
        return True

    return publish
