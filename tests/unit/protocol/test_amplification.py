"""Files, messages and memory that the content of a spool causes are bounded, whatever other accounts put there."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolpool.cli.spool import main
from spoolpool.client.starvation import StarvationMonitor
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import Lane, TaskFile, new_task_id, new_worker_id, parse_lane
from spoolpool.format.output_log import LogFile
from spoolpool.monitor.report import summary
from spoolpool.monitor.scan import waiting_tasks
from spoolpool.monitor.status import StatusCollector
from spoolpool.protocol import claimer, recovery, workers
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.delayed_tasks import DelayedTasks
from spoolpool.protocol.listing import ReadyListing
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import limited_log, packages
from spoolpool.system.processes import ProcessId
from tests.support.accounts import as_root, unused_id
from tests.support.fake_worker import LANE, Clock, SilentRegistration, announce, dead_process, info_of, run_worker
from tests.support.task_files import put


@pytest.fixture
def account(tmp_path: Path) -> int:
    """Number of an account that is not the one of this process."""
    return unused_id()


@pytest.fixture
def shared(tmp_path: Path) -> Spool:
    """Shared spool of this account and its group."""
    return Spool.create(tmp_path / "shared", mode="group", group=str(os.getegid()), durability="none")


def _lanes(count: int, version: str = "") -> list[str]:
    shape = parse_lane(LANE)
    assert shape is not None
    return [shape._replace(tags=(f"unknown{number}{version}",)).name for number in range(count)]


def test_lanes_that_ask_for_unknown_packages_make_few_files(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for lane in _lanes(300, "==1"):
        put(spool, "waiting", lane=lane)
    found: list[int] = []
    close = SilentRegistration.close

    def counted(self: SilentRegistration, **options: bool) -> None:
        found.append(sum(map(workers.is_lack_file, os.listdir(self.directory))))
        close(self, **options)

    monkeypatch.setattr(SilentRegistration, "close", counted)
    run_worker(spool, Clock.installed(monkeypatch))
    assert found == [100]
    assert os.listdir(spool.layout.workers) == []


def test_repeated_lack_costs_no_operation(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    registration = SilentRegistration(spool, info_of(ProcessId.of(os.getpid())))
    written: list[str] = []
    monkeypatch.setattr(spool, "write_public", lambda path, parts: written.append(path))
    for _ in range(3):
        registration.report_lack("x==1", "x is not installed")
    assert len(written) == 1


def test_lack_files_are_read_up_to_a_number(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = announce(spool, dead_process())
    for number in range(50):
        Path(spool.layout.worker(worker), f"lacks-unknown{number}==1").write_text("no", encoding="utf-8")
    monkeypatch.setattr(workers, "_MOST_LACKS", 20)
    [info] = workers.read_workers(spool)
    assert len(info.lacks) == 20


def test_memory_of_missing_packages_is_bounded() -> None:
    for number in range(5000):
        packages.lacks(f"unknown{number}==1")
    assert packages.lacks.cache_info().currsize <= 4096


def test_lack_files_are_no_finding_of_check(spool: Spool) -> None:
    worker = announce(spool, ProcessId.of(os.getpid()))
    Path(spool.layout.worker(worker), "lacks-x==1").write_text("x is not installed", encoding="utf-8")
    assert CliRunner().invoke(main, ["check", spool.path]).output == f"{spool.path}: nothing is wrong.\n"


def _claimer(spool: Spool) -> Claimer:
    return Claimer(spool, new_worker_id(), lambda lane: True, Trust())


def test_junk_among_ready_tasks_causes_few_messages_and_bounded_memory(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claimer, "_REFUSED", 50)
    monkeypatch.setattr(limited_log, "_BURST", 100.0)
    task = put(spool, "waiting")
    [bucket] = Path(spool.layout.lane(LANE)).iterdir()
    for _ in range(500):
        (bucket / TaskFile(new_task_id(), 1, 1).name).symlink_to("/etc/passwd")
    found = _claimer(spool)
    with caplog.at_level(logging.WARNING):
        claim = found.next()
    assert claim is not None and claim.task_file.task == task
    claim.close()
    for _ in range(3):
        assert found.next() is None
    assert len(found.refused) <= 51
    assert len(caplog.messages) <= 102


def test_locks_held_on_purpose_take_bounded_memory(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimer, "_BUSY", 5)
    monkeypatch.setattr(claimer, "_MOST_BUSY", 10)
    monkeypatch.setattr(claimer, "try_lock", lambda fd: claimer.Lock.BUSY)
    found = _claimer(spool)
    for _ in range(100):
        assert not found._lock(0, TaskFile(new_task_id(), 1, 1))
    assert len(found._busy) <= 11


def test_claims_made_up_for_dead_workers_cause_a_bounded_number_of_lines(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_MOST_LINES", 10)
    worker = announce(spool, dead_process())
    for _ in range(35):
        Path(spool.layout.claimed_task(TaskFile(new_task_id(), 1, 1, worker))).write_bytes(b"junk")
    lines = Recovery(spool, all_workers=True).round()
    assert (len(lines), lines[-1]) == (11, "25 more tasks")
    assert len(os.listdir(spool.layout.failed)) == 35


def test_claims_made_up_for_dead_workers_leave_a_bounded_number_of_records(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_MOST_KEPT", 10)
    worker = announce(spool, dead_process())
    tasks = [put(spool, "running", worker=worker) for _ in range(30)]
    assert len(Recovery(spool, all_workers=True).round()) == len(tasks)
    assert len(os.listdir(spool.layout.logs)) == 10


def test_header_of_an_output_with_an_absurd_length_is_read_up_to_the_end_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    task_file = TaskFile(new_task_id(), 1, 1)
    with path.open("w+b") as file:
        log = LogFile(file.fileno())
        log.begin_output(0, task_file, 1.0)
        file.seek(0, os.SEEK_END)
        file.write(b"output")
        file.flush()
        log.end_output(999_999_999_999_999)
        new = log.read_new(0, task_file, 0, 1 << 20)
    assert new is not None and new.data == b"output"


def test_reason_of_an_invalid_header_does_not_quote_all_of_it(spool: Spool) -> None:
    worker = announce(spool, dead_process())
    put(spool, "running", worker=worker, needs={"s": ("x" * 100_000,)})
    [line] = Recovery(spool, all_workers=True).round()
    assert len(line) < 1000


def test_outcomes_without_a_purpose_take_bounded_memory(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_MOST_SEEN", 10)
    spool.open_session("s")
    observer = Recovery(spool)
    for _ in range(50):
        Path(spool.layout.outgoing, "s", TaskFile(new_task_id(), 1, 1, new_worker_id()).name).touch()
    observer.sweep("s")
    assert len(observer._first_seen) == 10


def test_delayed_tasks_keep_little_of_a_header_in_memory(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    put(spool, "held", name="x" * 100_000, env={"X": "x" * 100_000}, not_before=4e9)
    delayed = DelayedTasks(spool)
    assert delayed.round() == 0
    [header] = delayed._headers.values()
    assert len(repr(header)) < 2000


def test_workers_that_are_gone_are_forgotten(spool: Spool) -> None:
    monitor = StarvationMonitor(spool)
    header = TaskHeader(task=new_task_id(), session="s", lane=LANE, bucket="b")
    for _ in range(20):
        worker = announce(spool, dead_process(), queues=("other",))
        monitor._warned.clear()
        monitor.check([header])
        workers.remove_worker(spool, worker)
    assert len(monitor._liveness._seen) <= 1


def test_few_lanes_are_watched(spool: Spool) -> None:
    for lane in _lanes(200):
        spool.make_directories(spool.layout.lane(lane))
    listing = ReadyListing(spool, lambda lane: True, lambda path, reason: None)
    listing.refresh()
    assert len(listing.directories()) <= 130


def test_texts_of_status_and_check_are_bounded_and_their_json_is_whole(spool: Spool) -> None:
    for lane in _lanes(200):
        put(spool, "waiting", lane=lane)
        Path(spool.layout.failed, f"junk{lane}").touch()
    announce(spool, ProcessId.of(os.getpid()))
    for command, kind, most in (("status", "blocked", 130), ("check", "findings", 110)):
        text = CliRunner().invoke(main, [command, spool.path]).output
        assert len(text.splitlines()) <= most
        assert "--json" in text
        assert len(json.loads(CliRunner().invoke(main, [command, "--json", spool.path]).output)[kind]) >= 200


def test_status_remembers_little_of_a_header(spool: Spool) -> None:
    put(spool, "failed", name="x" * 100_000, env={"X": "x" * 100_000})
    collector = StatusCollector(spool)
    collector.collect()
    [seen] = collector._reader._seen.values()
    assert len(repr(seen)) < 2000


def test_reason_why_tasks_wait_is_bounded(spool: Spool) -> None:
    infos = [info_of(dead_process(), queues=(f"queue{number}",)) for number in range(1000)]
    reason = workers.why_unserved(LANE, infos)
    assert reason is not None and "995 more reasons" in reason
    assert len(reason) < 1000


def test_report_has_a_bounded_number_of_groups(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "_GROUPS", 10)
    events = [
        {"t": 1e9 + n, "event": "task", "by": f"worker{n}", "kind": f"kind{n}", "started": 1e9, "ended": 1e9 + n}
        for n in range(100)
    ]
    text = "".join(f"{json.dumps(event)}\n" for event in events)
    Path(spool.layout.journal, "hostile.jsonl").write_text(text, encoding="utf-8")
    found = summary.summarize(spool)
    assert (len(found.groups), len(found.bars.rows), len(found.timed)) == (11, 11, 1)
    assert sum(group.tasks for group in found.groups.values()) == 100


@as_root
def test_lanes_of_other_accounts_bring_no_job(shared: Spool, account: int) -> None:
    own = parse_lane(LANE)._replace(user=os.geteuid())  # type: ignore[union-attr]
    forged = own._replace(ranks=2)
    for lane in (own, forged):
        spool_of(shared, lane)
    os.chown(shared.layout.lane(forged.name), account, -1)
    assert waiting_tasks(shared) == {own.name: 1}


@as_root
def test_files_of_other_accounts_in_a_lane_bring_no_job(shared: Spool, account: int) -> None:
    own = parse_lane(LANE)._replace(user=os.geteuid())  # type: ignore[union-attr]
    spool_of(shared, own)
    spool_of(shared, own)
    bucket, again = sorted(Path(shared.layout.lane(own.name)).iterdir())
    [junk] = bucket.iterdir()
    for path in (bucket, again, junk):  # a bucket that a worker made again holds tasks of the lane's account
        os.chown(path, account, -1)
    assert waiting_tasks(shared) == {own.name: 1}


def spool_of(spool: Spool, lane: Lane) -> None:
    """Put a task into a lane."""
    put(spool, "waiting", lane=lane.name)
