"""A task may submit to the spool that it came from and wait for it, also where no group is free."""

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
    """The tasks from this one to the innermost one, each submitted by the one before it."""
    if not levels:
        return [current_task().id]
    with Executor(spool=current_task().spool) as inner:
        return [current_task().id, *inner.submit(depth, levels - 1).result()]


def tree(levels: int) -> int:
    """Two tasks of the next level, and one that needs both."""
    if not levels:
        return 1
    with Executor(spool=current_task().spool) as inner:
        both = [inner.submit(tree, levels - 1) for _ in range(2)]
        return int(inner.submit(sum, both).result())


def every_way(count: int) -> list[Any]:
    """All the ways to wait."""
    with Executor(spool=current_task().spool) as inner:
        given = list(inner.map(abs, range(-count, 0)))
        some = [inner.submit(abs, -number) for number in range(count)]
        done = {future.result() for future in as_completed(some)}
        pair = {"a": inner.submit(dict, b=[1, 2])}
        wait(pair.values())
        part = inner.submit(dict, c=3)["c"].result()
        error = inner.submit(tasks.fail, tasks.OwnError("inner")).exception()
        left = [inner.submit(tasks.pid) for _ in range(count)]  # the end of the block waits
    return [given, done, pair["a"].result(), part, repr(error), all(future.done() for future in left)]


def raise_inner() -> None:
    """An exception of an inner task that nobody catches."""
    with Executor(spool=current_task().spool) as inner:
        inner.submit(tasks.fail, tasks.OwnError("inner")).result()


def leave_unawaited(path: str) -> str:
    """Submit and do not wait."""
    inner = Executor(spool=current_task().spool)
    inner.submit(tasks.mark, path)
    return "left"


def too_soon() -> str:
    """A wait with a limit, for what cannot be had."""
    with Executor(spool=current_task().spool, submission=Submission(queue="nobody")) as inner:
        future = inner.submit(abs, -1)
        try:
            future.result(timeout=0.2)
        except TimeoutError:
            future.cancel()
            return "too soon"
    return "done"


def from_a_thread() -> list[int]:
    """Another thread of a task waits for what its main thread runs, or nobody would."""
    found: list[int] = []
    with Executor(spool=current_task().spool) as inner:
        future = inner.submit(abs, -7)
        thread = threading.Thread(target=lambda: found.append(future.result()))
        thread.start()
        future.result()
        thread.join()
    return found


def sit(started: str, end: str) -> int:
    """Wait inside for what another process ends."""
    with Executor(spool=current_task().spool) as inner:
        return int(inner.submit(tasks.mark_and_wait, started, end, 5).result())


@pytest.fixture
def alone(spool: Spool, worker: Workers) -> Spool:
    """A spool that one group serves."""
    worker(spool)
    return spool


def test_with_one_group_tasks_wait_for_tasks_that_wait_for_tasks(alone: Spool, tmp_path: Path) -> None:
    with Executor(spool=alone.path) as exe:
        ids = exe.submit(depth, 3).result()
        assert len(set(ids)) == 4
        assert [future.result() for future in [exe.submit(tree, 3) for _ in range(2)]] == [8, 8]
        assert exe.submit(every_way, 4).result() == [
            [4, 3, 2, 1],
            {0, 1, 2, 3},
            {"b": [1, 2]},
            3,
            "OwnError('inner')",
            True,
        ]
        assert isinstance(exe.submit(raise_inner).exception(), tasks.OwnError)
        assert exe.submit(leave_unawaited, str(tmp_path / "ran")).result() == "left"
        wait_until((tmp_path / "ran").exists, "what was left ran")
        assert exe.submit(too_soon).result() == "too soon"
        assert exe.submit(from_a_thread).result() == [7]
        # the working directory is the task's own again after an inner one
        assert exe.submit(tasks.get_cwd).result() == os.getcwd()
    wait_until(lambda: not check(alone), "nothing is left that should not be there")


def test_more_tasks_that_wait_than_groups(spool: Spool, worker: Workers) -> None:
    worker(spool, "--launcher", "local", "--groups", "2", await_groups=2)
    with Executor(spool=spool.path) as exe:
        assert {future.result() for future in [exe.submit(tree, 2) for _ in range(6)]} == {4}


def test_a_group_that_dies_while_it_runs_an_inner_task_loses_neither(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    started, end = tmp_path / "started", tmp_path / "end"
    first = worker(spool)
    worker.may_die(first)
    with Executor(spool=spool.path) as exe:
        future = exe.submit(sit, str(started), str(end))
        wait_until(started.exists, "the inner task runs")
        assert len(os.listdir(spool.layout.claimed)) == 2
        first.kill()
        first.wait()
        end.touch()
        worker(spool, await_groups=0)  # the entry of the dead one goes meanwhile
        assert future.result() == 5


def test_a_group_that_is_told_to_end_finishes_what_its_task_waits_for(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    started, end = tmp_path / "started", tmp_path / "end"
    process = worker(spool)
    with Executor(spool=spool.path) as exe:
        future = exe.submit(sit, str(started), str(end))
        wait_until(started.exists, "the inner task runs")
        process.terminate()
        end.touch()
        assert future.result() == 5
    assert process.wait(60) == 0
