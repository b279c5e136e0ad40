"""Interruption of running calls, by a time limit and by cancellation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor
from spoolpool.errors import TaskCancelled, TaskTimeout
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from tests.conftest import Workers
from tests.support import tasks
from tests.support.waiting import LIMIT, wait_until


def sleep_and_record(started: str, ended: str) -> None:
    """Sleep for longer than any test, and write the type of the exception that ends the sleep."""
    try:
        Path(started).touch()
        time.sleep(600)
    except BaseException as error:
        Path(ended).write_text(type(error).__name__)
        raise


def return_partial_result() -> str:
    """Return a partial result when the time limit is reached."""
    try:
        time.sleep(600)
    except TaskTimeout:
        return "half"
    return "whole"


def sleep_on_each_rank(directory: str) -> None:
    """Call :func:`sleep_and_record` on each rank of a group."""
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.Get_rank()
    sleep_and_record(f"{directory}/started-{rank}", f"{directory}/ended-{rank}")


def ignore_interruption() -> None:
    """Sleep and ignore all exceptions."""
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(600)


def is_written(path: Path) -> bool:
    return path.exists() and bool(path.read_text() or not path.name.startswith("ended"))


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(max_workers=1) as made:
        yield made


class TestLimit:
    def test_a_call_over_its_time_limit_raises_and_reports_its_position(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        before = executor.submit(tasks.pid).result(LIMIT)
        future = executor.submit(
            sleep_and_record, str(tmp_path / "s"), str(tmp_path / "ended"), resource_dict={"time_limit": 0.3}
        )
        with pytest.raises(TaskTimeout, match=r"time_limit of 0\.3 s") as found:
            future.result(LIMIT)
        assert "time.sleep(600)" in str(found.value.__cause__)
        assert (tmp_path / "ended").read_text() == "TaskTimeout"
        assert executor.submit(tasks.pid).result(LIMIT) != before, "its group was replaced"

    def test_a_call_within_its_time_limit_is_not_interrupted(self, executor: Executor) -> None:
        before = executor.submit(tasks.pid).result(LIMIT)
        assert executor.submit(pow, 2, 3, resource_dict={"time_limit": 60}).result(LIMIT) == 8
        assert executor.submit(tasks.pid).result(LIMIT) == before

    def test_a_function_may_catch_the_timeout_and_return_a_result(self, executor: Executor) -> None:
        assert executor.submit(return_partial_result, resource_dict={"time_limit": 0.2}).result(LIMIT) == "half"

    def test_a_group_without_a_supervisor_continues_after_a_timeout(
        self, spool: Spool, worker: Workers, tmp_path: Path
    ) -> None:
        group = worker(spool)
        with Executor(spool=spool.path) as attached:
            paths = str(tmp_path / "s"), str(tmp_path / "ended")
            with pytest.raises(TaskTimeout):
                attached.submit(sleep_and_record, *paths, resource_dict={"time_limit": 0.2}).result(LIMIT)
            assert attached.submit(tasks.pid).result(LIMIT) == group.pid

    def test_a_call_that_ignores_its_interruption_is_ended_with_its_group(self, spool: Spool, worker: Workers) -> None:
        worker(spool, "--launcher", "local", "--grace", "0.2")
        with Executor(spool=spool.path) as attached:
            before = attached.submit(tasks.pid).result(LIMIT)
            future = attached.submit(ignore_interruption, resource_dict={"time_limit": 0.2})
            with pytest.raises(TaskTimeout) as found:
                future.result(LIMIT)
            assert "in ignore_interruption" in str(found.value.__cause__)
            assert attached.submit(tasks.pid).result(LIMIT) != before

    @pytest.mark.parametrize("wrong", [-1, "1:00", float("inf"), None])
    def test_an_invalid_time_limit_is_refused(self, executor: Executor, wrong: Any) -> None:
        with pytest.raises(ValueError, match="time_limit"):
            executor.submit(pow, 2, 3, resource_dict={"time_limit": wrong})


class TestCancel:
    def test_a_running_task_is_interrupted_and_its_future_cancelled(
        self, spool: Spool, worker: Workers, tmp_path: Path
    ) -> None:
        worker(spool)
        with Executor(spool=spool.path) as attached:
            future = attached.submit(sleep_and_record, str(tmp_path / "s"), str(tmp_path / "ended"))
            wait_until(lambda: is_written(tmp_path / "s"), "it runs")
            assert not future.cancel()
            assert attached.cancel(future, running=True)
            with pytest.raises(CancelledError):
                future.result(LIMIT)
            assert future.cancelled() or isinstance(future.exception(), CancelledError)
            assert (tmp_path / "ended").read_text() == TaskCancelled.__name__
            assert attached.submit(pow, 2, 3).result(LIMIT) == 8
        assert files.list_names(spool.layout.cancel) == []

    def test_a_queued_task_is_cancelled_and_a_finished_task_is_not(self, spool: Spool, worker: Workers) -> None:
        with Executor(spool=spool.path) as attached:
            waiting = attached.submit(pow, 2, 3)
            assert attached.cancel(waiting, running=True) and waiting.cancelled()
            worker(spool)
            ended = attached.submit(pow, 2, 3)
            assert ended.result(LIMIT) == 8
            assert not attached.cancel(ended, running=True)
        assert files.list_names(spool.layout.cancel) == []

    def test_a_cancelled_task_is_not_retried(self, spool: Spool, worker: Workers, tmp_path: Path) -> None:
        worker(spool)
        with Executor(spool=spool.path, resource_dict={"retries": 3, "retry_delay": 0}) as attached:
            future = attached.submit(sleep_and_record, str(tmp_path / "s"), str(tmp_path / "ended"))
            wait_until(lambda: is_written(tmp_path / "s"), "it runs")
            attached.cancel(future, running=True)
            with pytest.raises(CancelledError):
                future.result(LIMIT)


@pytest.mark.mpi
class TestRanks:
    def test_all_ranks_are_interrupted_and_the_group_is_replaced(self, tmp_path: Path) -> None:
        with Executor(max_workers=1, cores_per_worker=2, oversubscribe=True) as executor:
            before = executor.submit(tasks.pid).result(LIMIT)
            future = executor.submit(sleep_on_each_rank, str(tmp_path))
            wait_until(lambda: all(is_written(tmp_path / f"started-{rank}") for rank in (0, 1)), "both ranks run")
            assert executor.cancel(future, running=True)
            with pytest.raises(CancelledError):
                future.result(LIMIT)
            assert [(tmp_path / f"ended-{rank}").read_text() for rank in (0, 1)] == [TaskCancelled.__name__] * 2
            limited = executor.submit(sleep_on_each_rank, str(tmp_path), resource_dict={"time_limit": 0.3})
            with pytest.raises(TaskTimeout):
                limited.result(LIMIT)
            assert [(tmp_path / f"ended-{rank}").read_text() for rank in (0, 1)] == [TaskTimeout.__name__] * 2
            assert not set(executor.submit(tasks.pid).result(LIMIT)) & set(before)


class TestBatchSystem:
    def test_a_preempted_worker_releases_a_task_that_does_not_end_in_time(
        self, spool: Spool, worker: Workers, tmp_path: Path
    ) -> None:
        """A preemption signals the ranks alone, so that the rank itself must release the task, without an attempt."""
        job = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_CPUS_PER_NODE": "1"}
        group = worker(spool, "--drain", "0.2", **job)
        with Executor(spool=spool.path) as attached:
            future = attached.submit(sleep_and_record, str(tmp_path / "s"), str(tmp_path / "ended"))
            wait_until(lambda: is_written(tmp_path / "s"), "it runs")
            group.terminate()
            assert group.wait(LIMIT) == 0
            names = files.list_names(spool.layout.bucket(future.header.lane, future.header.bucket))
            assert [name.startswith(f"{future.task}.000002.01") for name in names] == [True], "the same attempt"
            assert files.list_names(spool.layout.workers) == []
            assert attached.cancel(future) is False, "it is queued under another claim number"
            worker(spool)
            wait_until(lambda: bool(files.list_names(spool.layout.claimed)), "it runs again")
            assert attached.cancel(future, running=True)
