"""Journals: their content, their merged order, and the command ``spool journal``."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolpool import Executor
from spoolpool.cli.spool import main
from spoolpool.errors import TaskTimeout, WorkerLost
from spoolpool.format.headers import TaskHeader
from spoolpool.format.journal_names import writer_of
from spoolpool.format.names import TaskFile, new_task_id, new_worker_id
from spoolpool.protocol import journal
from spoolpool.protocol.journal import Event, Journal, lines, submitters_journal
from spoolpool.protocol.spool import Spool
from spoolpool.system import file_content, files
from spoolpool.system.accounts import account_name
from spoolpool.system.processes import hostname
from spoolpool.worker.task_journal import TaskJournal
from tests.conftest import Workers
from tests.support import tasks
from tests.support.accounts import as_root, unused_id
from tests.support.fake_worker import LANE, Clock, Stage
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
    assert sorted(events[1:]) == [("claimed", ""), ("collected", "result"), ("task", "result")]
    assert [line.event.event for line in found if line.event.task == cancelled.task] == ["submitted", "cancelled"]  # type: ignore[attr-defined]
    assert {line.event.by for line in found if line.event.event in ("submitted", "cancelled", "collected")} == {session}
    assert len(spool_journal(spool)) == len(found)
    assert spool_journal(spool, "--event", "collected", "--task", failing.task)[0].count("kind=error") == 1  # type: ignore[attr-defined]


def test_journal_lines_of_a_submitter_are_written_in_batches(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    appended: list[int] = []
    append = file_content.append
    monkeypatch.setattr(file_content, "append", lambda fd, data: appended.append(data.count(b"\n")) or append(fd, data))
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


# -- deaths of writers


def events(spool: Spool, task: str = "") -> list[Event]:
    """Return the events of a task, or all."""
    return [line.event for line in lines(spool) if line.event.task == task or not task]


def kinds(spool: Spool, task: str = "") -> list[str]:
    """Return the kinds of :func:`events`."""
    return [event.event for event in events(spool, task)]


def test_group_that_is_killed_in_its_first_call_leaves_its_start_and_its_claim(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    with Executor(spool=spool.path, session="kept") as executor:
        future = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "end")
        serving = worker(spool)
        wait_until((tmp_path / "started").exists, "the call runs")
        worker.may_die(serving)
        os.killpg(serving.pid, signal.SIGKILL)
        serving.wait(LIMIT)
        assert "worker started" in kinds(spool)
        [claimed] = [event for event in events(spool, future.task) if event.event == "claimed"]  # type: ignore[attr-defined]
        assert (claimed.name, claimed.session, claimed.attempt) == ("tests.support.tasks.mark_and_wait", "kept", 1)
        assert claimed.started and claimed.attempts and claimed.lane
        executor.cancel(future, running=True)
        executor.detach()


def test_call_that_holds_the_interpreter_lock_is_in_the_journal_before_it_begins(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with gate.open("w") as lock, Executor(spool=spool.path) as executor:
        fcntl.flock(lock, fcntl.LOCK_EX)
        future = executor.submit(tasks.hold_gil, tmp_path / "started", gate)
        worker(spool)
        wait_until((tmp_path / "started").exists, "the call runs")
        assert "claimed" in kinds(spool, future.task)  # type: ignore[attr-defined]
        fcntl.flock(lock, fcntl.LOCK_UN)
        future.result(LIMIT)


def test_long_call_of_a_function_with_short_calls_is_in_the_journal_while_it_runs(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    end.touch()
    with Executor(spool=spool.path) as executor:
        worker(spool)
        short = [executor.submit(tasks.mark_and_wait, tmp_path / "short", end) for _ in range(3)]
        for future in short:
            future.result(LIMIT)
        end.unlink()
        long = executor.submit(tasks.mark_and_wait, tmp_path / "long", end)
        wait_until(lambda: "claimed" in kinds(spool, long.task), "the claim is in the journal")  # type: ignore[attr-defined]
        assert not long.done()
        assert [kinds(spool, future.task).count("claimed") for future in short] == [1, 0, 0]  # type: ignore[attr-defined]
        assert all("task" in kinds(spool, future.task) for future in short)  # type: ignore[attr-defined]
        end.touch()
        long.result(LIMIT)


def test_function_whose_last_call_was_long_is_in_the_journal_before_the_next(spool: Spool) -> None:
    journal = Journal(spool, new_worker_id())
    written = TaskJournal(journal)
    claims = []
    for seconds in (0.01, 0.01, 5.0, 0.01, 0.01):
        task_file = TaskFile(new_task_id(), 1, 1)
        header = TaskHeader(task=task_file.task, session="s", lane=LANE, bucket="", name="fit")
        written.begin_call(task_file, header, 1.0)
        claims.append("claimed" in kinds(spool, task_file.task))
        written.end_call(task_file, "fit", seconds)
    assert claims == [True, False, False, True, False]
    assert kinds(spool) == ["claimed"] * 2


def test_any_number_of_functions_is_remembered_in_bounded_memory(spool: Spool) -> None:
    written = TaskJournal(Journal(spool, new_worker_id()))
    for number in range(5000):
        written.end_call(TaskFile(new_task_id(), 1, 1), f"function-{number}", 0.0)
    assert len(written._short) <= 1000


def test_entries_of_an_idle_worker_are_written(spool: Spool, worker: Workers) -> None:
    with Executor(spool=spool.path) as executor:
        worker(spool)
        futures = [executor.submit(pow, 2, 3) for _ in range(5)]
        for future in futures:
            wait_until(lambda future=future: "task" in kinds(spool, future.task), "its end is in the journal")  # type: ignore[attr-defined, misc]


@pytest.mark.parametrize("attempts", [1, 2])
def test_task_that_a_supervisor_recovers_is_recorded_with_reason_attempts_and_group(
    spool: Spool, worker: Workers, tmp_path: Path, attempts: int
) -> None:
    with Executor(spool=spool.path, session="kept") as executor:
        resources = {"max_attempts": attempts}
        future = executor.submit(tasks.die, "SIGKILL", tmp_path / "trace", resource_dict=resources)
        worker(spool, "--launcher", "local", "--groups", 1)
        assert isinstance(future.exception(LIMIT), WorkerLost)
        recovered = lambda: kinds(spool, future.task).count("recovered") == attempts  # type: ignore[attr-defined]  # noqa: E731
        wait_until(recovered, "its recoveries are in the journal")
        found = [event for event in events(spool, future.task) if event.event == "recovered"]  # type: ignore[attr-defined]
        dead = [event.by for event in events(spool, future.task) if event.event == "claimed"]  # type: ignore[attr-defined]
        assert [event.attempt for event in found] == list(range(1, attempts + 1))
        assert [event.kind for event in found] == [""] * (attempts - 1) + ["lost"]
        assert [event.worker for event in found] == dead
        assert {(event.attempts, event.by, event.session) for event in found} == {(attempts, "supervisor", "kept")}
        assert all("SIGKILL" in event.reason for event in found)
        assert all(event.about == future.task for event in found)  # type: ignore[attr-defined]


def test_outcome_that_is_published_before_the_end_of_a_group_is_recorded(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    with Executor(spool=spool.path) as executor:
        limit = {"time_limit": 0.2}
        future = executor.submit(tasks.wait_in_vain, tmp_path / "started", resource_dict=limit)
        worker(spool, "--launcher", "local", "--grace", 0.2)
        assert isinstance(future.exception(LIMIT), TaskTimeout)
        wait_until(lambda: "task" in kinds(spool, future.task), "its end is in the journal")  # type: ignore[attr-defined]
        [end] = [event for event in events(spool, future.task) if event.event == "task"]  # type: ignore[attr-defined]
        assert (end.kind, end.type, end.published) == ("error", "spoolpool.errors.TaskTimeout", True)
        assert end.started and end.ended >= end.started


def test_task_that_is_set_aside_is_recorded_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    stage.submit()
    [bucket] = Path(stage.spool.layout.lane(LANE)).iterdir()
    [file] = bucket.iterdir()
    file.write_bytes(b"a file of another program")
    stage.work()
    [end] = [event for event in events(stage.spool) if event.event == "set aside"]
    assert end.task == file.name[:29]
    assert file.name[:29] in end.reason


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
