"""Captured output of tasks: ``spool logs`` and streaming to the submitter."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import Executor, settings
from spoolpool.cli.spool import main
from spoolpool.errors import BadRequest, WorkerLost
from spoolpool.format.names import OutputFile, new_worker_id, parse_output_file
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from tests.conftest import Workers
from tests.support import tasks
from tests.support.waiting import LIMIT, wait_until

BIN = Path(sys.executable).parent


def run(*arguments: object) -> click.testing.Result:
    words = [str(each) for each in arguments]
    return click.testing.CliRunner().invoke(main, words, prog_name="spool", env={settings.ENV_SPOOL: None})


def logs(spool: Spool, task: str, *options: object) -> str:
    result = run("logs", spool.path, task, *options)
    assert result.exit_code == 0, result.output
    return result.stdout


def read_some(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return os.read(process.stdout.fileno(), 65536)


# ------------------------------------------------------------------------------------- spool logs


def test_output_is_shown_after_the_result_was_collected(spool: Spool, worker: Workers) -> None:
    serving = worker(spool)
    with Executor(spool=spool.path) as exe:
        future = exe.submit(tasks.speak, "hello")
        silent = exe.submit(abs, 1)
        failing = exe.submit(tasks.speak_and_fail, "before the end")
        assert future.result() == "hello"
        assert silent.result() == 1
        assert isinstance(failing.exception(), tasks.OwnError)
    for word in (future.task, future.task[-10:]):
        result = run("logs", spool.path, word)
        assert result.stdout == "hello from Python\nhello from a child\nhello to standard error\n"
        assert re.match(rf"-- {future.task}, attempt 1, worker [0-9a-f]{{16}}, ", result.stderr)
    assert logs(spool, failing.task) == "before the end\n"
    result = run("logs", spool.path, silent.task)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"There is no captured output of {silent.task}.\n"
    assert "hello" not in worker.said(serving)


def test_output_before_the_death_of_a_worker_is_shown_for_each_attempt(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    with Executor(spool=spool.path) as exe:
        future = exe.submit(tasks.speak_and_die, str(tmp_path / "trace"), resource_dict={"max_attempts": 2})
        for _ in range(2):
            dying = worker(spool, await_groups=0)
            worker.may_die(dying)
            assert dying.wait(LIMIT) == -signal.SIGKILL
        worker(spool, await_groups=0)  # it removes the entries of the dead groups
        assert isinstance(future.exception(), WorkerLost)
    result = run("logs", spool.path, future.task)
    assert result.stdout == "attempt 1\nattempt 2\n"
    assert len(re.findall("attempt [12], worker", result.stderr)) == 2


def test_follow_shows_new_output_and_ends_with_the_task(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    with Executor(spool=spool.path) as exe:
        future = exe.submit(tasks.speak_twice, str(tmp_path / "end"))
        command = subprocess.Popen(
            [BIN / "spool", "logs", spool.path, future.task, "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        worker(spool)  # started late: the command waits for the task to begin
        assert read_some(command) == b"first\n"
        (tmp_path / "end").touch()
        assert read_some(command) == b"second\n"
        out, err = command.communicate(timeout=LIMIT)
    assert (command.returncode, out) == (0, b"")
    assert err.count(b"attempt 1") == 1
    assert logs(spool, future.task, "-f") == "first\nsecond\n"


def test_argument_that_matches_no_task_is_refused(spool: Spool) -> None:
    assert run("logs", spool.path).exit_code == BadRequest.exit_code
    result = run("logs", spool.path, "e7819e56d5")
    assert result.exit_code == BadRequest.exit_code
    assert "'e7819e56d5' matches 0 tasks" in result.stderr


@pytest.mark.mpi
def test_output_is_shown_and_streamed_with_the_number_of_its_rank(
    spool: Spool, worker: Workers, capsys: pytest.CaptureFixture[str]
) -> None:
    worker(spool, mpi_ranks=2)
    with Executor(spool=spool.path, cores_per_worker=2, stream_output=True) as exe:
        future = exe.submit(tasks.speak_as_rank)
        assert future.result() == [0, 1]
    assert logs(spool, future.task) == "0: I am rank 0\n1: I am rank 1\n"
    assert logs(spool, future.task, "--rank", 1) == "I am rank 1\n"
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"[speak_as_rank {future.task[-10:]}:{rank}] I am rank {rank}" for rank in (0, 1)
    ]


# -------------------------------------------------------------------------------------- streaming


def test_embedded_executor_streams_the_output_of_each_task_in_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Executor(max_workers=2, backend="local", stream_output=True) as exe:
        futures = [exe.submit(tasks.speak, f"call {number}") for number in range(6)]
        silent = exe.submit(abs, 1)
    assert silent.result() == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18
    for number, future in enumerate(futures):
        prefix = f"[speak {future.task[-10:]}] "
        assert [line for line in lines if line.startswith(prefix)] == [
            f"{prefix}call {number} {what}" for what in ("from Python", "from a child", "to standard error")
        ]


def test_output_is_streamed_while_the_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()  # not capsys: reading that drops what another thread prints meanwhile
    monkeypatch.setattr(sys, "stdout", shown)
    with Executor(max_workers=1, backend="local", stream_output=True) as exe:
        future = exe.submit(tasks.speak_twice, str(tmp_path / "end"))
        wait_until(lambda: "first\n" in shown.getvalue(), "the first line was printed")
        assert not future.done()
        (tmp_path / "end").touch()
    label = f"[speak_twice {future.task[-10:]}]"  # type: ignore[attr-defined]
    assert shown.getvalue() == f"{label} first\n{label} second\n"


def test_embedded_executor_without_streaming_captures_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Executor(max_workers=1, backend="local") as exe:
        assert files.list_names(f"{exe.info['spool']}/logs") == []
        assert exe.submit(tasks.speak, "hello").result() == "hello"
        assert files.list_names(f"{exe.info['spool']}/logs") == []
    assert "hello from a child" in capfd.readouterr().out


def test_attached_executor_streams_only_its_own_tasks_and_their_lost_attempts(
    spool: Spool, worker: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = worker(spool)
    worker.may_die(dying)
    with Executor(spool=spool.path) as other, Executor(spool=spool.path, stream_output=True) as exe:
        foreign = other.submit(tasks.speak, "other session")
        assert foreign.result() == "other session"
        future = exe.submit(tasks.speak_and_die_at_first)
        assert dying.wait(LIMIT) == -signal.SIGKILL
        worker(spool, await_groups=0)  # it removes the entry of the dead group
        assert future.result() == 2
    prefix = f"[speak_and_die_at_first {future.task[-10:]}] "
    assert capsys.readouterr().out == f"{prefix}attempt 1\n{prefix}attempt 2\n"


def test_streaming_from_a_spool_without_captured_output_is_refused(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "quiet", output=0)
    with pytest.raises(BadRequest, match="keeps no output"):
        Executor(spool=spool.path, stream_output=True)


def test_closed_standard_output_ends_only_the_streaming(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "closed").open("w", encoding="ascii") as closed:
        pass
    monkeypatch.setattr(sys, "stdout", closed)
    with Executor(max_workers=1, backend="local", stream_output=True) as exe:
        assert list(exe.map(tasks.speak, ["one", "two"])) == ["one", "two"]


def test_output_option_sets_the_limit_of_captured_output(tmp_path: Path) -> None:
    assert run("init", tmp_path / "spool", "--output", "0.5").exit_code == 0
    assert Spool(tmp_path / "spool").config.output == 1 << 19
    assert run("init", tmp_path / "none", "--output", "0").exit_code == 0
    assert Spool(tmp_path / "none").config.output == 0
    refused = run("init", tmp_path / "little", "--output", "0.0001")
    assert refused.exit_code == BadRequest.exit_code


def test_names_of_output_files_are_parsed() -> None:
    worker = new_worker_id()
    for log in (OutputFile(worker, 0), OutputFile(worker, 1234567), OutputFile(worker, 3, 7)):
        assert parse_output_file(log.name) == log
    invalid: list[Any] = [f"{worker}", f"{worker}.", f"{worker}.00", f"{worker}.0.0", f"{worker}.0.01", f"{worker}.-1"]
    assert [name for name in invalid if parse_output_file(name)] == []
