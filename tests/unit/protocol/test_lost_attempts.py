"""Records of how the attempts of a lost task ended, and the error that is made of them."""

from __future__ import annotations

import json
import os
import pickle
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolpool.calls import pickling
from spoolpool.errors import LostAttempt, WorkerLost
from spoolpool.format.names import OutputFile, TaskFile, new_task_id
from spoolpool.format.output_log import LogFile
from spoolpool.protocol import lost_attempts
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import exit_file, stack_file
from spoolpool.system import file_content, files
from spoolpool.system.crash import STACK_LIMIT, crash_stack
from spoolpool.system.processes import ProcessId, describe_command_status, describe_status
from tests.support.fake_worker import Clock, Stage, announce, dead_process

STACK = """\
Fatal Python error: Segmentation fault

Thread 0x00007f0000000001 (most recent call first):
  File "threading.py", line 331 in wait

Current thread 0x00007f0000000002 (most recent call first):
  File "mine.py", line 3 in crash
  File "spoolpool/calls/run.py", line 142 in run_call
  File "<frozen runpy>", line 88 in _run_code

Extension modules: msgspec._core (total: 1)
"""
SHORT = """\
Fatal Python error: Segmentation fault
Current thread 0x00007f0000000002 (most recent call first):
  File "mine.py", line 3 in crash"""


@pytest.fixture
def dead(spool: Spool) -> TaskFile:
    """A claim of a dead worker with an entry."""
    return TaskFile(new_task_id(), 1, 1, announce(spool, dead_process(), job="4711"))


def entry(spool: Spool, task_file: TaskFile) -> Path:
    return Path(spool.layout.worker(task_file.worker))


# -- statuses


def test_error_names_each_exit_status_and_each_signal() -> None:
    for status in range(256):
        attempt = LostAttempt(1, "w", status=status)
        assert f"exit status {status}" in describe_status(status)
        assert (attempt.exit_status, attempt.signal) == (status, "")
    for number in signal.valid_signals():
        attempt = LostAttempt(1, "w", status=-number)
        assert attempt.signal in describe_status(-number) and attempt.signal.startswith("SIG")
        assert attempt.exit_status is None
        assert attempt.signal in describe_command_status(128 + number)
    assert "out-of-memory" in describe_status(-signal.SIGKILL)
    assert LostAttempt(1, "w").signal == "" and LostAttempt(1, "w").exit_status is None


def test_error_keeps_its_attempts_in_a_pickle_that_names_no_further_class() -> None:
    error = WorkerLost("it died", [LostAttempt(1, "a", status=-9), LostAttempt(2, "b", rank=1, stack="x")])
    error.note = "mine"  # type: ignore[attr-defined]
    data = bytes(pickling.dumps(error)[0])
    assert b"LostAttempt" not in data
    copy = pickle.loads(data)
    assert (str(copy), copy.attempts, copy.note) == ("it died", error.attempts, "mine")
    assert copy.last.rank == 1 and WorkerLost("it died").last == LostAttempt(0)


# -- the entry and the output of a worker


def test_attempt_has_the_status_that_the_supervisor_recorded(spool: Spool, dead: TaskFile) -> None:
    lost_attempts.record_exit(spool, dead.worker, -11)
    found = lost_attempts.find(spool, dead)
    assert (found.signal, found.rank, found.job, found.launcher) == ("SIGSEGV", 0, "4711", "")
    assert found.pid and found.host and found.last_heartbeat


def test_attempt_has_the_first_rank_that_ended_and_not_the_status_of_the_launcher(spool: Spool, dead: TaskFile) -> None:
    for rank, seconds in ((0, 5), (3, 1), (1, 9)):
        lost_attempts.record_exit(spool, dead.worker, rank, rank=rank)
        os.utime(entry(spool, dead) / exit_file(rank), (seconds, seconds))
    lost_attempts.record_exit(spool, dead.worker, 9, launcher="mpiexec")
    found = lost_attempts.find(spool, dead)
    assert (found.rank, found.exit_status, found.launcher) == (3, 3, "")


def test_attempt_has_the_status_of_the_launcher_if_no_rank_has_one(spool: Spool, dead: TaskFile) -> None:
    lost_attempts.record_exit(spool, dead.worker, 137, launcher="srun")
    found = lost_attempts.find(spool, dead)
    assert (found.rank, found.exit_status, found.launcher) == (None, 137, "srun")
    assert "srun ended: exit status 137, which can stand for SIGKILL" in lost_attempts.message(dead.task, [found])


def test_attempt_has_the_stack_that_a_rank_left_in_the_entry(spool: Spool, dead: TaskFile) -> None:
    (entry(spool, dead) / stack_file(2)).write_text(f"earlier\n{STACK}")
    (entry(spool, dead) / stack_file(0)).write_text("")
    found = lost_attempts.find(spool, dead)
    assert (found.rank, found.stack) == (2, SHORT)
    assert "mine.py" in lost_attempts.message(dead.task, [found])


def write_output(spool: Spool, task_file: TaskFile, text: str, rank: int = 0) -> None:
    """Append the output of a claim to the log of a rank."""
    path = spool.layout.log(OutputFile(task_file.worker, rank))
    files.close(files.open_append(path))
    fd = files.open_file(path, write=True)
    log = LogFile(fd)
    log.begin_output(log.end(), task_file, 1.0)
    file_content.write_at(fd, text.encode(), log.end())
    files.close(fd)


def test_attempt_has_the_stack_at_the_end_of_its_output(spool: Spool, dead: TaskFile) -> None:
    write_output(spool, dead._replace(task=new_task_id()), STACK)
    write_output(spool, dead, "")
    assert lost_attempts.find(spool, dead).stack == ""
    write_output(spool, dead, f"{'x' * 100_000}\n{STACK}")
    assert lost_attempts.find(spool, dead).stack == SHORT


@pytest.mark.parametrize("what", ["link", "pipe", "directory", "garbage", "deep", "wrong", "huge", "foreign"])
def test_record_of_another_kind_is_not_believed(
    spool: Spool, dead: TaskFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text('{"status": 7, "host": "forged"}')
    record = Path(f"{spool.layout.logs}/{dead.name}")
    for path in (entry(spool, dead) / "exit", entry(spool, dead) / exit_file(0), record):
        if what == "link":
            path.symlink_to(elsewhere)
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "directory":
            path.mkdir()
        elif what == "foreign":
            path.write_text('{"status": 7, "host": "forged"}')
        else:
            deep, huge = b'{"status":' + b"[" * 50_000, b'{"status": 7, "host": "' + b"x" * (1 << 20) + b'"}'
            wrong = json.dumps({"status": 10**30, "host": "a\nb", "stack": "\ud800" * 2}).encode()
            path.write_bytes({"garbage": b"\x00\xff", "deep": deep, "huge": huge, "wrong": wrong}[what])
    if what == "foreign":  # the entry and the record belong to other accounts than the files in them
        monkeypatch.setattr(files, "owner", lambda _: os.geteuid() + 1)
        monkeypatch.setattr(os, "geteuid", lambda: -5)
        monkeypatch.setattr(spool, "owner", -5)
    assert lost_attempts.find(spool, dead).status is None
    (kept,) = lost_attempts.kept(spool, dead.task).values()
    assert kept == LostAttempt(1, dead.worker)
    assert "not known" in lost_attempts.message(dead.task, [kept])


@given(st.binary(max_size=3 * STACK_LIMIT))
def test_stack_is_bounded_and_has_no_control_characters(data: bytes) -> None:
    found = crash_stack(b"Fatal Python error: \x1b[31m" + data)
    assert len(found) <= STACK_LIMIT
    assert all(each.isprintable() or each == "\n" for each in found)


# -- recovery


def test_records_of_an_earlier_life_of_a_task_are_left_out(spool: Spool, dead: TaskFile) -> None:
    for claim, attempt in ((1, 1), (2, 2), (5, 1), (7, 2)):
        lost_attempts.keep(spool, TaskFile(dead.task, claim, attempt, dead.worker), LostAttempt(attempt, status=claim))
    lost_attempts.keep(spool, TaskFile(new_task_id(), 1, 1, dead.worker), LostAttempt(1, status=99))
    found = lost_attempts.kept(spool, dead.task)
    assert {number: each.status for number, each in found.items()} == {1: 5, 2: 7}


def test_recoverer_leaves_a_dead_worker_to_its_supervisor_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock.installed(monkeypatch)
    stage = Stage(tmp_path / "stage", clock)
    supervisor = ProcessId.of(os.getpid())
    tasks = [stage.submit() for _ in range(3)]
    workers = [announce(stage.spool, dead_process(), supervisor=supervisor) for _ in range(2)]
    workers.append(announce(stage.spool, dead_process(), supervisor=dead_process()))
    for header, worker in zip(tasks, workers, strict=True):
        ready = f"{stage.spool.layout.bucket(header.lane, header.bucket)}/{header.task}.000001.01"
        os.rename(ready, stage.spool.layout.claimed_task(TaskFile(header.task, 1, 1, worker)))
    lost_attempts.record_exit(stage.spool, workers[0], 3)
    recovery = Recovery(stage.spool)
    recovered = recovery.round()
    assert {line.partition(":")[0] for line in recovered} == {tasks[0].task, tasks[2].task}
    clock.now += 60.0
    (line,) = recovery.round()
    assert line.startswith(tasks[1].task)
