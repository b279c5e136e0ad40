"""Counts of tasks by their ends: all commands, the journal, the report and the executor agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import Executor, settings
from spoolpool.calls.run import failure_report
from spoolpool.cli.spool import main
from spoolpool.client import vanished
from spoolpool.errors import BadTaskFile, TaskVanished, WorkerLost
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, new_task_id, new_worker_id
from spoolpool.monitor.report.page import page
from spoolpool.monitor.report.summary import summarize
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.outcome_log import OutcomeLog
from spoolpool.protocol.spool import Spool
from spoolpool.worker.publish import outcome_parts
from tests.conftest import Workers
from tests.support import tasks
from tests.support.fake_worker import Clock, Stage
from tests.support.waiting import LIMIT, wait_until
from tests.unit.protocol.test_packs import append, claim

ONCE = {"max_attempts": 1}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A new spool, in which a submitter finds within seconds that a task has vanished."""
    return Spool.create(tmp_path / "spool", durability="none", lease=3.0, caches=0.5)


def run(*arguments: object) -> click.testing.Result:
    words = [str(each) for each in arguments]
    return click.testing.CliRunner().invoke(main, words, prog_name="spool", env={settings.ENV_SPOOL: None})


def counted(numbers: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers that are not zero."""
    return {name: number for name, number in sorted(numbers.items()) if number}


def in_text(text: str) -> dict[str, int]:
    """Return the numbers of a text such as ``3 done, 1 raised``."""
    words = [each.split(" ", 1) for each in text.strip().split(", ")]
    return counted({name: int(number) for number, name in words})


def end_of(future: Future[Any]) -> str:
    """Return how a future ended."""
    if future.cancelled():
        return "cancelled"
    error = future.exception(LIMIT)
    ends = {type(None): "done", WorkerLost: "lost", TaskVanished: "vanished", BadTaskFile: "failed"}
    return ends.get(type(error), "raised")


def file_of(spool: Spool, future: Future[Any]) -> Path:
    [found] = Path(spool.layout.ready).glob(f"*/*/{future.task}.*")  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("session", ["study", None], ids=["kept", "collected"])
def test_all_counts_of_tasks_agree_for_every_kind_of_end(
    spool: Spool,
    worker: Workers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    soon: None,
    session: str | None,
) -> None:
    monkeypatch.setattr(vanished, "_LEAST_SECONDS", 0.2)
    end, go = tmp_path / "end", tmp_path / "go"
    with Executor(spool=spool.path, session=session) as executor:
        submit = executor.submit
        ends: dict[str, list[Future[Any]]] = {state: [] for state in ("done", "raised", "lost", "cancelled")}
        ends |= {"failed": [submit(pow, 2, 2)], "vanished": [submit(pow, 2, 3)]}
        file_of(spool, ends["failed"][0]).write_bytes(b"a file of another version")
        file_of(spool, ends["vanished"][0]).unlink()
        ends["cancelled"].append(submit(pow, 2, 4))
        assert ends["cancelled"][0].cancel()
        commanded = submit(pow, 2, 5)
        assert run("cancel", "--yes", spool.path, commanded.task).exit_code == 0  # type: ignore[attr-defined]
        ends["cancelled"].append(commanded)
        # given back by a group that is to end, or recovered after the last signal, and run by the next
        released = submit(tasks.mark_and_wait, tmp_path / "begun", end)
        ends["done"].append(released)
        first = worker(spool, "--launcher", "local")
        wait_until((tmp_path / "begun").exists, "the call runs")
        worker.may_die(first)  # a signal may come after its last handler
        wait_until(lambda: first.poll() is not None or first.terminate(), "it ends at the second signal at once")
        end.touch()
        worker(spool, "--launcher", "local", "--grace", 0.2)
        ends["done"] += [submit(pow, 2, number) for number in range(5)]
        ends["done"].append(
            submit(tasks.raise_at_first, tmp_path / "trace", resource_dict={"retries": 1, "retry_delay": 0})
        )
        failing = submit(tasks.fail, tasks.OwnError("no"))
        ends["raised"] += [failing, submit(pow, failing, 2), submit(tasks.lock)]
        ends["raised"].append(submit(tasks.wait_in_vain, tmp_path / "vain", resource_dict={"time_limit": 0.2}))
        ends["raised"].append(submit(tasks.wait_for, tmp_path / "never", resource_dict={"time_limit": 0.2}))
        ends["lost"].append(submit(tasks.die, "SIGSEGV", tmp_path / "dead", resource_dict=ONCE))
        running = submit(tasks.mark_and_wait, tmp_path / "running", tmp_path / "never")
        wait_until((tmp_path / "running").exists, "the call runs")
        assert executor.cancel(running, running=True)
        ends["cancelled"].append(running)
        for state, futures in ends.items():
            for future in futures:
                wait_until(future.done, f"a task ends as {state}")
                assert end_of(future) == state
        # lost, and right after a retry; its future keeps its error
        retried = submit(tasks.die_unless, go, resource_dict=ONCE)
        assert isinstance(retried.exception(LIMIT), WorkerLost)
        go.touch()
        expected = {state: len(futures) for state, futures in ends.items()}
        expected["lost"] += 1
        assert counted(executor.counts()) == counted(expected)
        wait_until(lambda: run("retry", spool.path, retried.task).exit_code == 0, "the lost task is retried")  # type: ignore[attr-defined]
        expected["lost"] -= 1
        expected["done"] += 1
        wait_until(
            lambda: run("wait", spool.path, retried.task, "--timeout", LIMIT).exit_code == 0,  # type: ignore[attr-defined]
            "the retried task returns",
        )
        # the outcome of a worker that was taken for dead counts as no end
        dropped = Journal(spool, new_worker_id())
        dropped.write("task", task=ends["done"][1].task, kind="error", published=False)  # type: ignore[attr-defined]
        dropped.close()
        executor.detach()

    def journal_is_complete() -> bool:
        return counted(json.loads(run("journal", spool.path, "--count", "--json").stdout)) == counted(expected)

    wait_until(journal_is_complete, "the workers have written their journals")
    summary = summarize(spool)
    assert (counted(summary.ends), summary.unknown, dict(summary.pending)) == (counted(expected), 0, {})
    recovered = {event.task for event in summary.last_recoveries} - {released.task}  # type: ignore[attr-defined]
    assert recovered == {ends["lost"][0].task, retried.task}  # type: ignore[attr-defined]
    assert run("report", spool.path, "-o", tmp_path / "report.html").exit_code == 0
    for state, number in expected.items():
        assert f"<b>{number}</b>{state}</div>" in page(summary)
    assert in_text(run("journal", spool.path, "--count").stdout) == counted(expected)
    present = {state: number for state, number in expected.items() if state != "vanished"}
    if session is None:  # collected, except for the retried task, whose future was done
        present = {"done": 1, "lost": expected["lost"], "failed": expected["failed"]}
    found = json.loads(run("status", spool.path, "--json").stdout)
    assert counted(found["tasks"]) == counted(present)
    assert in_text(run("status", spool.path).stdout.split("Tasks    ")[1].splitlines()[0]) == counted(present)
    listed = [json.loads(line) for line in run("ls", spool.path, "--json").stdout.splitlines()]
    assert counted(Counter(each["state"] for each in listed)) == counted(present)
    assert in_text(run("wait", spool.path).stderr) == counted(present)
    sessions = [json.loads(line) for line in run("session", "ls", spool.path, "--json").stdout.splitlines()]
    total = Counter({state: sum(each[state] for each in sessions) for state in found["tasks"]})
    assert counted(total) == counted({**present, "failed": 0}), "an unreadable file names no session"


def test_all_counts_of_the_calls_of_a_pack_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    spool, ids = stage.spool, [new_task_id() for _ in range(6)]
    header = stage.submit_pack(ids=ids)
    assert counts_of(spool) == {"waiting": 6}
    first = claim(stage, header, dead=True)
    append(stage, header, first, ["a"])
    add_outcome(stage, header, first, ValueError("no"))
    assert counts_of(spool) == {"done": 1, "raised": 1, "running": 1, "waiting": 3}
    states = {each["task"]: each["state"] for each in listed(spool)}
    assert states == dict(zip(ids, ["done", "raised", "running", "waiting", "waiting", "waiting"], strict=True))
    for state in ("done", "raised", "running", "waiting"):
        chosen = [each["task"] for each in listed(spool, "--state", state)]
        assert chosen == [task for task in ids if states[task] == state]
    assert run("result", spool.path, ids[0]).stdout == "a\n"
    assert "ValueError: no" in run("traceback", spool.path, ids[1]).stdout
    shown = run("show", spool.path, ids[2]).stdout
    assert f"Task       {ids[2]}\nState      running" in shown
    assert f"Pack       {header.task}: this is call 2 of" in shown
    assert run("cancel", "--yes", spool.path, ids[4]).exit_code == 0
    assert "cancellation requested" in run("show", spool.path, ids[4]).stdout
    assert "cancellation requested" not in run("show", spool.path, ids[3]).stdout
    stage.recover(rounds=1)
    assert counts_of(spool, unread=2) == {"done": 1, "raised": 1, "waiting": 4}
    stage.work()
    assert stage.runs() == {f"{ids[number]}+{number}": 1 for number in (2, 3, 5)}
    ended = {"cancelled": 1, "done": 4, "raised": 1}
    assert counts_of(spool) == ended
    assert run("cancel", "--yes", spool.path, ids[0]).exit_code != 0, "it has ended"
    assert in_text(run("wait", spool.path, ids[1], ids[2]).stderr) == {"done": 1, "raised": 1}
    for command in ("rm", "retry"):
        refused = run(command, spool.path, ids[1], *(["--yes"] if command == "rm" else []))
        assert refused.exit_code == 1 and f"the pack {header.task} share its file" in refused.stderr
    assert run("rm", "--yes", spool.path, header.task).exit_code == 0
    assert listed(spool) == []
    assert counted(json.loads(run("journal", spool.path, "--count", "--json").stdout)) == ended


def listed(spool: Spool, *options: str) -> list[dict[str, Any]]:
    """Return the tasks that ``spool ls`` lists."""
    return [json.loads(line) for line in run("ls", spool.path, "--json", *options).stdout.splitlines()]


def counts_of(spool: Spool, unread: int = 0) -> dict[str, int]:
    """Return the number of tasks by state, which all commands and the journals tell.

    So many ended ones may be counted as unread by commands that open no file of a waiting task.
    """
    counts = counted(Counter(each["state"] for each in listed(spool)))
    status = counted(json.loads(run("status", spool.path, "--json").stdout)["tasks"])
    [session] = [json.loads(line) for line in run("session", "ls", spool.path, "--json").stdout.splitlines()]
    if unread:
        waiting = {"waiting": counts["waiting"]}
        assert (
            status == {**waiting, "unread": unread} and counted({state: session[state] for state in status}) == status
        )
    else:
        assert status == counts and {state: session[state] for state in counts} == counts
    summary = summarize(spool)
    assert counted(summary.ends + summary.pending) == counts
    return counts


def add_outcome(stage: Stage, header: TaskHeader, mine: TaskFile, error: Exception) -> None:
    """Append an error to the log of a claim."""
    log = OutcomeLog(stage.spool, stage.session, mine, None)
    with log:
        log.resume()
        log.append(outcome_parts(header, mine, failure_report(error, 0), 1, 0.0, call=log.done))
