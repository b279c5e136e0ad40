"""Journals: their content, their merged order, and the command ``spool journal``."""

from __future__ import annotations

import json
import os
import random
import resource
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolpool import Executor
from spoolpool.cli.spool import main
from spoolpool.format.names import TaskFile, new_task_id, writer_of
from spoolpool.protocol import journal
from spoolpool.protocol.journal import Journal, lines, submitters_journal
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.processes import hostname
from tests.conftest import Workers
from tests.support.accounts import as_root, unused_id
from tests.support.fake_worker import Clock, Stage
from tests.support.processes import in_fork
from tests.support.waiting import LIMIT, wait_until

OTHER_ACCOUNT = unused_id()


def spool_journal(spool: Spool, *options: object) -> list[str]:
    result = CliRunner().invoke(main, ["journal", spool.path, *map(str, options)])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def write(spool: Spool, name: str, *events: dict[str, object]) -> Path:
    """Write a journal with these events."""
    path = Path(spool.layout.journal, f"{name}.jsonl")
    about = {"event": "task", "by": name, "uid": os.geteuid(), "host": "somewhere"}
    path.write_text("".join(json.dumps({**about, **event}) + "\n" for event in events), encoding="utf-8")
    return path


def test_actions_of_submitters_and_workers_are_recorded_in_order(spool: Spool, worker: Workers) -> None:
    with Executor(spool=spool.path) as executor:
        cancelled = executor.submit(pow, 2, 2)
        assert cancelled.cancel()
        serving = worker(spool)
        future = executor.submit(pow, 2, 5)
        failing = executor.submit(pow, 0, -1)
        assert future.result(LIMIT) == 32
        assert isinstance(failing.exception(LIMIT), ZeroDivisionError)
        session = executor.info["session"]
    serving.terminate()
    serving.wait(LIMIT)
    found = list(lines(spool))
    assert [line.time for line in found] == sorted(line.time for line in found)
    assert {(line.event.uid, line.owner, line.event.host) for line in found} == {
        (os.geteuid(), os.geteuid(), hostname())
    }
    events = [(line.event.event, line.event.kind) for line in found if line.event.task == future.task]  # type: ignore[attr-defined]
    assert events[0] == ("submitted", "")  # the collector may be faster than the worker's next line
    assert sorted(events[1:]) == [("collected", "result"), ("task", "result")]
    assert [line.event.event for line in found if line.event.task == cancelled.task] == ["submitted", "cancelled"]  # type: ignore[attr-defined]
    assert {line.event.by for line in found if line.event.event in ("submitted", "cancelled", "collected")} == {session}
    assert len(spool_journal(spool)) == len(found)
    assert spool_journal(spool, "--event", "collected", "--task", failing.task)[0].count("kind=error") == 1  # type: ignore[attr-defined]


def test_journal_lines_of_a_submitter_are_written_in_batches(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    appended: list[int] = []
    append = files.append
    monkeypatch.setattr(files, "append", lambda fd, data: appended.append(data.count(b"\n")) or append(fd, data))
    monkeypatch.setattr(journal, "time", Clock())
    with Executor(spool=spool.path) as executor:
        for _ in range(300):
            assert executor.submit(pow, 2, 2).cancel()
    assert appended[:2] == [256, 256] and sum(appended) == 600 and len(appended) < 6


def test_sessions_of_a_host_share_a_journal(spool: Spool) -> None:
    for _ in range(3):
        with Executor(spool=spool.path) as executor:
            assert executor.submit(pow, 2, 2).cancel()
    assert os.listdir(spool.layout.journal) == [f"{submitters_journal()}.jsonl"]
    assert writer_of(f"{submitters_journal()}.jsonl")
    assert Counter(line.event.event for line in lines(spool)) == {"submitted": 3, "cancelled": 3}


def test_concurrent_writers_do_not_mix_their_lines(spool: Spool) -> None:
    def append(number: int) -> None:
        mine = Journal(spool, submitters_journal(), f"session-{number}")
        for _ in range(200):
            mine.write("submitted", text="x" * 500)
            mine.flush()
        mine.close()

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert Counter(line.event.by for line in lines(spool)) == {f"session-{number}": 200 for number in range(4)}


def test_forked_child_does_not_write_the_lines_of_its_parent(spool: Spool) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(pow, 2, 2)
        executor.submit(pow, 2, 3)
        in_fork(lambda: executor.submit(pow, 2, 4).cancel())
        assert future.cancel()
        executor.shutdown(cancel_futures=True)
    assert Counter(line.event.event for line in lines(spool)) == {"submitted": 2, "cancelled": 2}


def test_embedded_executor_writes_no_submitter_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spoolpool.client.pending.Journal", lambda *_: pytest.fail("a journal"))
    with Executor(max_workers=1, backend="local") as executor:
        assert executor.submit(pow, 2, 2).result(LIMIT) == 4


def test_unwritable_journal_does_not_stop_tasks(stage_with_lines: Stage) -> None:
    stage_with_lines.work()
    assert stage_with_lines.runs()


@pytest.fixture
def stage_with_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    monkeypatch.setattr(files, "open_append", _refuse)
    stage.submit()
    return stage


def _refuse(path: str, mode: int = 0, **_: object) -> int:
    raise PermissionError(13, "Permission denied", path)


def test_actions_of_commands_are_recorded(spool: Spool) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(pow, 2, 2)
        name = future.task  # type: ignore[attr-defined]
        assert CliRunner().invoke(main, ["cancel", spool.path, name, "--yes"]).exit_code == 0
        wait_until(future.cancelled, "the future is cancelled")
    failed = Path(spool.layout.failed, TaskFile(new_task_id(), 1, 1).name)
    failed.touch()
    assert CliRunner().invoke(main, ["rm", spool.path, failed.name[:29], "--yes"]).exit_code == 0
    found = [(line.event.event, line.event.by, line.event.task) for line in lines(spool)]
    assert ("cancelled", "spool", name) in found
    assert ("removed", "spool", failed.name[:29]) in found


# -- reading


def test_journals_are_merged_by_time(spool: Spool) -> None:
    moments = [float(number) for number in range(1000, 2000)]
    for writer in range(10):
        write(spool, f"writer-{writer}", *({"t": moment} for moment in moments[writer::10]))
    assert [line.time for line in lines(spool)] == moments
    assert [line.time for line in lines(spool, since=1990.0)] == moments[-10:]


def test_clock_that_was_set_back_does_not_affect_other_journals(spool: Spool) -> None:
    write(spool, "back", {"t": 100.0}, {"t": 50.0}, {"t": 101.0})
    write(spool, "other", {"t": 99.0}, {"t": 100.5})
    assert [(line.event.by, line.event.t) for line in lines(spool)] == [
        ("other", 99.0),
        ("back", 100.0),
        ("back", 50.0),
        ("other", 100.5),
        ("back", 101.0),
    ]


def test_invalid_lines_and_files_are_skipped(spool: Spool, tmp_path: Path) -> None:
    good = write(spool, "good", {"t": 1.0}, {"t": 2.0})
    with good.open("ab") as file:
        file.write(b'\x00\xff\n[1]\n{"t": 1e999, "event": "x"}\n' + b'{"a":' * 5000 + b'\n{"t": 3.0, "event": "half')
    (tmp_path / "elsewhere.jsonl").write_text('{"t": 1.0, "event": "linked"}\n')
    Path(spool.layout.journal, "linked.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    os.mkfifo(Path(spool.layout.journal, "fifo.jsonl"))
    Path(spool.layout.journal, "directory.jsonl").mkdir()
    Path(spool.layout.journal, "notes.txt").write_text("hello")
    Path(spool.layout.journal, "endless.jsonl").write_bytes(b"x" * (3 << 20))
    assert [line.time for line in lines(spool)] == [1.0, 2.0]


def test_filters_select_by_task_account_time_and_event(spool: Spool) -> None:
    task = new_task_id()
    now = time.time()
    write(
        spool,
        "writer",
        {"t": now - 7200, "task": task},
        {"t": now - 60, "task": task, "event": "submitted"},
        {"t": now - 30, "task": new_task_id()},
        {"t": now, "event": "recovered", "text": f"{task}: brought back"},
    )
    assert len(spool_journal(spool)) == 4
    assert len(spool_journal(spool, "--task", task[-10:])) == 3
    assert len(spool_journal(spool, "--task", task[:20], "--since", "1h")) == 2
    assert len(spool_journal(spool, "--since", time.strftime("%Y-%m-%dT%H:%M", time.localtime(now - 120)))) == 3
    assert len(spool_journal(spool, "--event", "task", "--event", "recovered")) == 3
    assert len(spool_journal(spool, "--user", account_name(os.geteuid()))) == 4
    assert spool_journal(spool, "--user", unused_id()) == []


@as_root
@pytest.mark.multiuser
def test_line_with_another_account_than_its_file_is_marked(spool: Spool) -> None:
    forged = write(spool, "forged", {"t": 1.0, "account": "root", "forged": False}, {"t": 2.0, "uid": OTHER_ACCOUNT})
    os.chown(forged, OTHER_ACCOUNT, OTHER_ACCOUNT)
    first, second = spool_journal(spool)
    name = account_name(OTHER_ACCOUNT)
    assert f"{name}@somewhere ! claims to be root" in first
    assert f"{name}@somewhere" in second and "!" not in second
    documents = [json.loads(line) for line in spool_journal(spool, "--json")]
    assert [(each["account"], each["forged"]) for each in documents] == [(name, True), (name, False)]
    assert len(spool_journal(spool, "--user", OTHER_ACCOUNT)) == 2


def test_lines_are_escaped_for_the_terminal(spool: Spool) -> None:
    evil = "\x1b]0;title\x07\x9b31m\nnext\u202e"
    write(spool, "evil", {"t": 1.0, "event": evil, "host": evil, "name": evil, evil: evil}, {"t": 1e300})
    found = spool_journal(spool)
    assert len(found) == 2
    assert all(each.isprintable() for each in found)


def test_reading_is_bounded_in_memory_and_open_files(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for writer in range(300):
        write(spool, f"writer-{writer}", *({"t": random.random(), "text": "x" * 1000} for _ in range(20)))
    sizes: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: sizes.append(size) or pread(fd, size, at))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 90, before[1]))
    try:
        assert sum(1 for _ in lines(spool)) == 6000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert 300 * max(sizes) <= 1 << 25
