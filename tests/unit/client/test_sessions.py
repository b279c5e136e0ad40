"""Named sessions: futures of earlier runs, resumed scripts, detached ends, and the removal of sessions."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from spoolpool import Executor, Sbatch, Session
from spoolpool.cli.spool import main
from spoolpool.client.futures import wait
from spoolpool.errors import BadRequest, BadTaskFile, DependencyFailed, WorkerLost
from spoolpool.format.names import TaskFile, new_task_id, new_worker_id
from spoolpool.maintenance import garbage
from spoolpool.protocol import sessions
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import read_workers
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.processes import ProcessId, hostname
from tests.conftest import Workers
from tests.faults.disk import Disk, Fault
from tests.faults.scenarios import abandon
from tests.support.accounts import as_root, unused_id
from tests.support.fake_worker import Clock, Stage, announce, dead_process, unknown_process
from tests.support.processes import run_script, start_script
from tests.support.waiting import LIMIT

SCRIPT = """
import os, signal, sys, time
from spoolpool import Executor, Session
from spoolpool.client.futures import wait

def leave_trace(effects, n):
    with open(effects, "a") as file:
        file.write(f"{n}\\n")
    if n == 3:
        raise ValueError("three")
    return n * n

def total(*parts):
    return sum(parts)

spool, effects, how = sys.argv[1:]
exe = Executor(spool=spool, session=Session("sweep-42", resume=True))
futures = [exe.submit(leave_trace, effects, n) for n in range(4)]
futures.append(exe.submit(total, *futures[:3]))
futures.append(exe.submit(leave_trace, effects, 9, resource_dict={"cores": 3}))
print("submitted", flush=True)
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "killed when done":
    wait(futures[:5])
    os.kill(os.getpid(), signal.SIGKILL)
if how == "dropped":
    exe.shutdown(wait=False)
else:
    print([future.exception() or future.result() for future in futures[:5]])
    exe.detach()
"""


def effects_of(path: Path) -> list[int]:
    return sorted(map(int, path.read_text().split())) if path.exists() else []


def test_later_process_gets_the_futures_of_a_killed_script(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    ended = run_script(tmp_path / "script.py", SCRIPT, spool.path, effects, "killed")
    assert ended.returncode == -signal.SIGKILL and ended.stdout == "submitted\n"
    with Executor(spool=spool.path, session="sweep-42") as exe:
        futures = exe.futures()
        assert [future.done() for future in futures] == [False] * 6
        assert len(exe) == 6
        assert futures == exe.futures()
        called = []
        for future in futures:
            future.add_done_callback(called.append)
        worker(spool)
        assert [future.result(LIMIT) for future in futures[:3]] == [0, 1, 4]
        with pytest.raises(ValueError, match="three"):
            futures[3].result(LIMIT)
        assert futures[4].result(LIMIT) == 5
        assert not futures[5].running() and futures[5].cancel() and futures[5].cancelled()
    assert set(called) == set(futures)
    assert effects_of(effects) == [0, 1, 2, 3]
    with Executor(spool=spool.path, session="sweep-42") as exe:  # all are done, and their outcomes stay
        again = exe.futures()
        assert [future.task for future in again] == [future.task for future in futures]
        assert [future.result(LIMIT) for future in (*again[:3], again[4])] == [0, 1, 4, 5]
        assert isinstance(again[3].exception(LIMIT), ValueError)
        with pytest.raises(CancelledError):
            again[5].result(LIMIT)


@pytest.mark.parametrize("how", ["killed", "killed when done", "dropped"])
def test_resumed_script_submits_only_failed_calls_again(
    spool: Spool, worker: Workers, tmp_path: Path, how: str
) -> None:
    effects = tmp_path / "effects"
    if how == "killed when done":
        worker(spool)
    run_script(tmp_path / "script.py", SCRIPT, spool.path, effects, how)
    second = start_script(tmp_path / "script.py", SCRIPT, spool.path, effects, "")
    assert second.stdout is not None and second.stdout.readline() == "submitted\n"
    if how != "killed when done":
        assert effects_of(effects) == []
        worker(spool)
    assert second.stdout.read() == "[0, 1, 4, ValueError('three'), 5]\n"
    assert second.wait(LIMIT) == 0
    runs = [0, 1, 2, 3, 3] if how == "killed when done" else [0, 1, 2, 3]
    assert effects_of(effects) == runs
    third = run_script(tmp_path / "script.py", SCRIPT, spool.path, effects, "")
    assert third.stdout.splitlines()[1] == "[0, 1, 4, ValueError('three'), 5]", third
    assert effects_of(effects) == [*runs, 3]
    with Executor(spool=spool.path, session=Session("sweep-42", detach=True)) as exe:
        found = [future.header.name for future in exe.futures()]
    assert found.count("total") == 1
    assert len(found) == 6 + len(runs) + 1 - 4


# -- futures of earlier runs


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path / "stage", Clock.installed(monkeypatch, observers=True))


def open_session(spool: Spool, *, resume: bool = False, **options: Any) -> Executor:
    """Open an executor of the session that detaches at its end."""
    return Executor(spool=spool.path, session=Session("inbox", resume=resume, detach=True), **options)


def test_futures_are_in_the_order_of_submission_in_all_states(stage: Stage) -> None:
    with open_session(stage.spool) as exe:
        lost = exe.submit(pow, 2, 9, resource_dict={"max_attempts": 1})
        first = exe.submit(pow, 2, 3, resource_dict={"priority": 5})
        second = exe.submit(pow, first, 2)
        raised = exe.submit(divmod, 1, 0)
        cancelled = exe.submit(pow, 2, 5)
        assert cancelled.cancel()
        ids = [each.task for each in (lost, first, second, raised, cancelled)]  # type: ignore[attr-defined]
    with open_session(stage.spool) as exe:
        assert [each.task for each in exe.futures()] == ids
        with pytest.raises(CancelledError):
            exe.futures()[-1].result(LIMIT)
        assert not exe.futures()[2].running()
    abandon(stage, lost.header, dead_process())  # type: ignore[attr-defined]
    with open_session(stage.spool) as exe:
        assert [each.running() for each in exe.futures()[:2]] == [True, False]
        assert not exe.futures()[0].cancel()
    stage.recover()
    stage.work(tasks=3)
    for _ in range(2):
        with open_session(stage.spool) as exe:
            found = exe.futures()
            assert [each.task for each in found] == ids
            assert isinstance(found[0].exception(LIMIT), WorkerLost)
            assert [each.result(LIMIT) for each in found[1:3]] == [8, 64]
            assert isinstance(found[3].exception(LIMIT), ZeroDivisionError)
            assert wait(found, LIMIT).not_done == set() and found[4].cancelled()


def test_lost_task_has_a_result_after_a_retry(stage: Stage) -> None:
    with open_session(stage.spool) as exe:
        lost = exe.submit(pow, 2, 9, resource_dict={"max_attempts": 1})
        exe.submit(square, lost)
        abandon(stage, lost.header, dead_process())  # type: ignore[attr-defined]
        stage.recover()
        assert isinstance(lost.exception(LIMIT), WorkerLost)
        stage.work(tasks=1)
        assert isinstance(exe.futures()[1].exception(LIMIT), DependencyFailed)
    with open_session(stage.spool) as exe:
        assert isinstance(exe.futures()[0].exception(LIMIT), WorkerLost)
    shown = click.testing.CliRunner().invoke(main, ["retry", "--all", stage.spool.path], prog_name="spool")
    assert shown.stdout == f"{lost.task} waits again.\n", shown.stderr  # type: ignore[attr-defined]
    assert [
        len(files.list_names(f"{at}/inbox")) for at in (stage.spool.layout.results, stage.spool.layout.outgoing)
    ] == [
        1,
        1,
    ]
    stage.work(tasks=1)
    with open_session(stage.spool) as exe:
        assert exe.futures()[0].result(LIMIT) == 512


def test_future_of_a_set_aside_task_has_bad_task_file(stage: Stage) -> None:
    with open_session(stage.spool) as exe:
        task = exe.submit(pow, 2, 9).task  # type: ignore[attr-defined]
    [path] = Path(stage.spool.layout.ready).glob(f"*/*/{task}*")
    path.rename(f"{stage.spool.layout.failed}/{path.name}.{new_worker_id()}")
    with open_session(stage.spool) as exe:
        (aside,) = exe.futures()
        assert isinstance(aside.exception(0), BadTaskFile) and "'spool retry' runs it again" in str(aside.exception())


def test_referenced_future_of_a_task_is_returned_again(stage: Stage) -> None:
    with open_session(stage.spool) as exe:
        mine = exe.submit(pow, 2, 3)
        assert exe.futures() == [mine]
        stage.work(tasks=1)
        assert mine.result(LIMIT) == 8
        assert exe.futures() == [mine]
        task = mine.task  # type: ignore[attr-defined]
        del mine
        gc.collect()
        (new,) = exe.futures()
        assert new.task == task and new.result(LIMIT) == 8  # type: ignore[attr-defined]


def test_two_executors_of_one_session_both_get_all_outcomes(stage: Stage) -> None:
    with open_session(stage.spool) as one, open_session(stage.spool) as other:
        ones, others = one.submit(pow, 2, 2), other.submit(pow, 2, 3)
        seen = one.futures(), other.futures()
        assert [[each.task for each in found] for found in seen] == [[ones.task, others.task]] * 2  # type: ignore[attr-defined]
        stage.work(tasks=2)
        assert [[each.result(LIMIT) for each in found] for found in seen] == [[4, 8]] * 2
        assert (ones.result(LIMIT), others.result(LIMIT)) == (4, 8)
    assert not sessions.list_entries(stage.spool, "inbox"), "each removes its own entry"


def test_process_that_ends_leaves_the_entries_of_the_others(spool: Spool) -> None:
    one = open_session(spool)
    [first] = sessions.list_entries(spool, "inbox")
    with open_session(spool):
        assert len(sessions.list_entries(spool, "inbox")) == 2
        one.shutdown()
        [second] = sessions.list_entries(spool, "inbox")
        assert second != first and sessions.session_state(spool, "inbox") == "alive"
    assert sessions.session_state(spool, "inbox") == "ended"


@pytest.mark.parametrize("run", ["", "~0123abcd"])
@pytest.mark.parametrize(
    ("before", "state", "stays"),
    [("dead", "dead", False), ("on another host", "unknown", True), ("alive", "alive", True)],
)
def test_opening_a_session_removes_only_the_entries_of_provably_dead_processes(
    spool: Spool, before: str, state: str, stays: bool, run: str
) -> None:
    with subprocess.Popen(["sleep", "1000"]) as alive:
        process = {"dead": dead_process(), "on another host": unknown_process(), "alive": ProcessId.of(alive.pid)}
        entry = sessions.SessionInfo(process=process[before], user="somebody", keeps=True)
        path = Path(spool.layout.session(f"inbox{run}"))
        path.write_bytes(msgspec.json.encode(entry))
        try:
            assert sessions.session_state(spool, "inbox") == state
            with open_session(spool):
                assert sessions.session_state(spool, "inbox") == "alive"
                assert path.exists() == stays
            assert path.exists() == stays
        finally:
            alive.kill()


@pytest.mark.parametrize("fault", ["truncated", "newer", "EIO", "EACCES", "ESTALE", "listing"])
def test_entry_that_cannot_be_read_may_be_of_a_live_process(spool: Spool, fault: str) -> None:
    path = Path(spool.layout.session("inbox~0123abcd"))
    entry = msgspec.json.encode(sessions.SessionInfo(process=dead_process(), user="somebody", keeps=True))
    newer = b'{"process": [1, 2], "user": 3}'
    path.write_bytes({"truncated": entry[:-9], "newer": newer}.get(fault, entry))
    name = "listdir" if fault == "listing" else "open"
    error = errno.ESTALE if fault == "listing" else getattr(errno, fault, 0)

    def plan(_count: int, operation: str) -> Fault | None:
        return Fault("before", error) if error and operation == name else None

    with Disk(plan).installed():
        assert sessions.session_state(spool, "inbox") == "unknown"


def test_futures_ignores_tasks_of_other_sessions_and_foreign_files(stage: Stage) -> None:
    with (
        open_session(stage.spool) as exe,
        Executor(spool=stage.spool.path, session=Session("another", detach=True)) as other,
    ):
        mine = exe.submit(pow, 2, 2)
        theirs = [other.submit(pow, 2, n) for n in range(3)]
        other.submit(pow, theirs[0], 2)
        abandon(stage, theirs[1].header, dead_process())  # type: ignore[attr-defined]
        for directory in ("claimed", "waiting", "failed", "results/inbox"):
            Path(stage.spool.path, directory, "foreign").touch()
            Path(stage.spool.path, directory, TaskFile(new_task_id(), 1, 1, new_worker_id()).name).write_bytes(b"torn")
        assert exe.futures() == [mine]


def test_resuming_requires_a_named_session_of_a_spool(spool: Spool) -> None:
    with Executor(spool=spool.path) as exe, pytest.raises(BadRequest, match="session="):
        exe.futures()
    with pytest.raises(BadRequest, match="give spool= as well"):
        Executor(session=Session("s", resume=True), backend="local")
    for options in ({"backend": "sbatch"}, {"backend": Sbatch(nodes=2)}, {"max_workers": 1}):
        with pytest.raises(BadRequest, match="can leave its tasks"):
            Executor(spool=spool.path, session=Session("s", detach=True), **options)  # type: ignore[arg-type]
    assert [path for path in Path(spool.path).rglob("*") if path.is_file()] == [Path(spool.layout.config)]


# -- detached ends


@pytest.mark.parametrize(
    "ending", ["shutdown(wait=False)", "shutdown(detach=True)", "detach()", "__exit__(None, None, None)", "info"]
)
def test_detached_script_does_not_wait_for_its_tasks(spool: Spool, tmp_path: Path, ending: str) -> None:
    detach = ending in ("__exit__(None, None, None)", "info")
    script = f"""
import sys
from spoolpool import Executor, Session
exe = Executor(spool=sys.argv[1], session=Session("inbox", detach={detach}))
exe.submit(pow, 2, 3)
exe.{ending}
"""
    ended = run_script(
        tmp_path / "script.py", script, spool.path
    )  # without a worker, a script that waited would not end
    assert ended.returncode == 0, ended.stderr
    with open_session(spool) as exe:
        assert len(exe) == 0
        assert len(exe.futures()) == len(exe) == 1


def test_outcomes_are_delivered_after_a_shutdown_without_waiting(stage: Stage) -> None:
    exe = Executor(spool=stage.spool.path, session="inbox")
    future = exe.submit(pow, 2, 3)
    exe.shutdown(wait=False)
    stage.work(tasks=1)
    assert future.result(LIMIT) == 8


# -- resumed scripts


def square(n: int) -> int:
    return n * n


def test_each_task_stands_for_one_call_of_the_script(stage: Stage) -> None:
    with open_session(stage.spool, resume=True) as exe:
        tasks = [exe.submit(square, 3).task for _ in range(2)]  # type: ignore[attr-defined]
        assert len(set(tasks)) == 2
    stage.work(tasks=2)
    with open_session(stage.spool, resume=True) as exe:
        futures = [exe.submit(square, 3) for _ in range(3)]
        assert [future.task for future in futures[:2]] == tasks  # type: ignore[attr-defined]
        assert [future.result(LIMIT) for future in futures[:2]] == [9, 9]
        assert not futures[2].done()


def test_key_contains_function_arguments_and_resources(stage: Stage) -> None:
    def times(factor: int) -> Callable[[int], int]:
        return lambda n: n * factor

    calls: list[tuple[Any, ...]] = [
        (square, (3,), {}),
        (square, (3.0,), {}),
        (times(2), (3,), {}),
        (times(3), (3,), {}),
        (square, (3,), {"cwd": "/tmp"}),
        (square, (3,), {"env": {"A": "1"}}),
    ]
    ids: list[list[str]] = []
    for _ in range(2):
        with open_session(stage.spool, resume=True) as exe:
            futures = [exe.submit(function, *args, resource_dict=resources) for function, args, resources in calls]
            ids.append([future.task for future in futures])  # type: ignore[attr-defined]
    assert ids[0] == ids[1] and len(set(ids[0])) == len(calls)
    with open_session(
        stage.spool, resume=True
    ) as exe:  # resources that only decide when and how often the task runs are not part of it
        again = exe.submit(square, 3, resource_dict={"priority": 3, "retries": 2, "time_limit": 60})
        assert again.task == ids[0][0]  # type: ignore[attr-defined]
    with open_session(stage.spool, resume=True, init_function=dict) as exe:
        assert exe.submit(square, 3).task not in ids[0]  # type: ignore[attr-defined]


def test_resumed_script_submits_calls_without_a_readable_result_again(stage: Stage) -> None:
    def submit_all(exe: Executor) -> list[Any]:
        raised = exe.submit(divmod, 1, 0)
        return [raised, exe.submit(str, raised[0]), exe.submit(square, 2), exe.submit(square, 3), exe.submit(square, 4)]

    with open_session(stage.spool, resume=True) as exe:
        first = submit_all(exe)
        assert first[2].cancel()
    stage.work(tasks=4)
    for outcome in Path(stage.spool.layout.outgoing, "inbox").glob(f"{first[3].task}*"):
        outcome.unlink()
    with open_session(stage.spool, resume=True) as exe:
        second = submit_all(exe)
        assert [a.task == b.task for a, b in zip(first, second, strict=True)] == [False] * 4 + [True]
        assert second[4].result(LIMIT) == 16


def test_call_without_a_fingerprint_is_refused_with_the_argument_and_leaves_nothing(stage: Stage) -> None:
    with open_session(stage.spool, resume=True) as exe:
        with pytest.raises(BadRequest, match=r"Argument 0 of the call to .*square.* has no fingerprint"):
            exe.submit(square, threading.Lock())  # type: ignore[arg-type]
        assert exe.futures() == []
        known = Future()  # type: ignore[var-annotated]
        known.set_result(3)
        task = exe.submit(square, known).task  # type: ignore[attr-defined,arg-type]
    with open_session(stage.spool, resume=True) as exe:
        assert exe.submit(square, known).task == task  # type: ignore[attr-defined,arg-type]


def test_header_has_no_key_without_resume(stage: Stage) -> None:
    with open_session(stage.spool) as exe:
        exe.submit(square, 3)
    [task] = [path for path in Path(stage.spool.layout.ready).rglob("*") if path.is_file()]
    assert b'"key"' not in task.read_bytes()


# -- removal


def test_garbage_collection_keeps_results_of_a_named_session_for_the_full_time(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import os, signal, sys
from spoolpool import Executor
exe = Executor(spool=sys.argv[1], session=sys.argv[2] or None)
exe.submit(pow, 2, 3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    for session in ("inbox", ""):
        assert run_script(tmp_path / "script.py", script, stage.spool.path, session).returncode == -signal.SIGKILL
    stage.work(tasks=2)

    real = Spool.server_time

    def is_garbage(days: float) -> list[bool]:
        monkeypatch.setattr(Spool, "server_time", lambda spool: real(spool) + days * 86400)
        found = {
            each.path.split("/")[1] for each in garbage.find_garbage(stage.spool) if each.path.startswith("results/")
        }
        return ["inbox" in found, bool(found - {"inbox"})]

    assert [is_garbage(days) for days in (0.5, 2, 29, 31)] == [
        [False, False],
        [False, True],
        [False, True],
        [True, True],
    ]
    garbage.remove(stage.spool, garbage.find_garbage(stage.spool))
    left = [path.relative_to(stage.spool.path).parts[0] for path in Path(stage.spool.path).rglob("*") if path.is_file()]
    assert set(left) <= {"spool.json", "journal", "logs"}


# -- the commands


def spool_command(*words: object, answer: str | None = None) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["session", *map(str, words)], input=answer, prog_name="spool")


def test_commands_list_a_session_print_its_results_and_remove_it(stage: Stage) -> None:
    path = stage.spool.path
    assert spool_command("ls", path).stdout == ""
    with open_session(stage.spool) as exe:
        first = exe.submit(pow, 2, 3)
        exe.submit(divmod, 1, 0)
        exe.submit(list, range(1000))
        exe.submit(square, 3, resource_dict={"cores": 2})
        exe.submit(str, first)
        (shown,) = map(json.loads, spool_command("ls", path, "--json").stdout.splitlines())
        assert shown["submitter"] == {"host": hostname(), "pid": os.getpid()} and shown["state"] == "alive"
    stage.work(tasks=4)
    (shown,) = map(json.loads, spool_command("ls", path, "--json").stdout.splitlines())
    del shown["last"]
    assert shown == {"session": "inbox", "user": account_name(os.geteuid()), "submitter": None, "state": "ended"} | {
        "held": 0,
        "waiting": 1,
        "running": 0,
        "done": 3,
        "raised": 1,
        "lost": 0,
        "cancelled": 0,
        "failed": 0,
        "unread": 0,
    }
    lines = spool_command("results", path, "inbox").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["done", "raised", "done", "waiting", "done"]
    assert lines[1].endswith("divmod  ZeroDivisionError: integer division or modulo by zero")
    assert lines[2].endswith("list  [0, 1, 2, 3, 4, 5, ...]")
    records = [json.loads(line) for line in spool_command("results", path, "inbox", "--json").stdout.splitlines()]
    assert [each.get("value") for each in records] == [8, None, [*range(1000)], None, "8"]
    refused = spool_command("rm", path, "inbox", "--yes")
    assert (
        refused.exit_code == BadRequest.exit_code
        and "1 task(s) of the session inbox are queued or running" in refused.stderr
    )
    with open_session(stage.spool) as exe:
        assert exe.futures()[3].cancel()
    unconfirmed = spool_command("rm", path, "inbox")
    assert unconfirmed.exit_code == BadRequest.exit_code and "add --yes" in unconfirmed.stderr
    assert spool_command("rm", path, "inbox", "--yes").stdout == "The session inbox was removed.\n"
    assert spool_command("ls", path).stdout == ""
    assert spool_command("rm", path, "inbox", "--yes").exit_code == BadRequest.exit_code
    for word in ("results", "rm"):
        assert spool_command(word, path, "../tmp").exit_code == BadRequest.exit_code
    left = {each.relative_to(path).parts[0] for each in Path(path).rglob("*") if each.is_file()}
    assert left <= {"spool.json", "journal", "logs", "objects"}


def test_session_that_a_process_has_open_is_not_removed(stage: Stage) -> None:
    path = stage.spool.path
    with open_session(stage.spool) as exe:
        done = exe.submit(pow, 2, 3)
        stage.work(tasks=1)
        assert done.result(LIMIT) == 8
        refused = spool_command("rm", path, "inbox", "--yes")
        assert refused.exit_code == BadRequest.exit_code and f"open in process {os.getpid()} on" in refused.stderr
        assert len(exe.futures()) == 1 and sessions.session_state(stage.spool, "inbox") == "alive"
    entry = Path(stage.spool.layout.session("inbox~0123abcd"))
    info = sessions.SessionInfo(process=unknown_process(), user="somebody", keeps=True)
    entry.write_bytes(msgspec.json.encode(info))
    assert "on elsewhere" in spool_command("rm", path, "inbox", "--yes").stderr, "it may be alive there"
    old = stage.spool.server_time() - 1.01 * sessions.SILENCE
    os.utime(entry, (old, old))
    assert spool_command("rm", path, "inbox", "--yes").exit_code == 0


def test_removal_of_a_session_keeps_tasks_with_dependents(stage: Stage) -> None:
    path = stage.spool.path
    with open_session(stage.spool) as exe, Executor(spool=path, session=Session("other", detach=True)) as other:
        needed = exe.submit(pow, 2, 3)
        exe.submit(pow, 2, 4)
        other.submit(square, needed, resource_dict={"cores": 2})
        stage.work(tasks=2)
    shown = spool_command("rm", path, "inbox", "--yes")
    assert shown.exit_code == 1 and shown.stdout == "The session inbox was removed, except 1 task(s).\n"
    with open_session(stage.spool) as exe:
        assert [future.result(LIMIT) for future in exe.futures()] == [8]


def test_results_are_escaped_for_the_terminal(stage: Stage) -> None:
    with open_session(stage.spool) as exe:
        exe.submit(str, "\x1b[31mred")
        exe.submit(exec, "raise ValueError('\x1b[2J')")
    stage.work(tasks=2)
    shown = spool_command("results", stage.spool.path, "inbox").stdout
    assert "\x1b" not in shown and "[31mred" in shown


@as_root
def test_session_entry_of_another_account_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool.create(tmp_path / "shared", mode="group", group=str(os.getegid()), durability="none")
    spool.open_session("named")
    process = msgspec.to_builtins(dead_process())
    path = Path(spool.layout.session(sessions.entry_of("named", "12345678", keeps=True)))
    path.write_text(json.dumps({"process": process, "user": "u", "keeps": True}), encoding="utf-8")
    assert sessions.session_state(spool, "named") == "dead"
    os.chown(path, unused_id(), -1)
    assert sessions.session_state(spool, "named") == "unknown"
    assert f"{path.name} belongs to" in caplog.text


@as_root
def test_worker_is_shown_with_the_account_of_its_entry(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "shared", mode="group", group=str(os.getegid()), durability="none")
    worker = announce(spool, unknown_process())
    assert [info.user for info in read_workers(spool)] == [account_name(os.geteuid())]
    other = unused_id()
    os.chown(f"{spool.layout.worker(worker)}/info.json", other, -1)
    assert [info.user for info in read_workers(spool)] == [account_name(other)]


def test_outcomes_in_the_spool_are_delivered_before_futures_returns(stage: Stage) -> None:
    with open_session(stage.spool) as exe:
        for number in range(30):
            exe.submit(square, number)
        exe.detach()
    stage.work(tasks=30)
    with open_session(stage.spool) as exe:
        waits = exe.submit(square, 7)
        first = exe.futures()
        assert [each.done() for each in first] == [True] * 30 + [False]
        assert [each.result(0) for each in first[:30]] == [number**2 for number in range(30)]
        assert all(each.done() for each in exe.futures()[:30])
        waits.cancel()
