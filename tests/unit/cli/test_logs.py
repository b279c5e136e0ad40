"""What tasks print can be looked at while they run and afterwards, and comes to their submitter if that wants it."""

from __future__ import annotations

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
    shown = run("logs", spool.path, task, *options)
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def read_some(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return os.read(process.stdout.fileno(), 65536)


# ------------------------------------------------------------------------------------- spool logs


def test_what_a_task_printed_is_shown_also_after_its_result_was_collected(spool: Spool, worker: Workers) -> None:
    serving = worker(spool)
    with Executor(spool=spool.path) as exe:
        future = exe.submit(tasks.speak, "hello")
        silent = exe.submit(abs, 1)
        failing = exe.submit(tasks.speak_and_fail, "before the end")
        assert future.result() == "hello"
        assert silent.result() == 1
        assert isinstance(failing.exception(), tasks.OwnError)
    for word in (future.task, future.task[-10:]):
        shown = run("logs", spool.path, word)
        assert shown.stdout == "hello from Python\nhello from a child\nhello to standard error\n"
        assert re.match(rf"-- {future.task}, attempt 1, worker [0-9a-f]{{16}}, ", shown.stderr)
    assert logs(spool, failing.task) == "before the end\n"
    shown = run("logs", spool.path, silent.task)
    assert (shown.exit_code, shown.stdout) == (0, "")
    assert shown.stderr == f"Nothing is kept that {silent.task} printed.\n"
    assert "hello" not in worker.said(serving)


def test_what_was_printed_before_a_worker_was_killed_is_shown_of_every_attempt(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    with Executor(spool=spool.path) as exe:
        future = exe.submit(tasks.speak_and_die, str(tmp_path / "trace"), resource_dict={"max_attempts": 2})
        for _ in range(2):
            dying = worker(spool, await_groups=0)
            worker.may_die(dying)
            assert dying.wait(LIMIT) == -signal.SIGKILL
        worker(spool, await_groups=0)  # meanwhile the entries of the others go
        assert isinstance(future.exception(), WorkerLost)
    shown = run("logs", spool.path, future.task)
    assert shown.stdout == "attempt 1\nattempt 2\n"
    assert len(re.findall("attempt [12], worker", shown.stderr)) == 2


def test_following_shows_a_running_task_as_it_goes_on_and_ends_with_it(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    with Executor(spool=spool.path) as exe:
        future = exe.submit(tasks.speak_twice, str(tmp_path / "end"))
        following = subprocess.Popen(
            [BIN / "spool", "logs", spool.path, future.task, "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        worker(spool)  # only now: it waited for the task to begin
        assert read_some(following) == b"first\n"
        (tmp_path / "end").touch()
        assert read_some(following) == b"second\n"
        out, err = following.communicate(timeout=LIMIT)
    assert (following.returncode, out) == (0, b"")
    assert err.count(b"attempt 1") == 1
    assert logs(spool, future.task, "-f") == "first\nsecond\n"


def test_a_word_that_fits_no_task_is_refused(spool: Spool) -> None:
    assert run("logs", spool.path).exit_code == BadRequest.exit_code
    shown = run("logs", spool.path, "e7819e56d5")
    assert shown.exit_code == BadRequest.exit_code
    assert "'e7819e56d5' matches 0 tasks" in shown.stderr


@pytest.mark.mpi
def test_each_ranks_output_is_shown_and_streamed_with_its_number(
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


def test_an_embedded_executor_prints_what_its_tasks_print_in_the_order_of_each(
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


def test_output_comes_while_the_task_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Executor(max_workers=1, backend="local", stream_output=True) as exe:
        future = exe.submit(tasks.speak_twice, str(tmp_path / "end"))
        shown = ""

        def grown() -> str:
            nonlocal shown
            shown += capsys.readouterr().out
            return shown

        wait_until(lambda: "first\n" in grown(), "the first line was printed")
        assert not future.done()
        (tmp_path / "end").touch()
    assert grown() == f"[speak_twice {future.task[-10:]}] first\n[speak_twice {future.task[-10:]}] second\n"


def test_without_streaming_an_embedded_executor_leaves_output_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with Executor(max_workers=1, backend="local") as exe:
        assert files.list_names(f"{exe.info['spool']}/logs") == []
        assert exe.submit(tasks.speak, "hello").result() == "hello"
        assert files.list_names(f"{exe.info['spool']}/logs") == []
    assert "hello from a child" in capfd.readouterr().out


def test_an_attached_executor_streams_its_own_tasks_alone_also_of_attempts_that_died(
    spool: Spool, worker: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = worker(spool)
    worker.may_die(dying)
    with Executor(spool=spool.path) as other, Executor(spool=spool.path, stream_output=True) as exe:
        strange = other.submit(tasks.speak, "somebody else's")
        assert strange.result() == "somebody else's"
        future = exe.submit(tasks.speak_and_die_at_first)
        assert dying.wait(LIMIT) == -signal.SIGKILL
        worker(spool, await_groups=0)  # meanwhile the entry of the other one goes
        assert future.result() == 2
    prefix = f"[speak_and_die_at_first {future.task[-10:]}] "
    assert capsys.readouterr().out == f"{prefix}attempt 1\n{prefix}attempt 2\n"


def test_there_is_nothing_to_stream_from_a_spool_that_keeps_no_output(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "quiet", output=0)
    with pytest.raises(BadRequest, match="keeps no output"):
        Executor(spool=spool.path, stream_output=True)


def test_a_closed_standard_output_ends_the_streaming_and_not_the_tasks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "closed").open("w", encoding="ascii") as closed:
        pass
    monkeypatch.setattr(sys, "stdout", closed)
    with Executor(max_workers=1, backend="local", stream_output=True) as exe:
        assert list(exe.map(tasks.speak, ["one", "two"])) == ["one", "two"]


def test_a_spool_says_how_much_output_it_keeps(tmp_path: Path) -> None:
    assert run("init", tmp_path / "spool", "--output", "0.5").exit_code == 0
    assert Spool(tmp_path / "spool").config.output == 1 << 19
    assert run("init", tmp_path / "none", "--output", "0").exit_code == 0
    assert Spool(tmp_path / "none").config.output == 0
    refused = run("init", tmp_path / "little", "--output", "0.0001")
    assert refused.exit_code == BadRequest.exit_code


def test_names_of_logs_are_read_as_they_are_made() -> None:
    worker = new_worker_id()
    for log in (OutputFile(worker, 0), OutputFile(worker, 1234567), OutputFile(worker, 3, 7)):
        assert parse_output_file(log.name) == log
    strange: list[Any] = [f"{worker}", f"{worker}.", f"{worker}.00", f"{worker}.0.0", f"{worker}.0.01", f"{worker}.-1"]
    assert [name for name in strange if parse_output_file(name)] == []
