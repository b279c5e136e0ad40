"""Tasks and the walltime of groups, with real workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Spool
from spoolpool.client import collector
from spoolpool.errors import WalltimeTooShort
from spoolpool.format.names import TaskFile, parse_task_file
from spoolpool.protocol import journal
from tests.conftest import Workers
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.timeout(180)

JOB = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}
"""Variables of a rank in a batch job: only there a request to end has a limit."""


def wait_for(path: str, attempts: str) -> str:
    """Append a line, then wait for a file."""
    with open(attempts, "a", encoding="ascii") as file:
        file.write("begun\n")
    wait_until(lambda: os.path.exists(path), f"{path} exists", 600)
    return "done"


def count(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def ready(spool: Spool) -> list[TaskFile]:
    names = (path.name for path in Path(spool.layout.ready).rglob("*"))
    return [task_file for task_file in map(parse_task_file, names) if task_file is not None]


def status(spool: Spool) -> dict[str, Any]:
    command = [sys.executable, "-m", "spoolpool.cli.spool", "status", spool.path, "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=LIMIT).stdout)
    return found


def blocked(spool: Spool) -> str:
    return "; ".join(each["why"] for each in status(spool)["blocked"])


def events(spool: Spool, event: str) -> list[journal.Event]:
    return [line.event for line in journal.lines(spool) if line.event.event == event]


def test_task_is_begun_only_by_a_group_with_enough_time_and_all_are_told(
    spool: Spool, worker: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collector, "_CHECK_SECONDS", 0.1)
    with Executor(spool=spool.path) as executor:
        long = executor.submit(pow, 2, 3, resource_dict={"time_limit": 3000})
        for _ in range(2):
            group = worker(spool, "--max-time=1000")
            assert executor.submit(pow, 2, 4).result(LIMIT) == 16
            assert "needs 3000 s, the longest group has 9" in blocked(spool)
            wait_until(lambda: "needs 3000 s, the longest group has 9" in caplog.text, "the submitter was warned")
            [state] = status(spool)["groups"]
            assert 0 < state["ends"] - status(spool)["time"] <= 1000
            group.send_signal(signal.SIGTERM)
            group.wait(LIMIT)
            wait_until(lambda: not status(spool)["groups"], "the group has ended")
            assert "needs 3000 s" in blocked(spool)
        [waits] = ready(spool)
        assert waits == TaskFile(waits.task, 1, 1, seconds=3000)  # no group had claimed it
        worker(spool, "--max-time=1h")
        assert long.result(LIMIT) == 8


def test_limited_subtask_is_not_begun_in_a_waiting_task_without_time(spool: Spool, worker: Workers) -> None:
    worker(spool, "--max-time=1000")
    with Executor(spool=spool.path) as executor:
        outer = executor.submit(_submit_both, spool.path)
        wait_until(lambda: [each.seconds for each in ready(spool)] == [3000], "only the long subtask waits")
        assert not outer.done()
        worker(spool)
        assert outer.result(LIMIT) == (16, 8)


def _submit_both(path: str) -> tuple[int, int]:
    with Executor(spool=path) as executor:
        long = executor.submit(pow, 2, 3, resource_dict={"time_limit": 3000})
        return executor.submit(pow, 2, 4).result(), long.result()


def end_in_time(group: subprocess.Popen[bytes]) -> None:
    """Ask a worker to end, as a batch system does at the end of a walltime."""
    group.send_signal(signal.SIGTERM)
    assert group.wait(LIMIT) == 0


def test_given_back_task_waits_for_more_time_and_is_reported_after_its_attempts(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    with Executor(spool=spool.path) as executor:
        future: Future[str] = executor.submit(
            wait_for, str(tmp_path / "never"), str(begun), resource_dict={"max_attempts": 2}
        )
        for number in (1, 2):
            group = worker(spool, "--max-time=50", "--drain=0.2", **JOB)
            wait_until(lambda number=number: count(begun) == number, "the task runs")
            end_in_time(group)
            if number == 1:
                [waits] = ready(spool)
                assert (waits.attempt, waits.releases) == (1, 1)
                assert waits.seconds >= 1
                short = worker(spool, "--max-time=0.9")  # less time than the task has had
                assert short.wait(LIMIT) == 0
                assert ready(spool) == [waits]
                assert f"needs {waits.seconds} s; 1 did not end in the walltime of a group" in blocked(spool)
        error = future.exception(LIMIT)
        assert isinstance(error, WalltimeTooShort)
        assert "2 time(s)" in str(error)
    assert count(begun) == 2
    found = events(spool, "given back")
    assert [(each.task, each.kind, each.reason) for each in found] == [
        (waits.task, "", "the walltime of its group ended"),
        (waits.task, "lost", "the walltime of its group ended"),
    ]


def test_group_that_is_asked_to_end_early_gives_back_without_a_count(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    begun, may_end = tmp_path / "begun", tmp_path / "may_end"
    with Executor(spool=spool.path) as executor:
        future = executor.submit(wait_for, str(may_end), str(begun), resource_dict={"max_attempts": 1})
        for number in (1, 2):
            group = worker(spool, "--max-time=1h", "--drain=0.2", **JOB)
            wait_until(lambda number=number: count(begun) == number, "the task runs")
            end_in_time(group)
        [waits] = ready(spool)
        assert (waits.attempt, waits.releases) == (1, 0)
        may_end.touch()
        worker(spool)
        assert future.result(LIMIT) == "done"
    assert {each.reason for each in events(spool, "given back")} == {"its group was asked to end"}


def test_supervisor_gives_back_what_does_not_end_in_its_time(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    begun, may_end = tmp_path / "begun", tmp_path / "may_end"
    options = "--launcher=local", "--drain=0.2"
    with Executor(spool=spool.path) as executor:
        future = executor.submit(wait_for, str(may_end), str(begun))
        seconds = 5
        while not count(begun):  # under load the time may be up before a group looks for a task
            seconds *= 2
            supervisor = worker(spool, f"--max-time={seconds}", *options)
            wait_until(lambda ended=supervisor.poll: count(begun) or ended() is not None, "the task runs, or none will")
        assert supervisor.wait(LIMIT) == 0
        [waits] = ready(spool)
        assert (waits.attempt, waits.releases) == (1, 1)
        assert 1 <= waits.seconds <= seconds
        # a group with less time leaves it alone; it begins others
        supervisor = worker(spool, f"--max-time={waits.seconds + 4}", *options)
        wait_until(lambda: "the longest group has" in blocked(spool), "status tells of the shortage")
        assert supervisor.wait(LIMIT) == 0
        assert ready(spool) == [waits]
        may_end.touch()
        worker(spool, "--max-time=1h", *options)
        assert future.result(LIMIT) == "done"
    assert count(begun) == 2
    [event] = events(spool, "given back")
    # by the group or by the supervisor: both know the end, and one of them is first
    assert (event.task, event.reason) == (waits.task, "the walltime of its group ended")


def test_command_that_the_end_of_its_group_kills_is_given_back(spool: Spool, worker: Workers) -> None:
    run = [sys.executable, "-m", "spoolpool.cli.spool", "run", "--spool", spool.path, "--", "sleep", "600"]
    subprocess.run(run, check=True, capture_output=True, timeout=LIMIT)
    seconds = 5
    [waits] = ready(spool)
    while not waits.releases:  # under load the time may be up before a group looks for a task
        seconds *= 2
        supervisor = worker(spool, "--launcher=local", "--drain=0.2", f"--max-time={seconds}")
        assert supervisor.wait(LIMIT) == 0
        [waits] = ready(spool)
    assert (waits.attempt, waits.releases) == (1, 1)
    # the group may have been ended between the write of an outcome and its removal: only a commit would count
    assert not [path for path in Path(spool.layout.results).rglob("*") if path.is_file()]


def test_calls_of_a_chunk_that_was_given_back_too_often_run_one_by_one(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    with Executor(spool=spool.path, resource_dict={"max_attempts": 2}) as executor:
        values = executor.map(wait_twice, [str(begun)] * 3, range(3), chunksize=3)
        for number in (1, 2):
            group = worker(spool, "--max-time=50", "--drain=0.2", **JOB)
            wait_until(lambda number=number: count(begun) == number, "the chunk runs")
            end_in_time(group)
        worker(spool)
        assert list(values) == [0, 1, 2]
    assert count(begun) == 5


def wait_twice(begun: str, value: int) -> int:
    """Wait for ever in the first two calls of all."""
    with open(begun, "a", encoding="ascii") as file:
        file.write("begun\n")
    if count(Path(begun)) <= 2:
        wait_until(lambda: False, "for ever", 600)
    return value
