"""Loop of a worker, in the process of the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from spoolpool import settings
from spoolpool.calls.leftovers import Severity
from spoolpool.protocol import worker_registration, workers
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.spool import Spool
from spoolpool.system.processes import ProcessId
from spoolpool.worker import loop
from spoolpool.worker.execution import Execution
from spoolpool.worker.housekeeping import Housekeeping
from spoolpool.worker.loop import Worker, WorkerOptions
from spoolpool.worker.serial_group import SerialGroup
from tests.support.fake_worker import Clock, Inbox, SilentRegistration, SilentWatch, info_of


@pytest.mark.parametrize("duty", ["after_task", "run_due"])
def test_stop_request_during_housekeeping_ends_the_worker(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, duty: str
) -> None:
    clock = Clock.installed(monkeypatch)
    monkeypatch.setattr(loop, "Registration", SilentRegistration)
    monkeypatch.setattr(loop, "DirectoryWatcher", lambda: SilentWatch(clock, 100))
    inbox = Inbox(spool, clock)
    first, second = inbox.put(pow, 2, 3), inbox.put(pow, 3, 2)
    worker = Worker(spool, SerialGroup(), info_of(ProcessId.of(os.getpid())), WorkerOptions())
    perform = getattr(Housekeeping, duty)

    def stop_and_perform(*arguments: object) -> bool:
        worker.stop()  # as a signal handler does
        return bool(perform(*arguments))

    monkeypatch.setattr(Housekeeping, duty, stop_and_perform)
    assert worker.run() == 0
    inbox.look()
    assert first.result(0) == 8
    assert not second.done()


class _TaintedGroup(SerialGroup):
    """Group that is to be replaced after each task."""

    def settle(self, *, idle: bool) -> None:
        self.severity = Severity.URGENT


def _is_dead(process: ProcessId) -> bool:
    return True


def _stop_by_signal(worker: Worker, _spool: Spool, _patch: pytest.MonkeyPatch) -> None:
    worker.stop()


def _stop_by_file(_worker: Worker, spool: Spool, _patch: pytest.MonkeyPatch) -> None:
    (info,) = workers.read_workers(spool)
    worker_registration.request_stop(spool, info.worker)


def _stop_by_removal(_worker: Worker, spool: Spool, _patch: pytest.MonkeyPatch) -> None:
    (info,) = workers.read_workers(spool)
    shutil.rmtree(spool.layout.worker(info.worker))


def _stop_by_death(_worker: Worker, _spool: Spool, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProcessId, "is_provably_dead", _is_dead)


def _go_on(_worker: Worker, _spool: Spool, _patch: pytest.MonkeyPatch) -> None:
    """Request nothing."""


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (_stop_by_signal, 0),
        (_stop_by_file, 0),
        (_stop_by_removal, 0),
        (_stop_by_death, 0),
        (_go_on, settings.EXIT_RENEW),
    ],
)
def test_group_that_is_to_end_is_not_replaced(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, cause: Callable[[Worker, Spool, pytest.MonkeyPatch], None], code: int
) -> None:
    """The request arrives during a task that leaves something behind."""
    inbox = Inbox(spool, Clock.installed(monkeypatch))
    inbox.put(pow, 2, 3)
    owner = ProcessId.of(os.getpid())
    worker = Worker(spool, _TaintedGroup(), info_of(owner), WorkerOptions(owner=owner, replaced=True))
    run = Execution.run

    def run_and_request(execution: Execution, claim: Claim) -> None:
        run(execution, claim)
        cause(worker, spool, monkeypatch)

    monkeypatch.setattr(Execution, "run", run_and_request)
    assert worker.run() == code
