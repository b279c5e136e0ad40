"""Commands for tasks, with real spools and workers: select, show, wait, cancel, remove, submit."""

from __future__ import annotations

import json
import os
import pickle
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import Executor, settings
from spoolpool.calls import pickling
from spoolpool.cli import task_selection
from spoolpool.cli.spool import main
from spoolpool.errors import BadRequest, NotASpool, NotTrusted, TaskFailed, TaskTimeout
from spoolpool.format.names import CANCELLED, Lane, TaskFile, is_task_id, new_task_id, new_worker_id
from spoolpool.monitor import selection, states
from spoolpool.monitor.query import Query
from spoolpool.monitor.scan import scan
from spoolpool.protocol import cancel, journal
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.sessions import session_state
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from tests.conftest import Workers
from tests.end_to_end.test_docs import codes, section
from tests.support import tasks
from tests.support.fake_worker import LANE, announce, unknown_process
from tests.support.task_files import put
from tests.support.waiting import LIMIT, wait_until

BIN = Path(sys.executable).parent
STATES = dict.fromkeys(states.STATES)


def run(*arguments: object, **options: Any) -> click.testing.Result:
    words = [str(each) for each in arguments]
    return click.testing.CliRunner().invoke(main, words, prog_name="spool", env={settings.ENV_SPOOL: None}, **options)


def ids(*words: object) -> list[str]:
    result = run("ls", "--ids", *words)
    assert result.exit_code == 0, result.stderr
    return result.stdout.split()


# -------------------------------------------------------------------------------------- selection


def test_page_lists_all_states() -> None:
    page = section("cli.md", "## Which tasks")
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and "--" not in line] == list(
        states.STATES
    )


def test_state_filter_selects_tasks(spool: Spool) -> None:
    created = {state: put(spool, state) for state in states.STATES}
    for state, task in created.items():
        assert ids(spool.path, "--state", state) == [task]
    assert set(ids(spool.path)) == set(created.values())
    assert set(ids(spool.path, "--state", "lost", "--state", "held")) == {created["lost"], created["held"]}


def test_other_filters_select_tasks(spool: Spool) -> None:
    plain = put(spool, "waiting")
    gpu = put(spool, "waiting", lane=Lane("gpu", 1, 1, 2, settings.PYTHON).name)
    named = put(spool, "failed", name="model.relax")
    inbox = put(spool, "done", session="sweep-42")
    old = put(spool, "running", ago=7200)
    everything = {plain, gpu, named, inbox, old}
    for words, wanted in (
        (["--queue", "gpu"], {gpu}),
        (["--lane", "*.r1t1g2.*"], {gpu}),
        (["--name", "model.relax"], {named}),
        (["--name", "relax"], {named}),
        (["--name", "rel*"], {named}),
        (["--name", "elax"], set()),
        (["--session", "sweep-42"], {inbox}),
        (["--older-than", "1h"], {old}),
        (["--older-than", "2.5h"], set()),
        (["--older-than", "0"], everything),
        (["--user", account_name(os.geteuid())], everything),
        (["--user", "nobody-like-that"], set()),
        (["--queue", "default", "--name", "relax"], {named}),
    ):
        assert set(ids(spool.path, *words)) == wanted, words
    assert ids(spool.path, named[-10:], "--name", "relax") == [named]
    assert run("ls", spool.path, named[-10:], "--name", "other").exit_code == BadRequest.exit_code


def test_duration_is_a_number_with_a_unit(spool: Spool) -> None:
    convert = task_selection.Duration().convert
    assert [convert(text, None, None) for text in ("90", "90s", "1.5m", "2 min", "2h", "7d")] == [
        90,
        90,
        90,
        120,
        7200,
        604800,
    ]
    for text in ("soon", "-1s", "1x", "", "٣s"):
        assert run("ls", spool.path, f"--older-than={text}").exit_code == 2


def test_ids_are_listed_without_opening_a_file(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    created = {put(spool, state) for state in ("held", "waiting", "running", "done", "failed")}
    real, opened = files.open_file, []

    def noted(path: str, **options: Any) -> int:
        opened.append(path)
        return real(path, **options)

    monkeypatch.setattr(files, "open_file", noted)
    assert set(ids(spool.path)) == created
    assert opened == [spool.layout.config]
    ids(spool.path, "--state", "failed", "--older-than", "1s")
    assert opened == [spool.layout.config] * 2


def test_task_that_moves_during_the_scan_is_listed_once(spool: Spool) -> None:
    task = put(spool, "waiting")
    found = selection.select(spool, Query())
    first = next(found)
    files.move(f"{spool.path}/{first.location.path}", f"{spool.layout.failed}/{first.location.task_file.name}")
    assert [first.id, *(view.id for view in found)] == [task]
    assert first.gone and first.header is None


def test_list_is_escaped_and_names_the_problem_of_a_torn_file(spool: Spool) -> None:
    task = put(spool, "waiting", name="hostile\x1b[2J\nname")
    torn = put(spool, "failed")
    path = next(Path(spool.layout.failed).glob(f"{torn}*"))
    path.write_bytes(path.read_bytes()[:20])
    result = run("ls", spool.path)
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert set(rows) == {"TASK", task[-10:], torn[-10:]}
    assert "\x1b" not in result.stdout and "hostile\\x1b[2J\\nname" in rows[task[-10:]]
    assert "torn" in rows[torn[-10:]]
    assert len(rows[task[-10:]].partition("hostile")[0]) < 72
    assert task in run("ls", "-l", spool.path).stdout
    assert len(run("ls", "--limit", "1", "--no-header", spool.path).stdout.splitlines()) == 1


def test_json_keys_of_a_task_match_the_page(spool: Spool) -> None:
    put(spool, "raised")
    (line,) = run("ls", "--json", spool.path).stdout.splitlines()
    text = section("cli.md", "## spool ls").partition("has the keys")[2]
    assert list(json.loads(line)) == codes(text)
    (line,) = run("show", "--json", spool.path, "--state", "raised").stdout.splitlines()
    found = json.loads(line)
    promised = section("cli.md", "## spool show").partition("`attempts`")[2].splitlines()[0]
    assert list(found["attempts"][0]) == codes(promised)


def test_commands_without_a_selection_change_nothing(spool: Spool) -> None:
    created = [put(spool, state) for state in states.STATES]
    for name in ("cancel", "retry", "rm", "show", "traceback", "result"):
        result = run(name, spool.path, input="")
        assert result.exit_code == BadRequest.exit_code
        assert "Name tasks or give a filter" in result.stderr
    assert sorted(ids(spool.path)) == sorted(created)


# -------------------------------------------------------------------------------- show, traceback


def test_show_prints_attempts_without_unpickling(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = put(spool, "raised", cwd="/somewhere", retries=1)
    written = Journal(spool, new_worker_id())
    written.write("raised", task=task, attempt=1, type="KeyError")
    written.write("recovered", text=f"{task}: worker 0123 died; attempt 2 of 4 waits")
    written.write("task", task=new_task_id(), attempt=1, kind="result")
    written.close()

    def refused(*_: Any) -> Any:
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr(pickling, "loads", refused)
    monkeypatch.setattr(pickle, "loads", refused)
    result = run("show", spool.path, task)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert f"Task {task} State raised, since" in text
    assert "Session inbox" in text and "Directory /somewhere" in text
    assert "Failure ValueError: too \\x1b[2Jbad (rank 0)" in text

    assert "raised KeyError; to be tried again" in text
    assert "worker 0123 died; attempt 2 of 4 waits" in text
    assert "on node7: raised ValueError" in text
    trace = run("traceback", spool.path, task)
    assert trace.stdout.splitlines()[1:] == ["ValueError on rank 0, host unknown", "Traceback:", "  here"]


def test_show_prints_the_worker_of_a_running_task(spool: Spool) -> None:
    worker = announce(spool, unknown_process())
    task = put(spool, "running")
    (path,) = Path(spool.layout.claimed).iterdir()
    path.rename(path.with_name(TaskFile(task, 1, 1, worker).name))
    cancel.request(spool, task)
    text = run("show", spool.path, task).stdout
    assert f"worker {worker} on elsewhere: running" in text
    assert "cancellation requested" in text


def test_traceback_of_a_set_aside_task_names_its_file(spool: Spool) -> None:
    task = put(spool, "failed")
    result = run("traceback", spool.path, task)
    assert result.exit_code == 0
    assert f"It is kept as {spool.layout.failed}/{task}" in result.stdout
    assert run("traceback", spool.path, "--name", "other").exit_code == BadRequest.exit_code


def test_invalid_journal_content_is_skipped(spool: Spool) -> None:
    task = put(spool, "waiting")
    good = json.dumps({"t": 1.0, "event": "raised", "task": task, "type": "E", "attempt": 1}).encode()
    junk = b'{"t": "no", "task": "' + task.encode() + b'"}\n\xff\xfe\n[' + b"[" * 5000 + b"\n"
    (Path(spool.layout.journal) / f"{new_worker_id()}.jsonl").write_bytes(junk + good + b"\n" + good[:20])
    os.mkfifo(Path(spool.layout.journal) / f"{new_worker_id()}.jsonl")
    os.symlink("/etc/passwd", Path(spool.layout.journal) / f"{new_worker_id()}.jsonl")
    assert [event.type for event in journal.about(spool, [task])] == ["E"]
    assert [event.type for event in journal.about(spool, [new_task_id() for _ in range(20)] + [task])] == ["E"]


def test_journal_lines_across_read_boundaries_are_found(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_PIECE", 300)
    task = put(spool, "waiting")
    written = Journal(spool, new_worker_id())
    for number in range(50):
        written.write("task", task=task if number % 7 == 0 else new_task_id(), attempt=number)
    written.close()
    assert [event.attempt for event in journal.about(spool, [task])] == list(range(0, 50, 7))
    events, when = journal.recent(spool, written._who["by"], 1000)
    assert [event.attempt for event in events] == list(range(50 - len(events), 50))
    assert 0 < len(events) < 10 and when > 0


# ------------------------------------------------------------------------------------ cancel and rm


def test_cancel_of_a_waiting_task_cancels_its_future(spool: Spool) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(pow, 2, 2)
        result = run("cancel", "--yes", spool.path, future.task)  # type: ignore[attr-defined]
        assert (result.exit_code, result.stdout) == (0, f"{future.task} was cancelled.\n")  # type: ignore[attr-defined]
        wait_until(future.cancelled, "the future is cancelled")
    assert not any((scan(spool).ready, scan(spool).results, scan(spool).cancel_requests))


def test_held_and_running_tasks_can_be_cancelled(spool: Spool) -> None:
    held, waiting, running = (put(spool, state) for state in ("held", "waiting", "running"))
    result = run("cancel", "--all", "--yes", spool.path)
    assert result.exit_code == 0, result.stderr
    assert set(result.stdout.splitlines()) == {
        f"{held} was cancelled.",
        f"{waiting} was cancelled.",
        f"{running} is running; its cancellation was requested.",
    }
    seen = scan(spool)
    assert {task_file.task for task_file in seen.results.values()} == {held, waiting}
    assert all(task_file.worker == CANCELLED for task_file in seen.results.values())
    assert (seen.ready, seen.cancel_requests) == ({}, {running})
    assert run("cancel", "--yes", spool.path, running).exit_code == 0, "the request may exist already"


def test_held_task_that_became_ready_is_cancelled(spool: Spool) -> None:
    task = put(spool, "held")
    (view,) = selection.select(spool, Query())
    header, task_file = view.header, view.location.task_file
    assert header is not None
    spool.open_session(header.session)
    bucket = spool.layout.bucket(header.lane, header.bucket)
    spool.make_directories(bucket)
    files.move(f"{spool.layout.waiting}/{task_file.name}", f"{bucket}/{task_file.name}")
    assert cancel.cancel_task(spool, header, task_file, delayed=True)
    assert ids(spool.path, "--state", "cancelled") == [task]
    assert not cancel.cancel_task(spool, header, TaskFile(new_task_id(), 1, 1), delayed=True)


def test_waiting_task_with_a_cancel_request_is_not_run(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(tasks.mark, tmp_path / "ran")
        cancel.request(spool, future.task)  # type: ignore[attr-defined]
        worker(spool)
        wait_until(future.cancelled, "the worker honours the cancel request")
    assert not (tmp_path / "ran").exists()


def test_rm_removes_tasks_with_their_outcomes(spool: Spool) -> None:
    created = {state: put(spool, state) for state in states.STATES}
    result = run("rm", "--all", "--yes", spool.path)
    assert result.exit_code == 0, result.stderr
    left = {"held", "waiting", "running"}
    assert set(ids(spool.path)) == {created[state] for state in left}
    assert set(result.stdout.splitlines()) == {f"{created[state]} was removed." for state in STATES.keys() - left}
    assert scan(spool).outgoing == {}
    assert run("rm", "--all", "--yes", spool.path).exit_code == 0


def test_result_with_a_waiting_dependent_is_not_removed(spool: Spool) -> None:
    with Executor(spool=spool.path, session="chain") as executor:
        first = executor.submit(pow, 2, 2)
        second = executor.submit(pow, first, 2)
        executor.detach()
    needed, needing = first.task, second.task  # type: ignore[attr-defined]
    (view,) = selection.find_by_ids(spool, [needed], Query())
    target = f"{spool.layout.results}/chain/{view.location.task_file.claimed_by(new_worker_id()).name}"
    files.move(f"{spool.path}/{view.location.path}", target)
    result = run("rm", "--yes", "--all", spool.path)
    assert result.exit_code == 1
    assert f"{needed} stays: task {needing} needs its result" in result.stderr
    assert run("cancel", "--yes", spool.path, needing).stdout == f"{needing} was cancelled.\n"
    result = run("rm", "--yes", spool.path, needing)
    assert (result.exit_code, result.stdout) == (0, f"{needing} was removed.\n")
    assert run("rm", "--yes", "--all", spool.path).stdout == f"{needed} was removed.\n"
    assert [path for path in Path(spool.layout.needs).rglob("*") if path.is_file()] == []


def test_cancel_request_is_removed_with_its_task(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(tasks.mark, tmp_path / "ran")
        cancel.request(spool, future.task)  # type: ignore[attr-defined]
        worker(spool)
        wait_until(future.cancelled, "the worker honours the cancel request")
        wait_until(lambda: not files.list_names(spool.layout.cancel), "the cancel request is removed")


@pytest.mark.parametrize(("name", "state"), [("rm", "failed"), ("cancel", "waiting")])
def test_destructive_commands_ask_and_refuse_without_a_terminal(
    spool: Spool, name: str, state: states.State, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = put(spool, state)
    refused = run(name, spool.path, task)
    assert refused.exit_code == BadRequest.exit_code
    assert f"{'remove' if name == 'rm' else 'cancel'} 1 task(s)" in refused.stderr and "--yes" in refused.stderr
    for answer, code in (("n\n", 1), ("", 1), ("y\n", 0)):
        assert ids(spool.path, "--state", state) == [task]
        asked = _on_terminal([str(BIN / "spool"), name, spool.path, task], answer or "\x04")
        assert task in asked[1], "the question names the task"
        assert asked[0] == code, asked[1]
    assert ids(spool.path, "--state", state) == []


def _on_terminal(words: list[str], keys: str, until: str = "", **variables: str) -> tuple[int, str]:
    """Run a command on a terminal of 80 columns, press keys after its first output; return exit code and output."""
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm", **variables}
    # setsid: a terminal of its own, so that Ctrl-C reaches the command
    process = subprocess.Popen(["setsid", "--ctty", *words], stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    output = b""
    pressed = False
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if select.select([parent], [], [], 0.1)[0]:
            try:
                data = os.read(parent, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not data:
                break
            output += data
        if not pressed and (until.encode() in output if until else b"?" in output):
            os.write(parent, keys.encode())
            pressed = True
    os.close(parent)
    return process.wait(LIMIT), output.decode(errors="replace")


# ------------------------------------------------------------------------------------------- wait


def test_wait_ends_with_the_last_task_and_its_exit_code_tells_failures(spool: Spool) -> None:
    assert run("wait", spool.path).exit_code == 0, "nothing to wait for"
    done = put(spool, "done")
    assert run("wait", spool.path).exit_code == 0
    for state in ("raised", "lost", "cancelled", "failed"):
        bad = put(spool, state)  # type: ignore[arg-type]
        assert run("wait", spool.path, done).exit_code == 0
        result = run("wait", spool.path)
        assert (result.exit_code, result.stderr) == (1, f"1 done, 1 {state}\n")
        run("rm", "--yes", spool.path, bad)


def test_wait_times_out_and_explains_blocked_tasks(spool: Spool) -> None:
    put(spool, "waiting")
    result = run("wait", "--timeout", "0.2s", spool.path)
    assert result.exit_code == TaskTimeout.exit_code
    first, second = result.stderr.splitlines()
    assert "no worker group is alive" in first
    assert "1 of 1 tasks" in second and "within 0.2 s" in second


def test_wait_covers_tasks_that_their_submitter_collects(
    served: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spoolpool.monitor.wait._FIRST_SCAN", 0.05)
    monkeypatch.setattr("spoolpool.monitor.wait._LAST_SCAN", 0.1)
    with Executor(spool=served.path) as executor:
        running = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "go")
        wait_until((tmp_path / "started").exists, "it runs")
        raising = executor.submit(tasks.fail, tasks.OwnError("no"))
        words = [BIN / "spool", "wait", served.path, running.task, raising.task]  # type: ignore[attr-defined]
        process = subprocess.Popen([*words, "-vv"], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        process.stderr.readline()  # printed after the first scan
        (tmp_path / "go").touch()
        assert isinstance(raising.exception(), tasks.OwnError)
        output = process.communicate(timeout=LIMIT)[1]
    assert process.returncode in (0, 1), output
    words = output.splitlines()[-1].replace(",", "").split()
    assert sum(map(int, words[::2])) == 2
    assert set(words[1::2]) <= {"done", "raised", "collected"}, output


# ------------------------------------------------------------------------- submit, run and result


def test_submit_runs_a_function_by_name(served: Spool) -> None:
    at = ["--spool", served.path]
    result = run("submit", *at, "math:hypot", "--arg", "3", "--arg", "4", "--wait")
    assert (result.exit_code, result.stdout) == (0, "5.0\n")
    result = run(
        "submit", *at, "tests.support.tasks:keywords", "--arg", 'a={"b": [1, null]}', "--arg", "c=text", "--wait"
    )
    assert result.stdout == "{'a': {'b': [1, None]}, 'c': 'text'}\n"
    result = run("submit", *at, "tests.support.tasks:fail_deeper", "--arg", '"what=ever"', "--wait")
    assert result.exit_code == TaskFailed.exit_code
    assert "OwnError: what=ever" in result.stderr and "KeyError" in result.stderr, "with the remote traceback"
    assert ids(served.path, "--state", "done", "--state", "raised") == [], "a result that was waited for is removed"


def test_result_of_a_detached_submit_stays_until_removed(served: Spool) -> None:
    result = run("submit", "--spool", served.path, "--session", "again", "math:hypot", "--arg", "3", "--arg", "4")
    task = result.stdout.strip()
    assert is_task_id(task)
    assert run("wait", served.path, "--session", "again").exit_code == 0
    assert session_state(served, "again") == "ended", "gc must not take the session for orphaned"
    for words, text in (([task], "5.0\n"), (["--session", "again", "--json"], "5.0\n")):
        result = run("result", served.path, *words)
        assert (result.exit_code, result.stdout) == (0, text)
    assert run("rm", "--yes", served.path, "--session", "again").exit_code == 0
    assert ids(served.path, "--session", "again") == []


def test_run_returns_exit_code_and_output_of_a_command(served: Spool, tmp_path: Path) -> None:
    at = ["--spool", served.path, "--cwd", tmp_path, "--session", "shell"]
    script = "pwd; echo $GIVEN $SPOOLPOOL_RANK/$SPOOLPOOL_SIZE; printf '\\377' >&2; exit $CODE"
    words = ["-e", "GIVEN=ü", "-e", "CODE", "--", "sh", "-c", script]
    good = _run_command(at, words, CODE="0")
    assert good.returncode == 0, good.stderr
    assert good.stdout == f"{tmp_path}\nü 0/1\n".encode()
    assert good.stderr.endswith(b"\xff")
    bad = _run_command(at, words, CODE="3")
    assert (bad.returncode, bad.stdout) == (3, good.stdout)


def _run_command(at: list[Any], words: list[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = [str(each) for each in (BIN / "spool", "run", *at, "--wait", *words)]
    return subprocess.run(command, capture_output=True, env={**os.environ, **variables}, timeout=LIMIT)


def test_run_names_the_task_by_its_command_and_keeps_the_result(served: Spool) -> None:
    at = ["--spool", served.path, "--session", "kept"]
    good = run("run", *at, "--", "echo", "two words", "-v").stdout.strip()
    bad = run("run", *at, "--", "sh", "-c", "kill -9 $$").stdout.strip()
    none = run("run", *at, "--", "/no/such/program").stdout.strip()
    assert run("wait", served.path, "--session", "kept").exit_code == 1
    assert "echo 'two words' -v" in run("ls", served.path, good).stdout
    assert run("result", served.path, good).stdout == "two words -v\n"
    assert run("result", served.path, bad).exit_code == 137
    result = run("result", served.path, none)
    assert result.exit_code == BadRequest.exit_code
    assert "'/no/such/program' cannot be started" in result.stderr and "Traceback" not in result.stderr
    assert run("rm", "--yes", served.path, "--session", "kept").exit_code == 0


@pytest.mark.mpi
def test_command_runs_on_every_rank_outside_of_the_mpi_job(spool: Spool, worker: Workers) -> None:
    worker(spool, mpi_ranks=2)
    at = ["--spool", spool.path, "--ranks", 2]
    result = _run_command(at, ["sh", "-c", "echo $SPOOLPOOL_RANK/$SPOOLPOOL_SIZE $PMI_RANK"])
    assert (result.returncode, result.stdout.split()) == (0, [b"0/2", b"1/2"])
    program = "from mpi4py import MPI; import os; os._exit(MPI.COMM_WORLD.size + 1)"
    assert _run_command(at, [sys.executable, "-c", program]).returncode == 2, "the program is an MPI job of its own"
    assert _run_command(at, ["true"]).returncode == 0, "the group survived"


def test_successive_submit_commands_share_a_bucket(spool: Spool) -> None:
    for _ in range(3):
        assert run("submit", "--spool", spool.path, "math:hypot", "--arg", "3", "--arg", "4").exit_code == 0
    (bucket,) = files.list_names(spool.layout.lane(LANE))
    assert len(files.list_names(spool.layout.bucket(LANE, bucket))) == 3
    assert run("submit", "--spool", spool.path, "--session", "other", "math:hypot").exit_code == 0
    assert len(files.list_names(spool.layout.lane(LANE))) == 2


def test_options_set_the_resources_of_a_task(spool: Spool, tmp_path: Path) -> None:
    words = ["--ranks", 2, "--threads", 3, "--gpus", 1, "--queue", "night", "--priority", 9, "--cwd", tmp_path]
    words += ["--resource", "retries=4", "--resource", 'tags=["big"]', "--session", "s"]
    for name, what in (("submit", ["math:hypot"]), ("run", ["true"])):
        task = run(name, "--spool", spool.path, *words, *what).stdout.strip()
        (view,) = selection.find_by_ids(spool, [task], Query())
        header = view.header
        assert header is not None
        assert header.lane.startswith("night.r2t3g1.py") and "+big" in header.lane
        assert (header.retries, header.cwd, header.session, task[:3]) == (4, str(tmp_path), "s", "490")


def test_results_of_untrusted_accounts_are_not_read(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = put(spool, "done")

    def others(self: Trust, fd: int, path: str) -> int:
        raise NotTrusted(f"{path} belongs to mallory, which is not trusted here.")

    assert run("result", spool.path, task).stdout == "value\n"
    monkeypatch.setattr(Trust, "check", others)
    result = run("result", spool.path, task)
    assert (result.exit_code, result.stdout) == (NotTrusted.exit_code, "")


# ------------------------------------------------------------------------------------ usage errors

USAGE_ERRORS: dict[str, tuple[list[str], int]] = {
    "no spool": (["ls", "/nowhere"], NotASpool.exit_code),
    "no task": (["show", "SPOOL", "zzz"], BadRequest.exit_code),
    "an unknown state": (["ls", "SPOOL", "--state", "good"], 2),
    "a state that cannot be retried": (["retry", "SPOOL", "--state", "running"], 2),
    "a missing module": (["submit", "--spool", "SPOOL", "nowhere:f"], BadRequest.exit_code),
    "a missing function": (["submit", "--spool", "SPOOL", "math:f"], BadRequest.exit_code),
    "no function": (["submit", "--spool", "SPOOL", "math"], BadRequest.exit_code),
    "no callable": (["submit", "--spool", "SPOOL", "math:pi"], BadRequest.exit_code),
    "an unknown resource": (
        ["submit", "--spool", "SPOOL", "--resource", "colour=1", "math:hypot"],
        BadRequest.exit_code,
    ),
    "a resource without a value": (["run", "--spool", "SPOOL", "--resource", "cores", "true"], BadRequest.exit_code),
    "a bad session": (["run", "--spool", "SPOOL", "--session", "../x", "true"], BadRequest.exit_code),
    "a bad queue": (["run", "--spool", "SPOOL", "--queue", "a/b", "true"], BadRequest.exit_code),
    "an unset variable": (["run", "--spool", "SPOOL", "-e", "NOT_SET_HERE", "true"], BadRequest.exit_code),
    "no command": (["run", "--spool", "SPOOL"], 2),
    "no spool to submit to": (["run", "true"], 2),
    "no terminal": (["top", "SPOOL"], BadRequest.exit_code),
    "a bad timeout": (["wait", "SPOOL", "--timeout", "soon"], 2),
}


@pytest.mark.parametrize("usage_error", USAGE_ERRORS)
def test_usage_error_is_one_line_with_its_exit_code(spool: Spool, usage_error: str) -> None:
    words, code = USAGE_ERRORS[usage_error]
    result = run(*(spool.path if word == "SPOOL" else word for word in words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    if code != 2:  # click prints the usage before the error
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"spool {words[0]}: ")
        assert line.count(". ") + line.count(": ") >= 2, "the message has a cause and a remedy"


@pytest.mark.parametrize("debug", ["before", "behind"])
def test_debug_option_is_accepted_before_and_after_the_command(debug: str) -> None:
    words = ["--debug", "ls", "/nowhere"] if debug == "before" else ["ls", "/nowhere", "--debug"]
    assert isinstance(run(*words).exception, NotASpool)


def test_unexpected_error_is_one_line(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr(task_selection, "select", broken)
    result = run("ls", spool.path)
    assert result.exit_code == settings.EXIT_UNEXPECTED
    (line,) = result.stderr.splitlines()
    assert line.startswith("spool ls: ZeroDivisionError: division by\\nzero.") and "'spool --debug'" in line
    assert isinstance(run("ls", spool.path, "--debug").exception, ZeroDivisionError)


# --------------------------------------------------------------------------------------- terminals


def test_top_repaints_the_terminal_until_q_is_pressed(spool: Spool) -> None:
    put(spool, "waiting")
    for words in (["top", spool.path], ["status", "--watch", spool.path]):
        code, output = _on_terminal([str(BIN / "spool"), *words, "--interval", "0.1"], "q", until="LANE")
        assert code == 0, output
        assert "\x1b[?1049h" in output and output.rstrip().endswith("\x1b[?25h\x1b[?1049l"), (
            "the previous screen is restored"
        )
        assert "BLOCKED" in output and "\x1b[31m" in output, "blocked tasks are red"
    code, output = _on_terminal([str(BIN / "spool"), "top", spool.path], "\x03", until="LANE", NO_COLOR="1")
    assert code == 0, output
    assert "\x1b[31m" not in output and "\x1b[1m" not in output


def test_list_has_a_title_on_a_terminal(spool: Spool) -> None:
    put(spool, "waiting")
    _, output = _on_terminal([str(BIN / "spool"), "ls", spool.path], "", until="TASK", NO_COLOR="1")
    assert output.startswith("TASK        STATE") and "\x1b" not in output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completes_commands_and_ids(spool: Spool, shell: str) -> None:
    task = put(spool, "failed")

    def completed(*words: str) -> str:
        variables = {"COMP_WORDS": shlex.join(("spool", *words)), "COMP_CWORD": str(len(words))}
        if shell == "fish":
            variables["COMP_CWORD"] = words[-1]
        return (
            click.testing.CliRunner()
            .invoke(main, [], prog_name="spool", env={**variables, "_SPOOL_COMPLETE": f"{shell}_complete"})
            .stdout
        )

    assert "status" in completed("sta")
    assert task in completed("show", spool.path, task[:6])
    assert "--state" in completed("ls", "--st")
    for command in ("ls", "status", "init"):
        assert "dir" in completed(command, "/no").replace("\n", ",").split(",")
    assert (
        "_SPOOL_COMPLETE"
        in click.testing.CliRunner()
        .invoke(main, [], prog_name="spool", env={"_SPOOL_COMPLETE": f"{shell}_source"})
        .stdout
    )


ABOUT_TASKS = ("submit", "run", "status", "ls", "show", "wait", "result", "traceback", "cancel", "retry", "rm", "logs")


@pytest.mark.parametrize("name", ABOUT_TASKS)
def test_help_of_task_commands_has_examples(name: str) -> None:
    found = main.get_command(click.Context(main), name)
    assert found is not None and found.help is not None
    assert found.help.count(f"  spool {name} ") >= 2


def test_task_that_raised_is_retried_and_its_history_names_the_session(served: Spool, tmp_path: Path) -> None:
    at = [served.path, "--session", "again"]
    task = run("run", *at, "--", "sh", "-c", f"test -e {tmp_path}/there && echo found").stdout.strip()
    assert run("wait", *at).exit_code == 1
    (tmp_path / "there").touch()
    assert run("retry", served.path, task).stdout == f"{task} waits again.\n"
    assert run("wait", *at).exit_code == 0
    assert run("result", served.path, task).stdout == "found\n"
    history = run("show", served.path, task).stdout
    assert "session again on " in history
    assert re.search(r"worker [0-9a-f]{16} on \S+: ", history)


def test_error_of_a_missing_selection_names_options_that_the_command_has(spool: Spool) -> None:
    for command in ("show", "result", "traceback"):
        assert "--all" not in run(command, spool.path).stderr
    assert "--all" in run("cancel", spool.path).stderr
