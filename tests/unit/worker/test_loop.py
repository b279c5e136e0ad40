"""Loop of a worker, in the process of the test."""

from __future__ import annotations

import os

import pytest

from spoolpool.protocol.spool import Spool
from spoolpool.system.processes import ProcessId
from spoolpool.worker import loop
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
