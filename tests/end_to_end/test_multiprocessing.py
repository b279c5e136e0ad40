"""``Pool`` beside the original: the same calls, values and errors."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Pool
from spoolpool.errors import BadRequest, WorkerLost
from tests.support.waiting import LIMIT, wait_until

KINDS = ("original", "spoolpool")


def new_pool(kind: str, *args: Any) -> Any:
    return Pool(2, *args) if kind == "spoolpool" else multiprocessing.get_context("spawn").Pool(2, *args)


@pytest.fixture(scope="module", params=KINDS)
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    with new_pool(request.param) as made:
        yield made


def fail_at_three(value: int) -> int:
    if value == 3:
        raise LookupError(value)
    return value


def exit_at_three(value: int) -> int:
    if value == 3:
        os._exit(1)
    return value


def wait_for(path: Path) -> str:
    wait_until(path.exists, f"{path} exists", 600)
    return path.name


class TestValues:
    @pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
    def test_map_and_starmap_return_values_in_order(self, pool: Any, chunksize: int | None) -> None:
        assert pool.map(abs, range(-20, 20), chunksize) == [abs(value) for value in range(-20, 20)]
        assert pool.starmap(pow, [(2, 3), [3, 2], (2, 0)], chunksize) == [8, 9, 1]
        assert pool.map_async(abs, iter([-1, 2]), chunksize).get(LIMIT) == [1, 2]
        assert pool.starmap_async(pow, [(2, 5)], chunksize).get(LIMIT) == [32]
        assert pool.map(abs, [], chunksize) == []

    @pytest.mark.parametrize("chunksize", [1, 7])
    def test_imap_yields_all_values(self, pool: Any, chunksize: int) -> None:
        expected = [abs(value) for value in range(-300, 300)]
        assert list(pool.imap(abs, range(-300, 300), chunksize)) == expected
        assert sorted(pool.imap_unordered(abs, iter(range(-300, 300)), chunksize)) == sorted(expected)

    def test_apply_takes_arguments_by_name(self, pool: Any) -> None:
        assert pool.apply(int, ("20",), {"base": 3}) == 6
        assert pool.apply_async(int, ("20",), {"base": 5}).get(LIMIT) == 10


class TestErrors:
    @pytest.mark.parametrize("chunksize", [None, 1, 4])
    def test_map_raises_the_exception_of_a_call(self, pool: Any, chunksize: int | None) -> None:
        with pytest.raises(LookupError, match="3"):
            pool.map(fail_at_three, range(10), chunksize)
        assert pool.map(fail_at_three, range(3), chunksize) == [0, 1, 2]

    def test_imap_continues_after_an_exception(self, pool: Any) -> None:
        values = pool.imap(fail_at_three, range(6))
        assert [next(values) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(LookupError):
            next(values)
        assert list(values) == [4, 5]
        unordered, found = pool.imap_unordered(fail_at_three, range(6)), []
        with pytest.raises(LookupError):
            found.extend(unordered)
        assert sorted([*found, *unordered]) == [0, 1, 2, 4, 5]

    def test_an_exception_in_a_chunk_of_imap_ends_the_iterator(self, pool: Any) -> None:
        values = pool.imap(fail_at_three, range(100), 5)
        with pytest.raises(LookupError):
            list(values)
        assert list(values) == []

    def test_results_report_timeouts_and_their_state(self, pool: Any, tmp_path: Path) -> None:
        path = tmp_path / "may-end"
        result = pool.apply_async(wait_for, (path,))
        values, unordered = pool.imap(wait_for, [path]), pool.imap_unordered(wait_for, [path])
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(0.01)
        for iterator in (values, unordered):
            with pytest.raises(multiprocessing.TimeoutError):
                iterator.next(timeout=0.01)
        result.wait(0.01)
        assert not result.ready()
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        path.touch()
        assert (result.get(LIMIT), values.next(LIMIT), unordered.next(LIMIT)) == ("may-end",) * 3
        assert result.ready() and result.successful()
        failed = pool.apply_async(fail_at_three, (3,))
        failed.wait(LIMIT)
        assert not failed.successful()

    def test_callbacks_have_been_called_when_the_result_is_ready(self, pool: Any) -> None:
        values: list[Any] = []
        errors: list[Any] = []
        pool.apply_async(abs, (-1,), callback=values.append, error_callback=errors.append).wait(LIMIT)
        pool.map_async(abs, [-2, -3], callback=values.append, error_callback=errors.append).wait(LIMIT)
        assert (values, errors) == ([1, [2, 3]], [])
        pool.apply_async(fail_at_three, (3,), {}, values.append, errors.append).wait(LIMIT)
        pool.starmap_async(fail_at_three, [(3,)], None, values.append, errors.append).wait(LIMIT)
        assert len(values) == 2
        assert [type(each) for each in errors] == [LookupError, LookupError]

    def test_a_pool_is_not_pickled(self, pool: Any) -> None:
        with pytest.raises(NotImplementedError):
            pickle.dumps(pool)


@pytest.mark.parametrize("kind", KINDS)
def test_closed_pool_finishes_its_calls_and_takes_no_more(kind: str) -> None:
    pool, values = new_pool(kind), []
    with pytest.raises(ValueError, match="running"):
        pool.join()
    ahead = pool.imap(abs, range(1000))
    pool.apply_async(abs, (-1,), callback=values.append)
    pool.map_async(abs, range(-9, 0), callback=values.extend)
    pool.close()
    for submit in (pool.apply, pool.apply_async, pool.map, pool.map_async, pool.imap, pool.starmap):
        with pytest.raises(ValueError, match="not running"):
            submit(abs, [1])
    pool.join()
    assert sorted(values) == sorted([1, *range(1, 10)])
    assert list(ahead) == list(range(1000))


@pytest.mark.parametrize("kind", KINDS)
def test_terminated_pool_ends_without_its_calls(kind: str, tmp_path: Path) -> None:
    with new_pool(kind) as pool:
        waiting = [pool.apply_async(wait_for, (tmp_path / "one-call-runs-on",)) for _ in range(4)]
        (tmp_path / "one-call-runs-on").touch()
        waiting[0].wait(LIMIT)
    with pytest.raises(ValueError, match="not running"):
        pool.map(abs, [1])


SCRIPT = """
import sys
from {module} import Pool

FACTOR, SEEN = None, []

def initialize(factor, seen):
    global FACTOR
    FACTOR = factor
    SEEN.append(seen)

def multiply(value):
    return value * FACTOR, SEEN

if __name__ == "__main__":
    with Pool(2, initialize, (7, "seen")) as pool:
        values = [pool.map(multiply, range(3), chunksize) for chunksize in (1, 2, None)]
        assert values == [[(0, ["seen"]), (7, ["seen"]), (14, ["seen"])]] * 3, values
        assert pool.apply(multiply, (3,)) == (21, ["seen"])
"""


@pytest.mark.parametrize("module", ["multiprocessing", "spoolpool"])
def test_initializer_sets_variables_of_a_script(module: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(module=module))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr


def test_call_that_kills_its_worker_does_not_take_the_others_of_its_chunk() -> None:
    options = {"resource_dict": {"max_attempts": 1}}
    with Pool(1, **options) as pool:
        found, lost = [], 0
        values = pool.imap(exit_at_three, range(6), 6)
        for _ in range(6):
            try:
                found.append(next(values))
            except WorkerLost:
                lost += 1
        assert (found, lost) == ([0, 1, 2, 4, 5], 1)
        assert list(values) == []


def test_measured_functions_share_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool(2) as pool:
        submit, submitted = pool._submit, itertools.count()
        monkeypatch.setattr(pool, "_submit", lambda *args: (next(submitted), submit(*args))[1])
        pool.map(abs, range(64))
        first = next(submitted)
        [size] = pool._sizes.values()
        assert size.is_measured
        size.add(1000, 0.001)  # under load the calls may have taken so long that small tasks are right
        assert pool.map(abs, range(64)) == list(range(64))
        assert next(submitted) - first - 1 <= 8 < first <= 64


def test_executor_of_others_is_used_and_stays_open() -> None:
    with Executor(max_workers=1) as executor:
        with Pool(executor=executor) as pool:
            assert pool.map(abs, [-1]) == [1]
            assert pool._processes == 1
        assert executor.submit(abs, -2).result(LIMIT) == 2
        with pytest.raises(BadRequest, match="not both"):
            Pool(2, executor=executor)


def test_groups_of_several_ranks_are_refused() -> None:
    before = set(threading.enumerate())  # those of earlier tests may be ending
    with pytest.raises(BadRequest, match="one rank"):
        Pool(1, cores_per_worker=2, oversubscribe=True)
    with pytest.raises(TypeError):
        Pool(1, initializer=3)  # type: ignore[arg-type]
    assert not [each for each in set(threading.enumerate()) - before if each.name == "spoolpool-map"]


@pytest.mark.parametrize("end", ["join", "terminate"])
def test_pool_ends_while_another_thread_submits(end: str) -> None:
    threads: list[threading.Thread] = []

    class DoneAtOnce:
        info = {"cores": 1, "max_workers": 1}  # noqa: RUF012

        def submit(self, function: Any, *args: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(function(*args))
            return future

    class Disturbed(weakref.WeakSet[Any]):
        def __iter__(self) -> Iterator[Any]:
            for each in super().__iter__():
                threads.append(threading.Thread(target=pool._submit, args=(abs, -1)))
                threads[-1].start()
                threads[-1].join(0.2)  # it may wait for the end of this iteration
                yield each

    executor: Any = DoneAtOnce()
    pool = Pool(executor=executor)
    pool._pending = Disturbed()
    result = pool.apply_async(abs, (-1,))
    pool.close()
    getattr(pool, end)()
    for thread in threads:
        thread.join()
    assert threads
    assert result.get(LIMIT) == 1
