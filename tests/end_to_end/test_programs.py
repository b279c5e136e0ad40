"""Executors for programs other than Python functions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from spoolpool import ShellExecutor, SubprocessExecutor, wire
from spoolpool.errors import BadRequest, SpoolpoolError, WorkerLost
from tests.support.processes import is_running, kill_processes_of, processes_of
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.timeout(120)

# Reads lines; prints the numbers of "sum 1 2 3", one per line, and their sum; other words are commands.
CALCULATOR = """
import os, signal, subprocess, sys
for line in sys.stdin:
    word, *numbers = line.split()
    if word == "sum":
        for number in numbers:
            print(number)
        print("sum:", sum(map(int, numbers)))
    elif word == "where":
        print(os.getcwd())
    elif word == "pid":
        print(os.getpid())
    elif word == "complain":
        print("oh no", file=sys.stderr)
    elif word == "leave":
        child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
        print(os.getpid())
        print(child.pid)
        sys.exit(4)
    elif word == "close":
        print(os.getpid(), flush=True)
        os.close(1)
        os.close(2)
        signal.pause()
    elif word == "exit":
        print("bye")
        sys.exit(int(numbers[0]))
    sys.stdout.flush()
"""


@pytest.fixture
def calculator(tmp_path: Path) -> list[str]:
    program = tmp_path / "calculator.py"
    program.write_text(CALCULATOR)
    return [sys.executable, str(program)]


# ---------------------------------------------------------------------------- one run per call


@pytest.fixture(scope="module")
def runner() -> Iterator[SubprocessExecutor]:
    with SubprocessExecutor(max_workers=1) as executor:
        yield executor


def test_a_program_returns_its_output(runner: SubprocessExecutor) -> None:
    assert runner.submit(["echo", "hello"], universal_newlines=True).result() == "hello\n"
    assert runner.submit(["echo", "hello"]).result() == b"hello\n"


def test_a_shell_line_can_be_run(runner: SubprocessExecutor) -> None:
    assert runner.submit("echo $((1 + 2)) | cat", shell=True, text=True).result() == "3\n"


def test_options_are_those_of_subprocess_run(runner: SubprocessExecutor, tmp_path: Path) -> None:
    assert runner.submit(["pwd"], cwd=tmp_path, text=True).result() == f"{tmp_path}\n"
    assert runner.submit(["cat"], input=b"given").result() == b"given"
    assert runner.submit(["echo", "hello"], stdout=subprocess.DEVNULL).result() is None
    assert runner.submit(["echo", "hello"], capture_output=True).result() == b"hello\n"


def test_a_program_that_fails_raises_with_its_output(runner: SubprocessExecutor) -> None:
    error = runner.submit("echo out; echo err >&2; exit 3", shell=True, text=True).exception()
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.stdout, error.stderr) == (3, "out\n", "err\n")
    assert runner.submit("echo out; exit 3", shell=True, text=True, check=False).result() == "out\n"


def test_a_missing_or_slow_program_raises_the_errors_of_subprocess(runner: SubprocessExecutor) -> None:
    assert isinstance(runner.submit(["/nowhere/program"]).exception(), FileNotFoundError)
    assert isinstance(runner.submit(["sleep", "60"], timeout=0.05).exception(), subprocess.TimeoutExpired)


def test_a_program_does_not_read_the_input_of_the_worker(runner: SubprocessExecutor) -> None:
    assert runner.submit(["cat"]).result(LIMIT) == b""


def test_a_call_of_a_program_may_request_resources(runner: SubprocessExecutor, tmp_path: Path) -> None:
    asked = {"cwd": str(tmp_path), "threads_per_core": 2}
    line = 'echo "$PWD $OMP_NUM_THREADS"'
    assert runner.submit(line, shell=True, text=True, resource_dict=asked).result() == f"{tmp_path} 2\n"


# ------------------------------------------------------------- one program, fed with lines


def test_an_answer_ends_after_lines_to_read(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        assert shell.submit("sum 1 2 3", lines_to_read=4).result() == "1\n2\n3\nsum: 6\n"
        assert shell.submit("sum 4 5\n", lines_to_read=3).result() == "4\n5\nsum: 9\n"


def test_an_answer_ends_at_stop_read_pattern(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        futures = [shell.submit(f"sum {n} {n}", stop_read_pattern="sum:") for n in range(10)]
        assert [future.result() for future in futures] == [f"{n}\n{n}\nsum: {2 * n}\n" for n in range(10)]


def test_several_lines_may_be_written_at_once(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        assert shell.submit("sum 1\nsum 2", lines_to_read=4).result() == "1\nsum: 1\n2\nsum: 2\n"


def test_lines_to_read_may_be_zero(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        assert shell.submit("nothing", lines_to_read=0).result() == ""
        assert shell.submit("sum 1", lines_to_read=2).result() == "1\nsum: 1\n"


def test_standard_error_of_a_program_is_part_of_its_answer(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        assert shell.submit("complain", lines_to_read=1).result() == "oh no\n"


def test_the_program_lives_from_call_to_call_and_ends_with_its_executor(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        pids = {shell.submit("pid", lines_to_read=1).result() for _ in range(3)}
        assert len(pids) == 1
        assert processes_of(calculator[1]) == [int(pids.pop())]
    wait_until(lambda: not processes_of(calculator[1]), "the program ended")


def test_the_program_runs_in_cwd(calculator: list[str], tmp_path: Path) -> None:
    with ShellExecutor(calculator, cwd=tmp_path / "new") as shell:
        assert shell.submit("where", lines_to_read=1).result() == f"{tmp_path / 'new'}\n"


def test_waiting_calls_can_be_cancelled(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        hangs = shell.submit("nothing", lines_to_read=1)
        (program,) = wait_until(lambda: processes_of(calculator[1]), "the program was started for the first call")
        waits = shell.submit("sum 1", lines_to_read=2)
        assert waits.cancel()
        os.kill(program, signal.SIGKILL)
        assert isinstance(hangs.exception(), SpoolpoolError)
        with pytest.raises(CancelledError):
            waits.result()


def test_the_exit_code_of_an_ended_program_is_reported_and_the_next_call_restarts_it(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        before = shell.submit("pid", lines_to_read=1).result()
        error = shell.submit("exit 3", stop_read_pattern="never").exception()
        assert isinstance(error, SpoolpoolError)
        assert "exit code 3" in str(error) and "bye" in str(error)
        assert shell.submit("pid", lines_to_read=1).result() != before


def test_a_program_that_ended_between_two_calls_is_reported_before_its_restart(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        assert shell.submit("exit 0", lines_to_read=1).result() == "bye\n"
        with pytest.raises(SpoolpoolError, match="exit code 0"):  # its state is lost, which must not go unnoticed
            shell.submit("sum 1", lines_to_read=2).result()
        assert shell.submit("sum 1", lines_to_read=2).result() == "1\nsum: 1\n"


def test_a_child_that_holds_the_output_of_an_ended_program_does_not_block_the_next_call(
    calculator: list[str],
) -> None:
    with ShellExecutor(calculator) as shell:
        program, child = map(int, shell.submit("leave", lines_to_read=2).result().split())
        try:
            wait_until(lambda: not is_running(program), "the program has ended")
            error = shell.submit("sum 1", lines_to_read=2).exception(LIMIT)
            assert isinstance(error, SpoolpoolError) and "exit code 4" in str(error)
            assert is_running(child)
            assert shell.submit("sum 1", lines_to_read=2).result(LIMIT) == "1\nsum: 1\n"
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_running_program_that_closed_its_output_is_ended(
    calculator: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_SHELL_GRACE", 0.1)
    shell = wire._Shell(calculator, None)
    program = int(shell.ask("close", 1, None))
    with pytest.raises(SpoolpoolError, match="exit code -9"):
        shell.ask("sum 1", 2, None)
    assert not is_running(program)
    assert shell.ask("sum 1", 2, None) == "1\nsum: 1\n"
    shell._process.kill()
    shell._process.communicate()


def test_the_program_is_restarted_after_the_death_of_its_worker(calculator: list[str]) -> None:
    with ShellExecutor(calculator, resource_dict={"max_attempts": 1}) as shell:
        assert shell.submit("sum 1", lines_to_read=2).result() == "1\nsum: 1\n"
        hangs = shell.submit("nothing", lines_to_read=1)
        wait_until(hangs.running, "the call has started")
        kill_processes_of(shell.info["spool"])
        assert isinstance(hangs.exception(LIMIT), WorkerLost)
        assert shell.submit("sum 2", lines_to_read=2).result(LIMIT) == "2\nsum: 2\n"


def test_a_program_that_cannot_be_started_fails_the_calls() -> None:
    with ShellExecutor(["/nowhere/program"]) as shell:
        for _ in range(2):
            assert isinstance(shell.submit("hello", lines_to_read=1).exception(), FileNotFoundError)


def test_exactly_one_end_of_the_answer_must_be_given(calculator: list[str]) -> None:
    with ShellExecutor(calculator) as shell:
        for wrong in ({}, {"lines_to_read": 1, "stop_read_pattern": "x"}):
            with pytest.raises(BadRequest, match="lines_to_read or stop_read_pattern"):
                shell.submit("sum 1", **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="universal_newlines"):
        ShellExecutor(calculator, universal_newlines=False)
