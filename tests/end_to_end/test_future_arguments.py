"""Futures of other executors among the arguments of a call, done or not."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from spoolpool import Executor, Session, Submission
from spoolpool.errors import DependencyFailed, NotPicklable
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.support import tasks
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(max_workers=1, backend="local") as shared:
        yield shared


@dataclasses.dataclass
class Holder:
    """Argument with a future inside."""

    content: Any


def _first(content: Any) -> Any:
    return content[0]


def _content(holder: Holder) -> Any:
    return holder.content


@pytest.mark.parametrize("done", ["before", "after"])
@pytest.mark.parametrize(
    ("function", "wrap"),
    [(abs, lambda f: f), (_first, lambda f: [f]), (dict.popitem, lambda f: {1: f}), (_content, Holder)],
    ids=["plain", "list", "dict", "dataclass"],
)
def test_future_of_another_library_is_replaced_by_its_value(
    executor: Executor, function: Any, wrap: Any, done: str
) -> None:
    foreign: Future[int] = Future()
    if done == "before":
        foreign.set_result(7)
    future = executor.submit(function, wrap(foreign))
    if done == "after":
        assert not future.done()
        foreign.set_result(7)
    assert future.result(LIMIT) in (7, (1, 7))


def test_future_of_a_list_is_replaced_by_the_list(executor: Executor) -> None:
    values = executor.batched([executor.submit(int, number) for number in range(10)], 3)
    assert sum(executor.submit(sum, each).result(LIMIT) for each in values) == 45


def test_future_of_another_executor_is_replaced_by_its_value(executor: Executor) -> None:
    with Executor(max_workers=1, backend="local") as other:
        assert executor.submit(abs, other.submit(int, "-3")).result(LIMIT) == 3


def test_call_that_waits_in_this_process_is_an_argument_of_others(executor: Executor) -> None:
    foreign: Future[int] = Future()
    first = executor.submit(divmod, foreign, 3)
    second = executor.submit(pow, first[1], executor.submit(int, 5))  # type: ignore[index]
    foreign.set_result(11)
    assert second.result(LIMIT) == 32
    assert executor.submit(_first, first).result(LIMIT) == 3


def test_values_are_of_the_time_of_submit(executor: Executor) -> None:
    foreign: Future[int] = Future()
    given = [foreign, 1]
    future = executor.submit(list, given)
    given.append(2)
    foreign.set_result(0)
    assert future.result(LIMIT) == [0, 1]


def test_large_values_arrive(executor: Executor) -> None:
    numpy = pytest.importorskip("numpy")
    foreign: Future[Any] = Future()
    local = numpy.full(50_000, 2.0)
    future = executor.submit(numpy.dot, foreign, local)
    foreign.set_result(numpy.ones(50_000))
    assert future.result(LIMIT) == 100_000


def test_failure_of_the_argument_is_the_cause(executor: Executor) -> None:
    foreign: Future[int] = Future()
    never: Future[int] = Future()
    future = executor.submit(pow, foreign, never)
    foreign.set_exception(ZeroDivisionError("of the other library"))
    with pytest.raises(DependencyFailed, match="of the other library") as raised:
        future.result(LIMIT)
    assert type(raised.value.__cause__) is ZeroDivisionError


def test_cancelled_argument_cancels_the_call(executor: Executor) -> None:
    foreign: Future[int] = Future()
    future = executor.submit(abs, foreign)
    foreign.cancel()
    foreign.set_running_or_notify_cancel()
    wait_until(future.cancelled, "the call is cancelled")


def test_waiting_call_can_be_cancelled(executor: Executor) -> None:
    foreign: Future[int] = Future()
    called: list[Future[Any]] = []
    future = executor.submit(abs, foreign)
    future.add_done_callback(called.append)
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    assert called == [future]
    foreign.set_result(1)
    assert executor.submit(abs, -1).result(LIMIT) == 1


def test_value_that_cannot_be_pickled_fails_the_call(executor: Executor) -> None:
    foreign: Future[Any] = Future()
    future = executor.submit(repr, foreign)
    foreign.set_result(threading.Lock())
    with pytest.raises(NotPicklable):
        future.result(LIMIT)


def test_future_of_an_event_loop_is_refused_with_the_remedy(executor: Executor) -> None:
    async def submit() -> None:
        with pytest.raises(NotPicklable, match="await it"):
            executor.submit(repr, [asyncio.get_running_loop().create_future()])

    asyncio.run(submit())


def test_shutdown_waits_for_calls_that_wait_in_this_process() -> None:
    foreign: Future[int] = Future()
    executor = Executor(max_workers=1, backend="local")
    future = executor.submit(abs, foreign)
    shutdown = threading.Thread(target=executor.shutdown)
    shutdown.start()
    wait_until(lambda: _is_shut(executor), "the executor accepts no more calls")
    foreign.set_result(-4)
    shutdown.join(LIMIT)
    assert future.result(0) == 4


def _is_shut(executor: Executor) -> bool:
    try:
        executor.max_workers = 1
    except RuntimeError:
        return True
    return False


def test_shutdown_cancels_calls_that_wait_in_this_process() -> None:
    executor = Executor(max_workers=1, backend="local")
    future = executor.submit(abs, Future())
    executor.shutdown(cancel_futures=True)
    assert future.cancelled()


def test_threads_do_not_wait_for_each_other(executor: Executor) -> None:
    with ThreadPoolExecutor() as pool:
        futures = [executor.submit(abs, pool.submit(int, f"-{number}")) for number in range(30)]
        assert [each.result(LIMIT) for each in futures] == list(range(30))


def test_resumed_session_finds_the_call_by_the_values_of_its_arguments(
    spool: Spool, worker: Workers, tmp_path: Any
) -> None:
    worker(spool)

    def run(value: int) -> int:
        with Executor(spool=spool.path, session=Session("steps", resume=True)) as executor:
            foreign: Future[int] = Future()
            future = executor.submit(tasks.mark, tmp_path / "runs", foreign)
            foreign.set_result(value)
            result: int = future.result(LIMIT)
            return result

    assert [run(1), run(1), run(2)] == [1, 1, 2]
    assert len((tmp_path / "runs").read_text().splitlines()) == 2


def test_exception_of_the_dependency_takes_the_place_of_dependency_failed_by_a_switch() -> None:
    with Executor(max_workers=1, backend="local", submission=Submission(raise_cause=True)) as executor:
        failed = executor.submit(divmod, 1, 0)
        dependent = executor.submit(repr, failed)
        foreign: Future[int] = Future()
        waiting = executor.submit(abs, foreign)
        foreign.set_exception(LookupError("of the other library"))
        assert type(executor.submit(repr, dependent).exception(LIMIT)) is ZeroDivisionError
        assert type(dependent.exception(LIMIT)) is ZeroDivisionError
        assert type(waiting.exception(LIMIT)) is LookupError
