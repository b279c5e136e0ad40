"""Executors in coroutines, joblib, dask, and pickled workflows; requests for package versions."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from spoolpool import Executor
from spoolpool.format.names import parse_task_file
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from tests.conftest import Workers
from tests.support import tasks
from tests.support.waiting import LIMIT, wait_until

ENDS_A_COROUTINE = [StopIteration, tasks.EndOfData, concurrent.futures.CancelledError, asyncio.CancelledError]
OTHERS = [StopAsyncIteration, GeneratorExit, KeyboardInterrupt, SystemExit, tasks.AbruptError]


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(max_workers=2) as shared:
        yield shared


class TestCoroutines:
    def test_awaited_calls_run_concurrently_and_give_values_and_exceptions(self, executor: Executor) -> None:
        async def compute() -> Any:
            awaited = [executor.asubmit(pow, 2, number) for number in range(5)]
            with pytest.raises(ZeroDivisionError):
                await executor.asubmit(divmod, 1, 0)
            return await asyncio.gather(*awaited)

        assert asyncio.run(asyncio.wait_for(compute(), LIMIT)) == [1, 2, 4, 8, 16]

    def test_cancelling_a_coroutine_cancels_its_task(self, spool: Spool) -> None:
        with Executor(spool=spool.path) as attached:

            async def give_up() -> None:
                waiting = asyncio.ensure_future(attached.asubmit(pow, 2, 3))
                assert len(attached) == 1
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

            asyncio.run(give_up())
            wait_until(lambda: len(attached) == 0, "the task is cancelled")

    @pytest.mark.parametrize("kind", ENDS_A_COROUTINE, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
    def test_an_exception_that_would_end_the_coroutine_is_the_cause_of_another(
        self, executor: Executor, kind: type[BaseException]
    ) -> None:
        async def compute() -> RuntimeError:
            with pytest.raises(RuntimeError, match="of the function") as raised:
                await executor.asubmit(tasks.raise_new, kind, "of the function")
            return raised.value

        error = asyncio.run(asyncio.wait_for(compute(), LIMIT))
        assert type(error.__cause__) is kind

    @pytest.mark.parametrize(
        "kind", [*ENDS_A_COROUTINE, *OTHERS], ids=lambda kind: f"{kind.__module__}.{kind.__name__}"
    )
    def test_an_exception_of_any_kind_reaches_the_caller_with_its_type(
        self, executor: Executor, kind: type[BaseException]
    ) -> None:
        async def compute() -> BaseException | None:
            try:
                await executor.asubmit(tasks.raise_new, kind, "of the function")
            except BaseException as error:  # noqa: BLE001  it is the result
                return error
            return None

        future = executor.submit(tasks.raise_new, kind, "of the function")
        with pytest.raises(kind, match="of the function"):
            future.result(LIMIT)
        assert type(future.exception()) is kind and not future.cancelled()
        if kind in OTHERS:
            assert type(asyncio.run(asyncio.wait_for(compute(), LIMIT))) is kind

    def test_call_outside_of_an_event_loop_is_refused(self, spool: Spool) -> None:
        with Executor(spool=spool.path) as attached:
            with pytest.raises(RuntimeError):
                attached.asubmit(pow, 2, 3)
            assert len(attached) == 0


class TestJoblib:
    @pytest.fixture
    def joblib(self) -> Any:
        import joblib

        import spoolpool.joblib  # noqa: F401  the import registers the backend

        return joblib

    def test_parallel_runs_on_the_groups_of_a_spool(self, joblib: Any, spool: Spool, worker: Workers) -> None:
        group = worker(spool)
        with joblib.parallel_config("spoolpool", spool=spool.path):
            assert joblib.Parallel()(joblib.delayed(pow)(2, number) for number in range(50)) == [
                2**number for number in range(50)
            ]
            assert joblib.Parallel(n_jobs=2)([joblib.delayed(tasks.pid)()]) == [group.pid]
            with pytest.raises(ValueError, match="on purpose"):
                joblib.Parallel()([joblib.delayed(tasks.fail)(ValueError("on purpose"))])

    def test_parallel_packs_short_calls(self, joblib: Any, spool: Spool, worker: Workers) -> None:
        worker(spool)
        with joblib.parallel_config("spoolpool", spool=spool.path):
            joblib.Parallel()(joblib.delayed(abs)(number) for number in range(2000))
        lines = [
            line for name in files.list_names(spool.layout.journal) for line in _lines(f"{spool.layout.journal}/{name}")
        ]
        assert sum(b'"event":"task"' in line for line in lines) < 2000

    def test_backend_without_a_spool_starts_groups_of_its_own(self, joblib: Any) -> None:
        with joblib.parallel_config("spoolpool", max_workers=2):
            found = joblib.Parallel(return_as="generator")(joblib.delayed(pow)(3, number) for number in range(6))
            assert list(found) == [1, 3, 9, 27, 81, 243]


def _lines(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        return file.readlines()


class TestDask:
    def test_executor_as_scheduler_computes_a_graph(self, executor: Executor) -> None:
        import dask

        with dask.config.set(scheduler=executor):
            increased = [dask.delayed(lambda x: x + 1)(number) for number in range(6)]
            total = dask.delayed(sum)(increased)
            where = dask.delayed(tasks.pid)()
            assert dask.compute(total, timeout=LIMIT)[0] == 21
            assert dask.compute(where)[0] != tasks.pid()


class Node:
    """Part of a workflow whose own method is submitted."""

    def __init__(self, value: int) -> None:
        self.value = value

    def run(self, other: int) -> Node:
        self.value += other
        return self


class TestWorkflows:
    def test_executor_is_created_from_pickled_parameters(self, spool: Spool, worker: Workers) -> None:
        """A node of pyiron_workflow keeps the class and its arguments, and creates the executor when it runs."""
        worker(spool)
        node = pickle.loads(pickle.dumps((Executor, (), {"spool": spool.path, "resource_dict": {"priority": 3}})))
        kind, args, kwargs = node
        with kind(*args, **kwargs) as made:
            future = made.submit(Node(5).run, 3)
            assert future.result(LIMIT).value == 8
            assert future.header.task.startswith("496-")  # with the pickled priority


class TestPackages:
    def test_task_runs_if_the_group_has_the_same_package_versions(self, spool: Spool, worker: Workers) -> None:
        worker(spool)
        with Executor(spool=spool.path, resource_dict={"packages": ["CloudPickle", "numpy"]}) as exe:
            future = exe.submit(pow, 2, 3)
            assert "+cloudpickle==" in future.header.lane and "+numpy==" in future.header.lane
            assert future.result(LIMIT) == 8

    def test_group_without_the_packages_leaves_the_task_and_reports_its_versions(
        self, spool: Spool, worker: Workers
    ) -> None:
        worker(spool)
        with Executor(spool=spool.path) as exe:
            other = exe.submit(pow, 2, 3, resource_dict={"packages": ["numpy==0.1"]})
            missing = exe.submit(pow, 2, 3, resource_dict={"packages": ["no.such_package==1.0+local"]})
            assert exe.submit(pow, 2, 4).result(LIMIT) == 16
            command = [sys.executable, "-m", "spoolpool.cli.spool", "status", spool.path]

            def status() -> str:
                return subprocess.run(command, capture_output=True, text=True, check=True).stdout

            wait_until(
                lambda: "no-such-package is not installed" in " ".join(status().split()),
                "the status names the missing package",
                LIMIT,
            )
            assert "numpy==0.1 wanted, numpy" in " ".join(status().split())
            assert other.cancel() and missing.cancel()

    def test_entry_and_reports_of_a_group_are_removed_at_its_end(self, spool: Spool, worker: Workers) -> None:
        group = worker(spool)
        with Executor(spool=spool.path) as exe:
            future = exe.submit(pow, 2, 3, resource_dict={"packages": ["numpy==0.1"]})
            entries = spool.layout.workers
            wait_until(
                lambda: any(
                    "lacks" in name for at in files.list_names(entries) for name in files.list_names(f"{entries}/{at}")
                ),
                "the group reports the missing package",
            )
            group.terminate()
            group.wait(LIMIT)
            assert files.list_names(entries) == []
            assert future.cancel()

    def test_package_that_is_not_installed_needs_a_version(self, spool: Spool) -> None:
        with Executor(spool=spool.path) as exe, pytest.raises(ValueError, match="no-such-package"):
            exe.submit(pow, 2, 3, resource_dict={"packages": ["no-such-package"]})
        assert not [name for name in files.list_names(spool.layout.ready) if parse_task_file(name)]
