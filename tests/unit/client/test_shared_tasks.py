"""Calls that share a task, one of which ends its worker: every other call has its value.

Packs (``Submission(pack=True)``) and chunks of ``map`` are taken apart by the worker of the next attempt, which runs
each call in a child process; where that does not help, by the submitter.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Submission, current_task
from spoolpool.client import map as map_module
from spoolpool.client.batched import batched
from spoolpool.client.map import ChunkSize
from spoolpool.client.packing import BUSY
from spoolpool.client.packs import PackedFuture
from spoolpool.errors import DependencyFailed, NotPicklable, NotUnpicklable, TaskTimeout, WorkerLost
from spoolpool.protocol.cancel import IN_PACK
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.support import tasks
from tests.support.processes import is_running
from tests.support.waiting import LIMIT, wait_until

PACKED = Submission(pack=True)


def call(trace: str | Path, number: int, how: str = "") -> int:
    """Append the number of the call to a file; end the process in the given way, or return the number."""
    with open(trace, "a", encoding="ascii") as file:
        file.write(f"{number}\n")
    if how == "_exit":
        os._exit(0)
    if how == "SIGKILL then wait" and current_task().attempt > 1:
        Path(f"{trace}.pid").write_text(str(os.getpid()))
        time.sleep(60)
    if how == "nested":
        with Executor(spool=current_task().spool) as executor:
            return 10 * number + executor.submit(double, 5 * number).result()
    if how == "wait":
        tasks.mark_and_wait(f"{trace}.begun", f"{trace}.end")
        time.sleep(2 * IN_PACK)
    if how == "wait in vain":
        tasks.wait_in_vain(f"{trace}.begun")
    if how == "worker":  # in the first attempt this process, later its parent
        os.kill(os.getpid() if current_task().attempt == 1 else os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how.split(maxsplit=1)[0]))
    if how == "at first" and runs_of(trace)[number] < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def runs_of(trace: str | Path) -> Counter[int]:
    """Return how often each call was run."""
    return Counter(map(int, Path(trace).read_text().split()))


def double(value: int) -> int:
    """Return twice a value."""
    return 2 * value


class Held:
    """Executor whose only group waits, so that the calls that follow share one task, which runs at :meth:`release`."""

    def __init__(self, executor: Executor, directory: Path) -> None:
        self.executor = executor
        self._end = directory / "end"
        assert executor._packer is not None
        executor._packer.functions.of(call).size = ChunkSize(50)
        executor.submit(tasks.mark_and_wait, directory / "started", self._end)
        wait_until((directory / "started").exists, "the group is busy")
        for number in range(BUSY):
            executor.submit(call, directory / "alone", number)

    def submit(self, *args: Any) -> Future[int]:
        future = self.executor.submit(call, *args)
        assert isinstance(future, PackedFuture)
        return future

    def release(self) -> None:
        self._end.touch()


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(max_workers=1, submission=PACKED) as embedded:
        yield embedded


@pytest.fixture
def held(executor: Executor, tmp_path: Path) -> Iterator[Held]:
    found = Held(executor, tmp_path)
    yield found
    found.release()


# ---------------------------------------------------------------------------------------------- packs


@pytest.mark.parametrize("how", ["_exit", "SIGSEGV", "SIGKILL"])
def test_only_the_calls_of_a_pack_that_end_their_process_are_lost(held: Held, tmp_path: Path, how: str) -> None:
    trace, fatal = tmp_path / "trace", (3, 4, 11)
    calls = [held.submit(trace, number, how if number in fatal else "") for number in range(12)]
    held.release()
    values = {number: each.result(LIMIT) for number, each in enumerate(calls) if number not in fatal}
    assert values == {number: number for number in range(12) if number not in fatal}
    for number in fatal:
        error = calls[number].exception(LIMIT)
        assert isinstance(error, WorkerLost)
        assert [each.attempt for each in error.attempts] == [1, 2, 3]
        assert {each.host for each in error.attempts} == {os.uname().nodename}
        assert (error.last.signal, error.last.exit_status) == ((how, None) if how != "_exit" else ("", 0))
    runs = runs_of(trace)
    assert runs[3] == 3 and runs[4] == runs[11] == 2  # of three attempts each: the first one ended with the call before
    assert max(runs[number] for number in values) <= 2


def test_call_that_ends_its_process_only_at_first_has_its_value(held: Held, tmp_path: Path) -> None:
    calls = [held.submit(tmp_path / "trace", number, "at first" if number == 2 else "") for number in range(6)]
    held.release()
    assert [each.result(LIMIT) for each in calls] == list(range(6))
    assert runs_of(tmp_path / "trace")[2] == 3


def test_calls_that_depend_on_the_others_have_their_values(held: Held, tmp_path: Path) -> None:
    calls = [held.submit(tmp_path / "trace", number, "SIGKILL" if number == 1 else "") for number in range(4)]
    dependents = [held.executor.submit(double, each) for each in calls]
    held.release()
    assert [each.result(LIMIT) for number, each in enumerate(dependents) if number != 1] == [0, 4, 6]
    error = dependents[1].exception(LIMIT)
    assert isinstance(error, DependencyFailed)


def test_lists_of_batched_calls_miss_the_lost_one_alone(held: Held, tmp_path: Path) -> None:
    calls = [held.submit(tmp_path / "trace", number, "SIGKILL" if number == 1 else "") for number in range(5)]
    lists = batched(calls, 2)
    held.release()
    assert sorted(lists[0].result(LIMIT) + lists[1].result(LIMIT)) == [0, 2, 3, 4]
    assert isinstance(lists[2].exception(LIMIT), WorkerLost)


def test_pack_whose_workers_die_in_all_attempts_is_taken_apart_after_the_shutdown(tmp_path: Path) -> None:
    with Executor(max_workers=1, submission=PACKED, resource_dict={"max_attempts": 2}) as executor:
        held = Held(executor, tmp_path)
        calls = [held.submit(tmp_path / "trace", number, "worker" if number == 1 else "") for number in range(4)]
        executor.shutdown(wait=False)
        held.release()
    assert [each.result(LIMIT) for number, each in enumerate(calls) if number != 1] == [0, 2, 3]
    error = calls[1].exception(LIMIT)
    assert isinstance(error, WorkerLost) and error.last.signal == "SIGKILL"
    assert runs_of(tmp_path / "trace")[1] == 4


def test_calls_that_may_run_only_once_share_no_task(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with Executor(max_workers=1, submission=PACKED, resource_dict={"max_attempts": 1}) as executor:
        calls = [executor.submit(call, trace, number, "SIGKILL" if number == 30 else "") for number in range(60)]
        assert not any(isinstance(each, PackedFuture) for each in calls)
        assert [each.result(LIMIT) for number, each in enumerate(calls) if number != 30] == [*range(30), *range(31, 60)]
        assert isinstance(calls[30].exception(LIMIT), WorkerLost)
        values = executor.map(call, [trace] * 9, range(100, 109), ["", "", "SIGKILL", *[""] * 6], chunksize=9)
        assert [next(values), next(values)] == [100, 101]
        with pytest.raises(WorkerLost):
            next(values)
    assert set(runs_of(trace).values()) == {1}


def test_cancellation_of_a_pack_ends_the_child_process(held: Held, tmp_path: Path) -> None:
    first = held.submit(tmp_path / "trace", 0, "SIGKILL then wait")
    second = held.submit(tmp_path / "trace", 1)
    held.release()
    child = wait_until(lambda: pid_in(tmp_path / "trace.pid"), "the call runs in the child process")
    assert isinstance(first, PackedFuture) and first.pack.task is not None
    assert not first.cancel()
    held.executor.cancel(first.pack.task, running=True)
    wait_until(lambda: first.cancelled() and second.cancelled(), "the pack is cancelled")
    wait_until(lambda: not is_running(child), "the child process has ended")
    assert held.executor.submit(double, 1).result(LIMIT) == 2


def test_call_in_a_child_process_may_wait_for_tasks_of_its_own(worker: Workers, spool: Spool, tmp_path: Path) -> None:
    worker(spool, "--groups", 1, "--launcher", "local")
    with Executor(spool=spool.path, submission=PACKED) as executor:
        held = Held(executor, tmp_path)
        calls = [held.submit(tmp_path / "trace", number, "nested" if number < 2 else "SIGKILL") for number in range(3)]
        held.release()
        assert [each.result(LIMIT) for each in calls[:2]] == [0, 20]
        assert isinstance(calls[2].exception(LIMIT), WorkerLost)


@pytest.mark.parametrize("how", ["SIGKILL", "worker"])
def test_call_that_ends_its_worker_is_lost_alone_in_a_shared_spool_and_no_other_call_runs_twice(
    worker: Workers, spool: Spool, tmp_path: Path, how: str
) -> None:
    worker(spool, "--groups", 1, "--launcher", "local")
    with Executor(spool=spool.path, submission=PACKED, resource_dict={"max_attempts": 2}) as executor:
        held = Held(executor, tmp_path)
        calls = [held.submit(tmp_path / "trace", number, how if number == 1 else "") for number in range(4)]
        held.release()
        assert [each.result(LIMIT) for number, each in enumerate(calls) if number != 1] == [0, 2, 3]
        error = calls[1].exception(LIMIT)
    assert isinstance(error, WorkerLost) and [each.attempt for each in error.attempts] == [1, 2]
    assert runs_of(tmp_path / "trace") == {0: 1, 1: 2, 2: 1, 3: 1}


@pytest.mark.parametrize("how", ["wait", "wait in vain"])
def test_running_call_of_a_pack_is_cancelled_alone(worker: Workers, spool: Spool, tmp_path: Path, how: str) -> None:
    worker(spool, "--groups", 1, "--launcher", "local", "--grace", 0.2)
    trace = tmp_path / "trace"
    with Executor(spool=spool.path, submission=PACKED) as executor:
        held = Held(executor, tmp_path)
        calls = [held.submit(trace, number, how if number == 1 else "") for number in range(4)]
        held.release()
        wait_until(Path(f"{trace}.begun").exists, "the call runs")
        assert not calls[1].cancel() and executor.cancel(calls[1], running=True)
        with pytest.raises(CancelledError):
            calls[1].result(LIMIT)
        assert [each.result(LIMIT) for number, each in enumerate(calls) if number != 1] == [0, 2, 3]
        assert executor.counts()["cancelled"] == 1
    assert runs_of(trace) == {0: 1, 1: 1, 2: 1, 3: 1}
    # the worker removes it after the outcome of the pack
    wait_until(lambda: not os.listdir(spool.layout.cancel), "the request is removed")


def test_call_of_a_running_pack_that_is_cancelled_before_it_begins_does_not_run(
    worker: Workers, spool: Spool, tmp_path: Path
) -> None:
    worker(spool, "--groups", 1, "--launcher", "local")
    trace = tmp_path / "trace"
    with Executor(spool=spool.path, submission=PACKED) as executor:
        held = Held(executor, tmp_path)
        calls = [held.submit(trace, number, "wait" if number == 0 else "") for number in range(4)]
        dependent = executor.submit(double, calls[3])
        held.release()
        wait_until(Path(f"{trace}.begun").exists, "the first call runs")
        assert executor.cancel(calls[1], running=True) and executor.cancel(calls[3], running=True)
        Path(f"{trace}.end").touch()
        assert [calls[0].result(LIMIT), calls[2].result(LIMIT)] == [0, 2]
        for number in (1, 3):
            with pytest.raises(CancelledError):
                calls[number].result(LIMIT)
        assert isinstance(dependent.exception(LIMIT), DependencyFailed)
    assert runs_of(trace) == {0: 1, 2: 1}


@pytest.mark.parametrize("how", ["wait", "wait in vain"])
def test_time_limit_ends_one_call_of_a_pack(worker: Workers, spool: Spool, tmp_path: Path, how: str) -> None:
    worker(spool, "--groups", 1, "--launcher", "local", "--grace", 0.2)
    trace = tmp_path / "trace"
    with Executor(spool=spool.path, submission=PACKED) as executor:
        held = Held(executor, tmp_path)
        limited = functools.partial(executor.submit, call, resource_dict={"time_limit": 10.0})
        for number in range(BUSY):
            limited(tmp_path / "alone", number)
        calls = [limited(trace, number, how if number == 1 else "") for number in range(4)]
        assert len({each.pack for each in calls if isinstance(each, PackedFuture)}) == 1
        held.release()
        assert [each.result(LIMIT) for number, each in enumerate(calls) if number != 1] == [0, 2, 3]
        assert isinstance(calls[1].exception(LIMIT), TaskTimeout)
    assert runs_of(trace) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_cancellation_of_a_call_in_a_child_process_leaves_the_others(
    worker: Workers, spool: Spool, tmp_path: Path
) -> None:
    worker(spool, "--groups", 1, "--launcher", "local")
    trace = tmp_path / "trace"
    with Executor(spool=spool.path, submission=PACKED) as executor:
        held = Held(executor, tmp_path)
        calls = [held.submit(trace, number, "SIGKILL then wait" if number == 0 else "") for number in range(3)]
        held.release()
        child = wait_until(lambda: pid_in(Path(f"{trace}.pid")), "the call runs in the child process")
        assert executor.cancel(calls[0], running=True)
        assert [each.result(LIMIT) for each in calls[1:]] == [1, 2]
        assert calls[0].cancelled()
        wait_until(lambda: not is_running(child), "the child process has ended")
    assert runs_of(trace) == {0: 2, 1: 1, 2: 1}


def pid_in(path: Path) -> int:
    """Return the number in a file; 0 if it is not written yet."""
    return int(path.read_text() or 0) if path.exists() else 0


# ---------------------------------------------------------------------------------------------- chunks of map


def record_chunks(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the number of calls of each submitted chunk is added."""
    sizes: list[int] = []
    submit = executor.submit

    def record(function: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        sizes.append(len(args[1]) if function is map_module.run_chunk else 1)
        return submit(function, *args, **options)

    monkeypatch.setattr(executor, "submit", record)
    return sizes


def values_until_error(values: Iterator[Any]) -> tuple[list[Any], BaseException | None]:
    """Return the values of an iterator up to its end or its error, and the error."""
    found = []
    try:
        for value in values:
            found.append(value)  # noqa: PERF402  the values before an error are needed
    except Exception as error:  # noqa: BLE001  any
        return found, error
    return found, None


@pytest.mark.parametrize("chunksize", [7, "auto"])
@pytest.mark.parametrize("how", ["_exit", "SIGSEGV"])
def test_values_before_the_lost_call_of_a_map_are_returned(
    executor: Executor, tmp_path: Path, chunksize: Any, how: str
) -> None:
    trace = tmp_path / "trace"
    hows = ["", *[""] * 302, how, *[""] * 96]
    values, error = values_until_error(executor.map(call, [trace] * 400, range(400), hows, chunksize=chunksize))
    assert values == list(range(303))
    assert isinstance(error, WorkerLost) and [each.attempt for each in error.attempts] == [1, 2, 3]
    assert runs_of(trace)[303] == 3


def test_call_of_a_map_that_ends_its_process_only_at_first_has_its_value(executor: Executor, tmp_path: Path) -> None:
    hows = ["" if number != 5 else "at first" for number in range(20)]
    assert list(executor.map(call, [tmp_path / "trace"] * 20, range(20), hows, chunksize=10)) == list(range(20))


def test_exception_of_a_call_comes_after_the_values_before_it(executor: Executor) -> None:
    values, error = values_until_error(executor.map(divide, [4, 2, 1, 0, 1], chunksize=5))
    assert values == [1.0, 2.0, 4.0] and type(error) is ZeroDivisionError and not vars(error)


def divide(number: int) -> float:
    """Divide 4 by a number."""
    return 4 / number


def give(kind: Any) -> Any:
    """Return the argument, or what the kind says."""
    if kind == "lock":
        return tasks.lock()
    if kind == "slow":
        time.sleep(60)
    return kind


@pytest.mark.parametrize(
    ("kind", "expected"), [("lock", NotPicklable), ("slow", TaskTimeout), (tasks.bomb(), NotUnpicklable)]
)
def test_only_the_call_at_fault_has_the_error_of_its_chunk(
    monkeypatch: pytest.MonkeyPatch, kind: Any, expected: type[Exception]
) -> None:
    with Executor(max_workers=1, resource_dict={"time_limit": 1.0} if kind == "slow" else {}) as executor:
        sizes = record_chunks(executor, monkeypatch)
        values, error = values_until_error(executor.map(give, [1, 2, kind, 4, 5, 6], chunksize=3))
    assert values == [1, 2] and isinstance(error, expected)
    assert sizes[:2] == [3, 3] and set(sizes[2:]) == {1}


def test_only_the_call_with_a_failed_argument_fails(executor: Executor) -> None:
    parts = [executor.submit(divide, number) for number in (1, 2, 0, 4)]
    values, error = values_until_error(executor.map(double, parts, chunksize=4))
    assert values == [8.0, 4.0] and isinstance(error, DependencyFailed)


def test_time_limit_is_that_of_each_call_and_not_of_the_chunk() -> None:
    with Executor(max_workers=1, resource_dict={"time_limit": 1.5}) as executor:
        assert list(executor.map(work, range(8), chunksize=8)) == list(range(8))


def work(number: int) -> int:
    """Work for a while and return the argument."""
    time.sleep(0.3)
    return number


@pytest.mark.mpi
def test_values_before_the_lost_call_of_several_ranks_are_returned(tmp_path: Path) -> None:
    with Executor(max_workers=1, cores_per_worker=2, resource_dict={"max_attempts": 2}) as executor:
        trace = tmp_path / "trace"
        hows = ["" if number != 3 else "SIGKILL" for number in range(6)]
        values, error = values_until_error(executor.map(call, [trace] * 6, range(6), hows, chunksize=6))
    assert values == [[0, 0], [1, 1], [2, 2]]
    assert isinstance(error, WorkerLost) and error.last.signal == "SIGKILL" and error.last.rank in (0, 1)


def test_chunks_of_a_named_session_have_their_values_although_the_submitter_is_gone(
    spool: Spool, worker: Workers, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    arguments = [trace] * 8, range(8), ["", "", "at first", *[""] * 5]
    with Executor(spool=spool.path, session="night") as first:
        first.map(call, *arguments, chunksize=4)
        first.detach()
    worker(spool, "--groups", 1, "--launcher", "local")
    wait_until(lambda: len(os.listdir(f"{spool.layout.results}/night")) == 2, "both chunks have their outcomes")
    with Executor(spool=spool.path, session="night") as second:
        assert [each.result(LIMIT) for each in second.futures()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
