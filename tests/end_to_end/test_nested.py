"""Tasks that submit subtasks to their own spool and wait for them, also if no group is free."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Spool, Submission, as_completed, current_task, wait
from spoolpool.maintenance.check import check
from tests.conftest import Workers
from tests.support import tasks
from tests.support.waiting import wait_until


def depth(levels: int) -> list[str]:
    """Return the ids of a chain of subtasks, each submitted by the one before."""
    if not levels:
        return [current_task().id]
    with Executor(spool=current_task().spool) as inner:
        return [current_task().id, *inner.submit(depth, levels - 1).result()]


def tree(levels: int) -> int:
    """Submit two tasks of the next level, and a task that depends on both."""
    if not levels:
        return 1
    with Executor(spool=current_task().spool) as inner:
        both = [inner.submit(tree, levels - 1) for _ in range(2)]
        return int(inner.submit(sum, both).result())


def wait_in_each_way(count: int) -> list[Any]:
    """Wait for subtasks in each way."""
    with Executor(spool=current_task().spool) as inner:
        given = list(inner.map(abs, range(-count, 0)))
        some = [inner.submit(abs, -number) for number in range(count)]
        done = {future.result() for future in as_completed(some)}
        pair = {"a": inner.submit(dict, b=[1, 2])}
        wait(pair.values())
        part = inner.submit(dict, c=3)["c"].result()
        error = inner.submit(tasks.fail, tasks.OwnError("inner")).exception()
        left = [inner.submit(tasks.pid) for _ in range(count)]  # not awaited here: the end of the block waits for them
    return [given, done, pair["a"].result(), part, repr(error), all(future.done() for future in left)]


def raise_inner() -> None:
    """Raise the exception of a subtask."""
    with Executor(spool=current_task().spool) as inner:
        inner.submit(tasks.fail, tasks.OwnError("inner")).result()


def leave_unawaited(path: str) -> str:
    """Submit a subtask and do not wait for it."""
    inner = Executor(spool=current_task().spool)
    inner.submit(tasks.mark, path)
    return "left"


def wait_with_timeout() -> str:
    """Wait with a timeout for a subtask that no group serves."""
    with Executor(spool=current_task().spool, submission=Submission(queue="nobody")) as inner:
        future = inner.submit(abs, -1)
        try:
            future.result(timeout=0.2)
        except TimeoutError:
            future.cancel()
            return "timeout"
    return "done"


def wait_in_a_thread() -> list[int]:
    """Wait in another thread of a task for a subtask that only the main thread can run."""
    found: list[int] = []
    with Executor(spool=current_task().spool) as inner:
        future = inner.submit(abs, -7)
        thread = threading.Thread(target=lambda: found.append(future.result()))
        thread.start()
        future.result()
        thread.join()
    return found


def wait_for_subtask(started: str, end: str) -> int:
    """Wait for a subtask that ends once a file exists."""
    with Executor(spool=current_task().spool) as inner:
        return int(inner.submit(tasks.mark_and_wait, started, end, 5).result())


@pytest.fixture
def alone(spool: Spool, worker: Workers) -> Spool:
    """Spool that one group serves."""
    worker(spool)
    return spool


def test_one_group_runs_subtasks_at_any_depth(alone: Spool, tmp_path: Path) -> None:
    with Executor(spool=alone.path) as exe:
        ids = exe.submit(depth, 3).result()
        assert len(set(ids)) == 4
        assert [future.result() for future in [exe.submit(tree, 3) for _ in range(2)]] == [8, 8]
        assert exe.submit(wait_in_each_way, 4).result() == [
            [4, 3, 2, 1],
            {0, 1, 2, 3},
            {"b": [1, 2]},
            3,
            "OwnError('inner')",
            True,
        ]
        assert isinstance(exe.submit(raise_inner).exception(), tasks.OwnError)
        assert exe.submit(leave_unawaited, str(tmp_path / "ran")).result() == "left"
        wait_until((tmp_path / "ran").exists, "the subtask that was left ran")
        assert exe.submit(wait_with_timeout).result() == "timeout"
        assert exe.submit(wait_in_a_thread).result() == [7]
        # the working directory of the task is restored after a subtask
        assert exe.submit(tasks.get_cwd).result() == os.getcwd()
    wait_until(lambda: not check(alone), "the spool is consistent")


def test_more_waiting_tasks_than_groups_are_completed(spool: Spool, worker: Workers) -> None:
    worker(spool, "--launcher", "local", "--groups", "2", await_groups=2)
    with Executor(spool=spool.path) as exe:
        assert {future.result() for future in [exe.submit(tree, 2) for _ in range(6)]} == {4}


def test_death_of_a_group_in_a_subtask_loses_no_task(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    started, end = tmp_path / "started", tmp_path / "end"
    first = worker(spool)
    worker.may_die(first)
    with Executor(spool=spool.path) as exe:
        future = exe.submit(wait_for_subtask, str(started), str(end))
        wait_until(started.exists, "the subtask runs")
        assert len(os.listdir(spool.layout.claimed)) == 2
        first.kill()
        first.wait()
        end.touch()
        worker(spool, await_groups=0)  # the entry of the dead group may be removed meanwhile
        assert future.result() == 5


def test_group_that_is_to_end_finishes_the_subtasks_of_its_task(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    started, end = tmp_path / "started", tmp_path / "end"
    process = worker(spool)
    with Executor(spool=spool.path) as exe:
        future = exe.submit(wait_for_subtask, str(started), str(end))
        wait_until(started.exists, "the subtask runs")
        process.terminate()
        end.touch()
        assert future.result() == 5
    assert process.wait(60) == 0
