"""``spool run`` with one command for each line or index: order, resumption, failures, and hints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import Executor, Session, settings
from spoolpool.cli.spool import main
from spoolpool.client.command_series import parse_array, read_lines
from spoolpool.errors import BadRequest
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.support.waiting import LIMIT, wait_until

PROGRAM = str(Path(sys.executable).parent / "spool")


def run(*words: object, variables: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != settings.ENV_SPOOL}
    return subprocess.run(
        [PROGRAM, *map(str, words)],
        capture_output=True,
        text=True,
        env={**environment, **(variables or {})},
        timeout=LIMIT,
        check=False,
        **options,
    )


@pytest.fixture
def served(spool: Spool, worker: Workers) -> Spool:
    worker(spool)
    return spool


# ------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cmd", "{}"], ("cmd", "a  b")),
        (["cmd", "--name={}", "{}.txt"], ("cmd", "--name=a  b", "a  b.txt")),
        (["cmd"], ("cmd", "a  b")),
        ([], ("sh", "-c", "a  b")),
    ],
)
def test_line_is_put_into_the_command(words: list[str], expected: tuple[str, ...]) -> None:
    found = list(read_lines(["\n", "a  b\r\n", "   \n", "{}"], words))
    assert [each.number for each in found] == [2, 4]
    assert found[0].words == expected


def test_lines_without_a_command_may_be_comments() -> None:
    assert [each.text for each in read_lines(["# no\n", "yes # part\n"], [])] == ["yes # part"]
    assert [each.text for each in read_lines(["# a word\n"], ["cmd"])] == ["# a word"]


@pytest.mark.parametrize(
    ("text", "indexes", "most"),
    [
        ("0-3", [0, 1, 2, 3], None),
        ("5", [5], None),
        ("1,3,7-9%2", [1, 3, 7, 8, 9], 2),
        ("0-9:4", [0, 4, 8], None),
        ("007-8", [7, 8], None),
    ],
)
def test_array_is_parsed(text: str, indexes: list[int], most: int | None) -> None:
    found, limit = parse_array(text, ["cmd", "{}"])
    assert [(each.number, each.words, each.variables) for each in found] == [
        (index, ("cmd", str(index)), {"SPOOLPOOL_INDEX": str(index)}) for index in indexes
    ]
    assert limit == most


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "1-", "-1", "1-3:0", "1%0", "1%", "1%x", "1,1", "0-5,3", "0-999999999", "٣"]
)
def test_other_arrays_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="--array"):
        parse_array(text, ["cmd"])
    with pytest.raises(BadRequest, match="COMMAND"):
        parse_array("0-3", [])


# --------------------------------------------------------------------------------------------- runs


def test_lines_of_a_file_run_and_the_greatest_exit_code_is_returned(served: Spool, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("0\n3\n\n7\n", encoding="utf-8")
    script = "echo out $1; echo err $1 >&2; exit $1"
    done = run("run", served.path, "--each-line", lines, "--", "sh", "-c", script, "name", "{}")
    assert done.returncode == 7
    assert sorted(done.stdout.splitlines()) == ["out 0", "out 3", "out 7"]
    table = done.stderr.splitlines()
    assert Counter(line for line in table if line.startswith("err")) == Counter(["err 0", "err 3", "err 7"])
    assert "3 command(s): 1 ended with 0, 2 failed." in table
    assert [line.split()[:2] for line in table[-2:]] == [["2", "3"], ["4", "7"]]
    assert "err 7" in table[-1]


def test_lines_of_the_input_are_commands_of_a_shell(served: Spool) -> None:
    done = run("run", "--each-line", "-", served.path, input="# title\necho a | tr a b\n")
    assert (done.returncode, done.stdout) == (0, "b\n")


def test_line_may_have_bytes_that_are_not_utf8(served: Spool, tmp_path: Path) -> None:
    lines, found = tmp_path / "lines", tmp_path / "found"
    lines.write_bytes(b"a\xffb\n")
    done = run("run", served.path, "--each-line", lines, "--", "sh", "-c", 'printf %s "$1" > "$0"', found)
    assert done.returncode == 0, done.stderr
    assert found.read_bytes() == b"a\xffb"


def test_array_runs_at_most_so_many_at_once(served: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(served)
    script = f"mkdir {tmp_path}/only || exit 9; rmdir {tmp_path}/only; echo {{}} $SPOOLPOOL_INDEX"
    done = run("run", served.path, "--array", "0-8:2%1", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "".join(f"{n} {n}\n" for n in range(0, 9, 2)))


def test_killed_series_continues_where_it_stopped(served: Spool, tmp_path: Path) -> None:
    wait = f"while test ! -e {tmp_path}/gate; do sleep 0.05; done"
    script = f"echo {{}} >> {tmp_path}/log; test {{}} -lt 3 || {wait}; echo {{}}"
    words = ["run", served.path, "--session", "s", "--array", "0-5", "--", "sh", "-c", script]
    first = subprocess.Popen([PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and len(log.read_text(encoding="utf-8").split()) == 4, "the fourth command runs")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (tmp_path / "gate").touch()
    again = run(*words)
    assert again.returncode == 0, again.stderr
    assert sorted(again.stdout.split()) == list("012345")
    assert sorted(log.read_text(encoding="utf-8").split()) == list("012345")


def test_failed_command_runs_again_and_others_do_not(served: Spool, tmp_path: Path) -> None:
    script = f"echo {{}} >> {tmp_path}/log; test -e {tmp_path}/good || test {{}} != 1"
    words = ["run", served.path, "--session", "s", "--array", "0-2", "--", "sh", "-c", script]
    assert run(*words).returncode == 1
    (tmp_path / "good").touch()
    assert run(*words).returncode == 0
    assert Counter((tmp_path / "log").read_text(encoding="utf-8").split()) == Counter("0112")


def test_command_in_another_directory_is_another_command(served: Spool, tmp_path: Path) -> None:
    words = ("run", served.path, "--session", "s", "--array", "0-1%1", "--", "sh", "-c", "pwd; echo >> ran")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for _ in range(2):
            assert run(*words, cwd=tmp_path / name).stdout == f"{tmp_path / name}\n" * 2
        assert (tmp_path / name / "ran").read_text(encoding="utf-8") == "\n" * 2


def test_series_without_waiting_prints_the_ids_of_its_tasks(spool: Spool) -> None:
    done = run("run", spool.path, "--array", "1-3", "--no-wait", "--", "echo")
    listed = run("ls", "--ids", spool.path)
    assert sorted(done.stdout.split()) == sorted(listed.stdout.split())
    assert len(done.stdout.split()) == 3


# ------------------------------------------------------------------------------------ spool and hints


NO_SESSION = BadRequest.exit_code


def invoke(*words: object, spool: str | None = None) -> click.testing.Result:
    environment = {settings.ENV_SPOOL: spool}
    return click.testing.CliRunner().invoke(main, [*map(str, words)], prog_name="spool", env=environment)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "SPOOL", "--", "true"],
        ["run", "SPOOL", "--queue", "default", "--", "true"],
        ["run", "--queue", "default", "SPOOL", "--", "true"],
        ["run", "--spool", "SPOOL", "--", "true"],
        ["submit", "SPOOL", "math:hypot", "--arg", "3", "--arg", "4"],
        ["submit", "--spool", "SPOOL", "math:hypot", "--arg", "3", "--arg", "4"],
        ["ls", "--spool", "SPOOL"],
        ["ls", "SPOOL"],
        ["status", "--spool", "SPOOL"],
        ["check", "--quick", "--spool", "SPOOL"],
        ["session", "rm", "--yes", "--spool", "SPOOL", "name"],
        ["session", "rm", "--yes", "SPOOL", "name"],
        ["workers", "drain", "--all", "--spool", "SPOOL"],
        ["cache", "ls", "--spool", "SPOOL"],
    ],
    ids=" ".join,
)
def test_each_command_takes_the_spool_in_three_ways(spool: Spool, words: list[str]) -> None:
    given = invoke(*[spool.path if word == "SPOOL" else word for word in words])
    assert given.exit_code in (0, NO_SESSION), given.output
    bare = [word for word in words if word not in ("SPOOL", "--spool")]
    assert invoke(*bare, spool=spool.path).exit_code == given.exit_code
    missing = invoke(*bare)
    if words[0] != "cache":
        assert missing.exit_code == 2
        assert "SPOOLPOOL_DIR" in missing.stderr


def test_command_may_have_a_double_dash_of_its_own(served: Spool) -> None:
    assert run("run", "--wait", "echo", "--", "x", variables={settings.ENV_SPOOL: served.path}).stdout == "-- x\n"
    assert run("run", "--wait", "--spool", served.path, "echo", "--", "x").stdout == "-- x\n"


def test_command_that_looks_like_a_line_of_a_shell_is_noted(spool: Spool) -> None:
    for words in (["echo a | wc"], ["echo", "a", "|", "wc"], ["echo $HOME"]):
        noted = invoke("run", spool.path, "--", *words)
        assert noted.exit_code == 0
        assert "sh -c" in noted.stderr
    for words in (["echo", "a b"], ["sh", "-c", "echo a | wc"]):
        assert "sh -c" not in invoke("run", spool.path, "--", *words).stderr


# ------------------------------------------------------------------------------------- the end

TOLD = "printf '%s ' $SPOOLPOOL_ENDED $SPOOLPOOL_DONE $SPOOLPOOL_RAISED $SPOOLPOOL_LOST ${SPOOLPOOL_SESSION:-none}"


def test_command_runs_at_the_end_of_commands_and_gets_their_numbers(served: Spool, tmp_path: Path) -> None:
    on_end = ("--on-end", f"{TOLD} > {tmp_path}/told")
    run("run", served.path, "--array", "0-3", "--session", "s", *on_end, "--", "sh", "-c", "test {} != 2")
    assert (tmp_path / "told").read_text(encoding="utf-8") == "4 3 1 0 s "
    run("run", served.path, "--wait", *on_end, "--", "false")
    assert (tmp_path / "told").read_text(encoding="utf-8") == "1 0 1 0 none "
    assert run("wait", served.path, "--session", "s", *on_end).returncode == 1
    assert (tmp_path / "told").read_text(encoding="utf-8") == "4 3 1 0 none "


def test_command_for_the_end_needs_an_end(spool: Spool) -> None:
    for words in (["--", "true"], ["--array", "0-1", "--no-wait", "--", "true"]):
        assert "--wait" in invoke("run", spool.path, "--on-end", "true", *words).stderr


def test_failed_command_for_the_end_changes_nothing(served: Spool) -> None:
    done = run("run", served.path, "--wait", "--on-end", "exit 7", "--", "echo", "out")
    assert (done.returncode, done.stdout) == (0, "out\n")
    assert "exit code 7" in done.stderr


def test_executor_of_a_session_runs_a_command_at_its_end(served: Spool, tmp_path: Path) -> None:
    session = Session("s", on_end=f"{TOLD} > {tmp_path}/told")
    with Executor(spool=served.path, session=session) as executor:
        executor.submit(pow, 2, 3)
        executor.submit(int, "x")
    assert (tmp_path / "told").read_text(encoding="utf-8") == "2 1 1 0 s "
    (tmp_path / "told").unlink()
    executor.shutdown()
    assert not (tmp_path / "told").exists()
    with Executor(spool=served.path, session=Session("t", on_end=session.on_end)) as executor:
        executor.submit(pow, 2, 3)
        executor.detach()
    assert not (tmp_path / "told").exists()
