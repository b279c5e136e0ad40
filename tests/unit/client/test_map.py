"""Short calls share a task: by map, which finds how many; and futures of lists, as calls are done."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, current_task
from spoolpool.client.batched import batched
from spoolpool.client.futures import TaskFuture
from spoolpool.client.map import TARGET, ChunkSize
from spoolpool.errors import BadRequest, TaskTimeout
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from tests.support import tasks
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def shared(served: Spool) -> Iterator[Executor]:
    with Executor(spool=served.path) as executor:
        yield executor


def counted(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> list[Future[Any]]:
    """Futures of the tasks that are submitted."""
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
    submitted = counted(shared, monkeypatch)
    assert list(shared.map(pow, range(20_000), itertools.repeat(2), chunksize="auto")) == [i * i for i in range(20_000)]
    assert len(submitted) < 2000
    assert all(isinstance(each, TaskFuture) and each.seconds is not None for each in submitted)


def test_long_calls_have_a_task_each(shared: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = counted(shared, monkeypatch)
    assert list(shared.map(tasks.work, [2 * TARGET] * 12, chunksize="auto")) == [None] * 12
    assert len(submitted) == 12


def test_a_call_that_lasts_lets_more_be_submitted(
    shared: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = counted(shared, monkeypatch)
    first, end = tmp_path / "first", tmp_path / "end"

    def see() -> None:
        try:
            wait_until(lambda: len(submitted) == 40, "the others were submitted")
        finally:
            end.touch()

    watcher = threading.Thread(target=see)
    watcher.start()
    values = shared.map(tasks.mark_and_wait, itertools.repeat(first, 40), itertools.repeat(end), chunksize="auto")
    assert len(submitted) == 8
    assert list(values) == [None] * 40
    watcher.join()


def test_where_nobody_serves_nothing_more_is_submitted_than_the_first_few(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Executor(spool=spool.path) as executor:
        submitted = counted(executor, monkeypatch)
        values = executor.map(abs, range(1000), chunksize="auto", timeout=5 * TARGET)
        with pytest.raises(TimeoutError):
            next(values)
        assert len(submitted) == 8
        assert executor._runtime is not None and executor._runtime.session.pending.futures() == []  # taken back
        assert files.list_names(spool.layout.claimed) == []


@pytest.mark.parametrize("buffersize", [1, 3, None])
def test_an_iterable_without_an_end_is_drawn_as_values_are_asked_for(shared: Executor, buffersize: int | None) -> None:
    drawn = itertools.count()
    values = shared.map(abs, drawn, chunksize="auto", buffersize=buffersize)
    assert [next(values) for _ in range(500)] == list(range(500))
    values.close()  # type: ignore[attr-defined]
    assert next(drawn) >= 500


def test_the_exception_of_a_call_comes_in_its_place_also_if_it_is_about_time(shared: Executor) -> None:
    values = shared.map(tasks.fail, [TaskTimeout("too long")], chunksize="auto")
    with pytest.raises(TaskTimeout, match="too long"):
        next(values)
    assert list(shared.map(abs, [], chunksize="auto")) == []


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_senseless_chunksize_is_refused(shared: Executor, wrong: int) -> None:
    with pytest.raises(BadRequest, match="'auto'"):
        shared.map(abs, [1], chunksize=wrong)


@pytest.mark.mpi
def test_the_calls_of_a_group_of_ranks_are_packed_too() -> None:
    with Executor(max_workers=1, cores_per_worker=2) as executor:
        assert list(executor.map(pow, range(100), itertools.repeat(2), chunksize="auto")) == [
            [i * i, i * i] for i in range(100)
        ]


def doubled(count: int) -> list[int]:
    """A task that maps in its own spool."""
    with Executor(spool=current_task().spool) as executor:
        return list(executor.map(int.__mul__, range(count), itertools.repeat(2), chunksize="auto"))


def test_a_task_maps_over_tasks_of_its_own_though_its_group_is_the_only_one(shared: Executor) -> None:
    assert shared.submit(doubled, 30).result() == [2 * i for i in range(30)]


def done(seconds: float) -> TaskFuture:
    future = TaskFuture.__new__(TaskFuture)
    Future.__init__(future)
    future.seconds = seconds
    Future.set_result(future, None)
    return future


def test_the_size_follows_what_was_measured() -> None:
    sizes = ChunkSize(None)
    assert sizes.next() == 1
    sizes.measure(done(TARGET / 1000), 1)
    assert sizes.next() == 4  # one that was quick by chance is not believed at once
    sizes.measure(done(TARGET / 100), 4)
    assert sizes.next() == 16
    for _ in range(8):
        sizes.measure(done(TARGET / 2), 16)
    assert sizes.next() == 32
    for _ in range(8):
        sizes.measure(done(100 * TARGET), 32)
    assert sizes.next() == 1
    sizes.measure(Future(), 1)
    assert ChunkSize(7).next() == 7


# ------------------------------------------------------------------------------------------ batched


def test_lists_are_filled_in_the_order_in_which_calls_are_done() -> None:
    given: list[Future[int]] = [Future() for _ in range(5)]
    lists = batched(given, 2)
    assert len(lists) == 3
    for number in (3, 1):
        given[number].set_result(number)
    assert lists[0].result() == [3, 1] and not lists[1].done()
    for number in (4, 0, 2):
        given[number].set_result(number)
    assert [each.result() for each in lists[1:]] == [[4, 0], [2]]


def test_calls_that_fail_come_last_and_no_list_waits_for_them() -> None:
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


def test_a_list_that_would_lack_a_value_fails() -> None:
    given: list[Future[int]] = [Future() for _ in range(3)]
    lists = batched(given, 3)
    given[0].set_result(0)
    given[1].cancel()
    given[1].set_running_or_notify_cancel()
    given[2].set_result(2)
    assert isinstance(lists[0].exception(), CancelledError)


def test_lists_are_filled_from_any_thread_and_may_be_cancelled() -> None:
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
    """A task that waits for lists of its own tasks' values."""
    with Executor(spool=current_task().spool) as executor:
        lists = executor.batched([executor.submit(abs, number) for number in range(count)], 2)
        return sorted(value for each in lists for value in each.result())


def test_a_task_gets_lists_of_its_own_tasks_though_its_group_is_the_only_one(shared: Executor) -> None:
    assert shared.submit(in_lists, 5).result() == list(range(5))
