"""Loop of a worker, in the process of the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolpool import settings
from spoolpool.calls.leftovers import Severity
from spoolpool.errors import BrokenSpool
from spoolpool.protocol import journal, worker_registration, workers
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.outcome_log import OutcomeLog
from spoolpool.protocol.presence import GRACE
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Resources
from spoolpool.system.processes import ProcessId
from spoolpool.worker import loop
from spoolpool.worker.execution import Execution
from spoolpool.worker.housekeeping import Housekeeping
from spoolpool.worker.loop import Worker, WorkerOptions
from spoolpool.worker.serial_group import SerialGroup
from tests.support.fake_worker import (
    Clock,
    Inbox,
    SilentRegistration,
    SilentWatch,
    Stage,
    announce,
    dead_process,
    info_of,
)


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


_TIME_LIMIT = 100.0  # seconds of a call


def _stop_at_walltime(worker: Worker, _spool: Spool, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(worker, "_end_time", 0.0)


def _run_pack(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, after_first: Callable[[Worker, Spool, pytest.MonkeyPatch], None]
) -> int:
    """Run a worker; act after the first call of a pack, of which each takes six seconds."""
    monkeypatch.setattr(loop, "Registration", SilentRegistration)
    monkeypatch.setattr(loop, "DirectoryWatcher", lambda: SilentWatch(stage.clock, 100))
    owner = ProcessId.of(os.getpid())
    worker = Worker(stage.spool, SerialGroup(), info_of(owner), WorkerOptions(owner=owner, idle_timeout=0.3))
    append = OutcomeLog.append

    def append_and_act(log: OutcomeLog, *arguments: object, **options: object) -> None:
        append(log, *arguments, **options)  # type: ignore[arg-type]
        if log.done == 1:
            after_first(worker, stage.spool, monkeypatch)
        stage.clock.sleep(6.0)

    monkeypatch.setattr(OutcomeLog, "append", append_and_act)
    return worker.run()


def _leave_too_little_time(worker: Worker, _spool: Spool, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(worker, "_end_time", loop.time.monotonic() + 6.0 + _TIME_LIMIT - 1.0)


@pytest.mark.parametrize("cause", [_stop_by_signal, _stop_by_file, _stop_at_walltime, _leave_too_little_time])
def test_pack_ends_after_the_running_call_and_its_other_calls_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Callable[[Worker, Spool, pytest.MonkeyPatch], None]
) -> None:
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    header = stage.submit_pack(calls=3, resources=Resources(time_limit=_TIME_LIMIT))
    assert _run_pack(stage, monkeypatch, cause) == 0
    [ready] = stage.seen().ready.values()
    assert (ready.task, ready.attempt, ready.first, ready.calls) == (header.task, 1, 1, 3)
    assert ready.claim == 2 or ready.seconds == _TIME_LIMIT, "it was claimed again, and needs another group"
    assert stage.runs() == {f"{header.task}+0": 1}
    assert [each.event for each in journal.about(stage.spool, {header.task})][-1] == "given back"


def test_worker_ends_between_two_calls_of_a_pack_whose_spool_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    calls = 2 + int(GRACE / 6.0) + 1
    header = stage.submit_pack(calls=calls)
    with pytest.raises(BrokenSpool):
        _run_pack(stage, monkeypatch, lambda _worker, spool, _patch: shutil.rmtree(spool.path))
    assert f"{header.task}+{calls - 1}" not in stage.runs()


def test_dead_workers_are_recovered_between_two_calls_of_a_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    pack = stage.submit_pack(calls=4)
    other = stage.submit()
    dead = other.first_file().claimed_by(announce(stage.spool, dead_process()))
    bucket = stage.spool.layout.bucket(other.lane, other.bucket)
    os.rename(f"{bucket}/{other.first_file().name}", stage.spool.layout.claimed_task(dead))

    def let_time_pass(_worker: Worker, spool: Spool, _patch: pytest.MonkeyPatch) -> None:
        stage.clock.sleep(4 * spool.config.lease)

    _run_pack(stage, monkeypatch, let_time_pass)
    kinds = [(each.event, each.task) for each in journal.about(stage.spool, {pack.task, other.task})]
    assert kinds.index(("recovered", other.task)) < kinds.index(("task", pack.task))
