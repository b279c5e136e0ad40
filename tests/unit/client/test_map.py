"""``map``, which adapts the number of calls in a task to their durations, and ``batched``."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, current_task
from spoolpool.client.batched import batched
from spoolpool.client.futures import TaskFuture
from spoolpool.client.map import TARGET, ChunkSize
from spoolpool.client.safe_future import SafeFuture
from spoolpool.errors import BadRequest, TaskTimeout
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from tests.support import tasks
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def shared(served: Spool) -> Iterator[Executor]:
    with Executor(spool=served.path) as executor:
        yield executor


def record_tasks(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> list[Future[Any]]:
    """Return a list to which the futures of all submitted tasks are added."""
    submitted: list[Future[Any]] = []
    submit = executor.submit

    def count(*args: Any, **kwargs: Any) -> Future[Any]:
        submitted.append(submit(*args, **kwargs))
        return submitted[-1]

    monkeypatch.setattr(executor, "submit", count)
    return submitted


# ---------------------------------------------------------------------------------------------- map


def test_short_calls_share_tasks_and_their_values_are_in_order(
    shared: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = record_tasks(shared, monkeypatch)
    assert list(shared.map(pow, range(20_000), itertools.repeat(2), chunksize="auto")) == [i * i for i in range(20_000)]
    assert len(submitted) < 2000
    assert all(isinstance(each, TaskFuture) and each.seconds is not None for each in submitted)


def test_long_calls_have_a_task_each(shared: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = record_tasks(shared, monkeypatch)
    assert list(shared.map(tasks.work, [2 * TARGET] * 12, chunksize="auto")) == [None] * 12
    assert len(submitted) == 12


def test_long_first_call_increases_the_number_of_tasks_ahead(
    shared: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = record_tasks(shared, monkeypatch)
    first, end = tmp_path / "first", tmp_path / "end"

    def end_when_submitted() -> None:
        try:
            wait_until(lambda: len(submitted) == 40, "the others were submitted")
        finally:
            end.touch()

    watcher = threading.Thread(target=end_when_submitted)
    watcher.start()
    values = shared.map(tasks.mark_and_wait, itertools.repeat(first, 40), itertools.repeat(end), chunksize="auto")
    assert len(submitted) == 8
    assert list(values) == [None] * 40
    watcher.join()


def test_without_a_worker_only_the_first_tasks_are_submitted(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with Executor(spool=spool.path) as executor:
        submitted = record_tasks(executor, monkeypatch)
        values = executor.map(abs, range(1000), chunksize="auto", timeout=5 * TARGET)
        with pytest.raises(TimeoutError):
            next(values)
        assert len(submitted) == 8
        assert executor._runtime is not None and executor._runtime.session.pending.futures() == []  # cancelled
        assert files.list_names(spool.layout.claimed) == []


@pytest.mark.parametrize("buffersize", [1, 3, None])
def test_infinite_iterable_is_consumed_with_the_values(shared: Executor, buffersize: int | None) -> None:
    numbers = itertools.count()
    values = shared.map(abs, numbers, chunksize="auto", buffersize=buffersize)
    assert [next(values) for _ in range(500)] == list(range(500))
    values.close()  # type: ignore[attr-defined]
    assert next(numbers) >= 500


def test_exception_of_a_call_is_raised_in_its_place_also_a_timeout_of_the_task(shared: Executor) -> None:
    values = shared.map(tasks.fail, [TaskTimeout("too long")], chunksize="auto")
    with pytest.raises(TaskTimeout, match="too long"):
        next(values)
    assert list(shared.map(abs, [], chunksize="auto")) == []


@pytest.mark.parametrize("wrong", [0, -1])
def test_invalid_chunksize_is_refused(shared: Executor, wrong: int) -> None:
    with pytest.raises(BadRequest, match="'auto'"):
        shared.map(abs, [1], chunksize=wrong)


@pytest.mark.mpi
def test_calls_on_several_ranks_share_tasks() -> None:
    with Executor(max_workers=1, cores_per_worker=2) as executor:
        assert list(executor.map(pow, range(100), itertools.repeat(2), chunksize="auto")) == [
            [i * i, i * i] for i in range(100)
        ]


def doubled(count: int) -> list[int]:
    """Map in the spool of this task."""
    with Executor(spool=current_task().spool) as executor:
        return list(executor.map(int.__mul__, range(count), itertools.repeat(2), chunksize="auto"))


def test_task_maps_in_its_own_spool_with_a_single_group(shared: Executor) -> None:
    assert shared.submit(doubled, 30).result() == [2 * i for i in range(30)]


def done(seconds: float) -> TaskFuture:
    future = TaskFuture.__new__(TaskFuture)
    SafeFuture.__init__(future)
    future.seconds = seconds
    Future.set_result(future, None)
    return future


def test_chunk_size_follows_the_measured_durations() -> None:
    size = ChunkSize(None)
    assert size.next() == 1
    size.measure(done(TARGET / 1000), 1)
    assert size.next() == 4  # grows by at most a factor of 4, since one short duration may be an outlier
    size.measure(done(TARGET / 100), 4)
    assert size.next() == 16
    for _ in range(8):
        size.measure(done(TARGET / 2), 16)
    assert size.next() == 32
    for _ in range(8):
        size.measure(done(100 * TARGET), 32)
    assert size.next() == 1
    size.measure(Future(), 1)
    assert ChunkSize(7).next() == 7


# ------------------------------------------------------------------------------------------ batched


def test_batches_are_filled_in_the_order_of_completion() -> None:
    given: list[Future[int]] = [Future() for _ in range(5)]
    lists = batched(given, 2)
    assert len(lists) == 3
    for number in (3, 1):
        given[number].set_result(number)
    assert lists[0].result() == [3, 1] and not lists[1].done()
    for number in (4, 0, 2):
        given[number].set_result(number)
    assert [each.result() for each in lists[1:]] == [[4, 0], [2]]


def test_failed_calls_are_in_the_last_batch_and_delay_no_other() -> None:
    given: list[Future[int]] = [Future() for _ in range(6)]
    lists = batched(given, 2)
    given[0].set_exception(tasks.OwnError("first"))
    given[1].cancel()
    given[1].set_running_or_notify_cancel()
    for number in (2, 3):
        given[number].set_result(number)
    assert lists[0].result() == [2, 3]
    given[4].set_result(4)
    given[5].set_result(5)
    assert lists[1].result() == [4, 5]
    assert isinstance(lists[2].exception(), tasks.OwnError)


def test_batch_with_a_cancelled_call_fails() -> None:
    given: list[Future[int]] = [Future() for _ in range(3)]
    lists = batched(given, 3)
    given[0].set_result(0)
    given[1].cancel()
    given[1].set_running_or_notify_cancel()
    given[2].set_result(2)
    assert isinstance(lists[0].exception(), CancelledError)


def test_batches_are_filled_by_several_threads_and_may_be_cancelled() -> None:
    with ThreadPoolExecutor(8) as pool:
        lists = batched([pool.submit(abs, -number) for number in range(200)], 7)
        lists[3].cancel()
        found = [value for each in lists if not each.cancelled() for value in each.result()]
    assert len(lists) == 29
    assert set(found) <= set(range(200)) and len(set(found)) == len(found) >= 193
    assert batched([], 3) == []
    with pytest.raises(BadRequest):
        batched([], 0)


def in_lists(count: int) -> list[int]:
    """Wait for batches of values of tasks of this task."""
    with Executor(spool=current_task().spool) as executor:
        lists = executor.batched([executor.submit(abs, number) for number in range(count)], 2)
        return sorted(value for each in lists for value in each.result())


def test_task_awaits_batches_of_its_own_tasks_with_a_single_group(shared: Executor) -> None:
    assert shared.submit(in_lists, 5).result() == list(range(5))


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_yielded_values_live_only_as_long_as_the_caller_keeps_them(chunksize: Any) -> None:
    with Executor(max_workers=1, backend="local") as executor:
        values = executor.map(set, [[number] for number in range(7)], chunksize=chunksize)
        for number in range(7):
            value = next(values)
            assert value == {number}
            kept = weakref.ref(value)
            del value
            wait_until(lambda kept=kept: kept() is None, "the value is gone", 20)  # type: ignore[misc]
