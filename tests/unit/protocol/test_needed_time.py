"""Time that a task needs: recorded in the name of its file, and compared with the time that a group has left."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoolpool.client.starvation import StarvationMonitor
from spoolpool.errors import WalltimeTooShort, WorkerLost
from spoolpool.format.names import TaskFile, new_task_id, parse_task_file
from spoolpool.monitor.query import TaskView
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.monitor.status import StatusCollector
from spoolpool.monitor.wait import Waiter
from spoolpool.protocol import journal, workers
from spoolpool.protocol.claim import Claim, GiveBack
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.failed_tasks import retry_task
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.processes import ProcessId
from spoolpool.worker.publish import Publisher
from tests.support.fake_worker import Clock, Stage, announce, dead_process, outcome_of, unknown_process
from tests.support.waiting import LIMIT


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.installed(monkeypatch)


@pytest.fixture
def stage(tmp_path: Path, clock: Clock) -> Stage:
    return Stage(tmp_path / "stage", clock)


def claimer(stage: Stage, left: float = math.inf, worker: str = "") -> Claimer:
    worker = worker or announce(stage.spool, unknown_process())
    return Claimer(stage.spool, worker, lambda _: True, Trust(), seconds_left=lambda: left)


def claimed(stage: Stage, left: float = math.inf, worker: str = "") -> Claim:
    claim = claimer(stage, left, worker).next()
    assert claim is not None
    return claim


def ready(stage: Stage) -> list[TaskFile]:
    return list(stage.seen().ready.values())


def give_back(stage: Stage, claim: Claim, ran: float, *, at_walltime: bool = True) -> bool:
    with claim:
        why = GiveBack(reason="tested", ran=ran, at_walltime=at_walltime)
        events = Journal(stage.spool, claim.task_file.worker)
        waits = claim.give_back(why, events)
        events.close()
        return waits


# -- names


@pytest.mark.parametrize(("limit", "seconds"), [(90, 90), (0.2, 1), ("2h", 7200), (89.5, 90)])
def test_time_limit_is_in_the_name_of_the_task_file(stage: Stage, limit: object, seconds: int) -> None:
    header = stage.submit(time_limit=limit)
    assert ready(stage) == [TaskFile(header.task, 1, 1, seconds=seconds)]
    [name] = [os.path.basename(path) for path in stage.seen().ready]
    assert name == f"{header.task}.000001.01-{seconds:09d}-00"


def test_task_without_a_limit_has_a_plain_name(stage: Stage) -> None:
    header = stage.submit()
    assert [os.path.basename(path) for path in stage.seen().ready] == [f"{header.task}.000001.01"]


def test_name_with_an_empty_time_is_no_name(stage: Stage) -> None:
    assert parse_task_file(f"{stage.submit().task}.000001.01-000000000-00") is None


def test_limited_task_is_cancelled_by_its_future(stage: Stage) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox, time_limit=90)
    assert inbox.given[header.task].cancel()
    assert ready(stage) == []


# -- claims


@pytest.mark.parametrize(("left", "fits"), [(12.0, False), (89.9, False), (90.0, True), (math.inf, True)])
def test_group_claims_a_limited_task_only_if_its_time_suffices(stage: Stage, left: float, fits: bool) -> None:
    header = stage.submit(time_limit=90)
    claim = claimer(stage, left).next()
    assert (claim is not None) == fits
    assert ready(stage) == ([] if fits else [header.first_file()])


def test_tasks_behind_one_that_needs_more_time_are_served(stage: Stage, clock: Clock) -> None:
    inbox = stage.inbox()
    long = [stage.submit(inbox, time_limit=90) for _ in range(5)]
    short = [stage.submit(inbox), stage.submit(inbox, time_limit=10)]
    group = claimer(stage, 12.0)
    found = []
    for _ in range(20):
        clock.sleep(0.4)
        if (claim := group.next()) is not None:
            with claim:
                found.append(claim.header.task)
    assert found == [header.task for header in short]
    # nothing was claimed and released: the names are as they were
    assert sorted(ready(stage)) == sorted(header.first_file() for header in long)


def test_bucket_in_which_all_tasks_need_more_time_comes_last(
    stage: Stage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    longs, shorts = stage.inbox(), stage.inbox()
    stage.submit(longs, time_limit=90)
    [path] = stage.seen().ready
    bucket = os.path.dirname(path)
    usable = [stage.submit(shorts) for _ in range(5)]
    group = claimer(stage, 12.0)
    list_names = files.list_names
    listed: list[str] = []

    def record(directory: str) -> list[str]:
        listed.append(directory)
        return list_names(directory)

    monkeypatch.setattr(files, "list_names", record)
    assert [claimed_by(group).header.task] == [usable[0].task]
    for header in usable[1:-1]:
        clock.sleep(1.5)  # a full listing each time
        assert claimed_by(group).header.task == header.task
    assert sum(directory.endswith(bucket) for directory in listed) <= 1
    fitting = stage.submit(longs, time_limit=10)
    assert {claimed_by(group).header.task for _ in range(2)} == {usable[-1].task, fitting.task}


def test_no_file_of_a_task_that_needs_more_time_is_opened(stage: Stage, clock: Clock) -> None:
    header = stage.submit()
    [path] = stage.seen().ready
    bucket = Path(stage.spool.path, path).parent
    for _ in range(2000):
        (bucket / TaskFile(new_task_id(1), 1, 1, seconds=90).name).touch()
    group = claimer(stage, 12.0)
    assert claimed_by(group).header.task == header.task
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open_file", lambda *_, **__: pytest.fail("a file was opened"))
        for _ in range(3):
            clock.sleep(2.0)
            assert group.next() is None
    assert group.refused == {}


def claimed_by(group: Claimer) -> Claim:
    claim = group.next()
    assert claim is not None
    claim.close()
    return claim


def test_task_of_a_version_that_names_no_time_is_claimed_once_by_a_short_group(stage: Stage, clock: Clock) -> None:
    header = stage.submit(time_limit=90)
    [path] = stage.seen().ready
    plain = TaskFile(header.task, 1, 1)
    os.rename(f"{stage.spool.path}/{path}", f"{stage.spool.path}/{os.path.dirname(path)}/{plain.name}")
    group = claimer(stage, 12.0)
    for _ in range(10):
        clock.sleep(0.4)
        assert group.next() is None
    assert ready(stage) == [plain.released().needing(90)]
    assert claimed(stage, 100.0).header.task == header.task


# -- give-backs


def test_given_back_task_waits_for_a_group_with_more_time(stage: Stage) -> None:
    header = stage.submit()
    assert give_back(stage, claimed(stage, 12.0), ran=11.4)
    assert ready(stage) == [TaskFile(header.task, 2, 1, seconds=12, releases=1)]
    assert claimer(stage, 11.9).next() is None
    with claimed(stage, 12.0) as _:
        pass


def test_whole_seconds_are_not_enough_a_second_time(stage: Stage) -> None:
    stage.submit()
    give_back(stage, claimed(stage, 11.0), ran=11.0)
    assert claimer(stage, 11.0).next() is None


def test_needed_time_never_becomes_less(stage: Stage) -> None:
    stage.submit()
    give_back(stage, claimed(stage), ran=100.0, at_walltime=False)
    give_back(stage, claimed(stage), ran=3.0, at_walltime=False)
    [task_file] = ready(stage)
    assert (task_file.seconds, task_file.releases) == (101, 0)


def test_limited_task_needs_its_limit_however_long_it_ran(stage: Stage) -> None:
    stage.submit(time_limit=90)
    give_back(stage, claimed(stage), ran=91.0)
    [task_file] = ready(stage)
    assert (task_file.seconds, task_file.releases) == (90, 1)


def test_give_backs_for_other_reasons_are_not_counted(stage: Stage) -> None:
    stage.submit(max_attempts=1)
    for _ in range(5):
        assert give_back(stage, claimed(stage), ran=1.0, at_walltime=False)


@pytest.mark.parametrize("attempts", [1, 3])
def test_task_given_back_as_often_as_it_has_attempts_is_reported_and_can_be_retried(
    stage: Stage, attempts: int
) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox, max_attempts=attempts)
    for number in range(attempts):
        waits = give_back(stage, claimed(stage), ran=10.0 * (number + 1))
        assert waits == (number + 1 < attempts)
    stage.collect(inbox, [header])
    error = inbox.given[header.task].exception()
    assert isinstance(error, WalltimeTooShort)
    assert isinstance(error, WorkerLost)
    assert f"{attempts} time(s)" in str(error)
    assert f"{10 * attempts} s" in str(error)
    assert "--max-time" in str(error)
    [kept] = stage.seen().failed.values()
    retry_task(stage.spool, kept.name)
    assert ready(stage) == [TaskFile(header.task, kept.claim + 1, 1)]


def test_retries_count_as_attempts_of_a_give_back_too(stage: Stage) -> None:
    stage.submit(max_attempts=1, retries=1)
    assert give_back(stage, claimed(stage), ran=1.0)
    assert not give_back(stage, claimed(stage), ran=2.0)


def test_death_of_a_worker_keeps_the_needed_time(stage: Stage) -> None:
    stage.submit()
    give_back(stage, claimed(stage), ran=5.0)
    worker = announce(stage.spool, dead_process())
    claimed(stage, worker=worker).close()
    Recovery(stage.spool).round()
    [task_file] = ready(stage)
    assert (task_file.attempt, task_file.seconds, task_file.releases) == (2, 6, 1)


def test_outcome_that_is_written_meanwhile_is_not_replaced_by_a_report(stage: Stage) -> None:
    header = stage.submit(max_attempts=1)
    claim = claimed(stage)
    claim.write_outcome([b"a part of it"])
    assert give_back(stage, claim, ran=1.0)
    assert [task_file.task for task_file in ready(stage)] == [header.task]


class _AnnouncedLock:
    """Lock that sets an event before a thread waits for it."""

    def __init__(self, arrived: threading.Event) -> None:
        self._lock = threading.Lock()
        self._arrived = arrived
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> None:
        self._arrived.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_call_that_ends_during_the_report_of_its_walltime_does_not_replace_the_outcome(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox, max_attempts=1)
    claim = claimed(stage)
    written, arrived, reported = (threading.Event() for _ in range(3))
    claim.publishing = _AnnouncedLock(arrived)  # type: ignore[assignment]
    write = Spool.write
    results: dict[str, bool] = {}

    def write_in_two_parts(spool: Spool, path: str, label: Any, parts: Any, rights: Any) -> None:
        with open(path, "xb") as file:
            file.write(b"a part of it")
            if threading.current_thread() is reporter:
                written.set()
                assert arrived.wait(LIMIT)
            else:
                arrived.set()
                assert reported.wait(LIMIT)
            write(spool, f"{path}.whole", label, parts, rights)
            file.seek(0)
            file.write(Path(f"{path}.whole").read_bytes())
        os.remove(f"{path}.whole")

    def report() -> None:
        results["given back"] = give_back(stage, claim, ran=1.0)
        results["complete"] = claim.has_outcome()
        reported.set()

    def publish() -> None:
        publisher = Publisher(stage.spool, 1, Journal(stage.spool, "w"))
        parts = outcome_of(header, claim.task_file)
        results["published"] = publisher.publish(claim, parts, time.time(), lambda: False)

    monkeypatch.setattr(Spool, "write", write_in_two_parts)
    reporter, caller = threading.Thread(target=report), threading.Thread(target=publish)
    reporter.start()
    assert written.wait(LIMIT)
    caller.start()
    reporter.join(LIMIT)
    caller.join(LIMIT)
    assert results == {"given back": False, "complete": True, "published": False}
    stage.collect(inbox, [header])
    assert isinstance(inbox.given[header.task].exception(), WalltimeTooShort)


def test_call_that_publishes_at_the_end_of_its_walltime_is_not_reported(stage: Stage) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox, max_attempts=1)
    claim = claimed(stage)
    with claim.publishing:
        claim.write_outcome(outcome_of(header, claim.task_file))
        assert claim.commit()
    stage.collect(inbox, [header])
    assert not give_back(stage, claim, ran=1.0)
    assert stage.seen().failed == {}
    assert inbox.given[header.task].exception() is None


def test_give_backs_are_journaled_with_their_reason(stage: Stage) -> None:
    header = stage.submit(max_attempts=2)
    for number in range(2):
        claim = claimed(stage)
        give_back(stage, claim, ran=number + 0.5)
        [event] = journal.recent(stage.spool, claim.task_file.worker)[0]
        assert (event.event, event.task, event.reason, event.ran) == ("given back", header.task, "tested", number + 0.5)
        assert event.kind == ("lost" if number else "")


# -- supervisors


@pytest.mark.parametrize("attempts", [1, 2])
def test_supervisor_gives_back_the_task_of_a_group_at_the_end_of_its_walltime(stage: Stage, attempts: int) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox, max_attempts=attempts)
    claim = claimed(stage)
    claim.write_outcome([b"a part of it"])  # the group was killed while it wrote its outcome
    claim.close()
    events = Journal(stage.spool, "supervisor")
    supervisor = Recovery(stage.spool, events)
    taken = supervisor.take_over(claim.task_file.worker, "over", over=0.0)
    assert not claim.commit()  # what the group publishes while it is ended is discarded
    assert supervisor.release(taken) == ([header.task] if attempts > 1 else []), "a task that was reported is not ready"
    events.close()
    [event] = journal.recent(stage.spool, "supervisor")[0]
    assert (event.event, event.task, event.reason) == ("given back", header.task, "over")
    assert event.worker == claim.task_file.worker
    if attempts > 1:
        assert ready(stage) == [TaskFile(header.task, 3, 1, seconds=1, releases=1)]
        return
    stage.collect(inbox, [header])
    assert isinstance(inbox.given[header.task].exception(), WalltimeTooShort)


def test_time_of_a_call_is_not_more_than_the_age_of_its_group(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    header = stage.submit()
    claim = claimed(stage)
    claim.close()
    now = stage.spool.server_time()
    os.utime(f"{stage.spool.layout.worker(claim.task_file.worker)}/info.json", (now, now))
    monkeypatch.setattr(type(stage.spool), "server_time", lambda _: now + 100.5)
    supervisor = Recovery(stage.spool)
    supervisor.release(supervisor.take_over(claim.task_file.worker, "over", over=20.0))
    assert ready(stage) == [TaskFile(header.task, 3, 1, seconds=81, releases=1)]


# -- entries, status, warnings


def here(stage: Stage, left: float | None, **more: Any) -> str:
    """Announce a group of this process."""
    return announce(stage.spool, ProcessId.of(os.getpid()), time_left=left, **more)


def test_end_of_a_group_is_computed_from_the_date_of_its_entry(stage: Stage) -> None:
    worker = here(stage, 12.0, ends=4e9)
    os.utime(f"{stage.spool.layout.worker(worker)}/info.json", (1000.0, 1000.0))
    assert workers.load_worker(stage.spool, worker).ends == 1012.0
    endless = here(stage, None, ends=4e9)
    assert workers.load_worker(stage.spool, endless).ends is None


def test_entry_without_an_end_is_as_before(stage: Stage) -> None:
    path = Path(stage.spool.layout.worker(here(stage, None)), "info.json")
    assert not {"ends", "time_left"} & msgspec.json.decode(path.read_bytes()).keys()


def test_status_says_how_much_time_a_task_needs_and_the_longest_group_has(stage: Stage) -> None:
    stage.submit(time_limit=90)
    stage.submit(time_limit=5)
    here(stage, 12.5)
    here(stage, 3.0)
    here(stage, None, queues=("other",))  # it serves another lane
    [blocked] = StatusCollector(stage.spool).collect().blocked
    assert blocked.count == 1
    assert blocked.why == "no live group can run them: needs 90 s, the longest group has 12 s left"


def test_status_counts_the_tasks_that_were_given_back(stage: Stage) -> None:
    stage.submit()
    stage.submit(time_limit=90)
    give_back(stage, claimed(stage, worker=here(stage, 12.5)), ran=20.0)
    [blocked] = StatusCollector(stage.spool).collect().blocked
    assert blocked.count == 2
    assert "the shortest needs 21 s, the longest group has 12 s left; 1 did not end" in blocked.why


def test_status_without_a_group_says_how_much_time_the_tasks_need(stage: Stage) -> None:
    stage.submit(time_limit=90)
    [blocked] = StatusCollector(stage.spool).collect().blocked
    assert blocked.why == f"{workers.NO_GROUP}; the longest needs 90 s"


def test_group_without_an_end_blocks_nothing(stage: Stage) -> None:
    stage.submit(time_limit=90)
    here(stage, 12.5)
    here(stage, None)
    assert StatusCollector(stage.spool).collect().blocked == ()


def test_submitter_is_warned_of_tasks_that_need_more_time(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    inbox = stage.inbox()
    headers = [stage.submit(inbox, time_limit=90), stage.submit(inbox), stage.submit(inbox)]
    here(stage, 12.5)
    monitor = StarvationMonitor(stage.spool)
    for _ in range(3):
        monitor.check(headers)
    [warning] = caplog.messages
    assert "1 task(s) wait" in warning
    assert "needs 90 s, the longest group has 12 s left" in warning


def test_running_task_with_a_limit_causes_no_warning(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    header = stage.submit(time_limit=90)
    with claimed(stage, 91.0):
        here(stage, 50.0)
        StarvationMonitor(stage.spool).check([header])
    assert not caplog.messages


def test_submitter_is_warned_of_a_given_back_task_later(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    header = stage.submit()
    worker = here(stage, 12.5)
    monitor = StarvationMonitor(stage.spool)
    monitor.check([header])
    assert not caplog.messages
    give_back(stage, claimed(stage, worker=worker), ran=20.0)
    monitor.check([header])
    assert "needs 21 s, the longest group has 12 s left; 1 did not end" in caplog.text


@pytest.mark.parametrize("read_only", [False, True])
def test_waiting_command_warns_once_of_tasks_that_need_more_time(
    stage: Stage, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.submit(time_limit=90)
    stage.submit()
    here(stage, 12.5)

    def refused(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    if read_only:
        monkeypatch.setattr(files, "touch", refused)
    scanner = SpoolScanner(stage.spool.layout.root)
    waiter = Waiter(stage.spool, [TaskView(stage.spool, location) for location in scanner.tasks()])
    found = []
    for _ in range(3):
        waiter._warnings_due = 0.0
        found += waiter.warnings()
    [warning] = found
    assert "needs 90 s, the longest group has 12 s left" in warning
