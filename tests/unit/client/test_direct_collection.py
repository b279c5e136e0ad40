"""Results that the waiting thread takes from the spool itself, while the collector thread rests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from spoolpool import Executor
from spoolpool.client import direct_collection
from spoolpool.client.direct_collection import DirectCollection
from spoolpool.errors import BrokenSpool, NotUnpicklable
from tests.support import tasks
from tests.support.processes import in_fork
from tests.support.waiting import LIMIT, wait_until


class Reader:
    """Value that is the id of the thread that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[], int], tuple[()]]:
        return threading.get_ident, ()


class BadValue:
    """Value whose unpickling fails."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return int, ("no number",)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    """Return an executor whose collector thread rests until it is recalled."""
    monkeypatch.setattr(direct_collection, "LINGER", LIMIT)
    monkeypatch.setattr(direct_collection, "_LONGEST", LIMIT)
    with Executor(max_workers=1, backend="local") as executor:
        yield executor


def direct_of(executor: Executor) -> DirectCollection:
    assert executor._runtime is not None
    return executor._runtime.session.collector.direct


def let_rest(executor: Executor) -> DirectCollection:
    """Wait until the collector thread of an executor rests."""
    direct = direct_of(executor)
    end = time.monotonic() + LIMIT
    while not direct._resting:
        assert executor.submit(abs, -1).result(LIMIT) == 1
        assert time.monotonic() < end, "the collector thread does not rest"
    return direct


class Waiting:
    """Future of a call that waits for a file; a thread collects it directly."""

    def __init__(self, executor: Executor, directory: Path, result: Callable[..., Any] | None = None) -> None:
        self.direct = let_rest(executor)
        self.end = directory / "end"
        self.future = executor.submit(tasks.mark_and_wait, directory / "begun", self.end)
        self.ended: futures.Future[Any] = futures.Future()
        self.thread = threading.Thread(target=self._run, args=(result or self.future.result,), daemon=True)
        self.thread.start()
        wait_until(lambda: self.direct._holder, "a thread collects directly")

    def _run(self, result: Callable[..., Any]) -> None:
        try:
            self.ended.set_result(result(LIMIT))
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.ended.set_exception(error)

    def release(self) -> None:
        self.end.touch()


def test_the_waiting_thread_takes_the_result_of_one_call_at_a_time(executor: Executor) -> None:
    let_rest(executor)
    for _ in range(10):
        assert executor.submit(Reader).result(LIMIT) == threading.get_ident()


def test_the_waiting_thread_takes_results_again_after_many_calls_at_once(executor: Executor) -> None:
    futures.wait([executor.submit(abs, -number) for number in range(200)], LIMIT)
    let_rest(executor)
    for _ in range(10):
        assert executor.submit(Reader).result(LIMIT) == threading.get_ident()


def test_a_result_is_removed_from_the_spool_without_another_call(executor: Executor) -> None:
    let_rest(executor)
    executor.submit(abs, -1).result(LIMIT)
    assert executor._runtime is not None
    spool = executor._runtime.spool.path
    direct_of(executor).recall()
    wait_until(
        lambda: not any(files for place in ("results", "outgoing") for _, _, files in os.walk(f"{spool}/{place}")),
        "the files of the outcome are removed",
    )


def test_a_task_without_a_waiting_thread_is_collected_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    with Executor(max_workers=1, backend="local") as executor:
        let_rest(executor)
        executor.submit(abs, -1)
        wait_until(lambda: not executor.counts()["pending"], "the collector thread has continued")


@pytest.mark.parametrize("way", ["callback", "wait", "as_completed", "exception", "poll", "coroutine", "two"])
def test_other_ways_to_wait_end_the_rest(executor: Executor, way: str) -> None:
    let_rest(executor)
    future = executor.submit(Reader)
    if way == "callback":
        ran: list[bool] = []
        collector = executor._runtime.session.collector  # type: ignore[union-attr]
        future.add_done_callback(lambda _: ran.append(collector.runs_here()))
        wait_until(lambda: ran, "the callback was called")
        assert ran == [True]
    elif way == "wait":
        assert futures.wait([future], LIMIT).done == {future}
    elif way == "as_completed":
        assert next(futures.as_completed([future], LIMIT)) is future
    elif way == "exception":
        assert future.exception(LIMIT) is None
    elif way == "poll":
        wait_until(future.done, "the future is done")
    elif way == "coroutine":
        assert asyncio.run(asyncio.wait_for(_awaited(executor), LIMIT)) == 1
    else:
        executor.submit(abs, -1)
        assert future.result(LIMIT) != threading.get_ident()
    assert future.result(LIMIT)


async def _awaited(executor: Executor) -> int:
    return await executor.asubmit(abs, -1)


def test_a_callback_of_a_future_for_which_a_thread_waits_runs_in_the_collector_thread(
    executor: Executor, tmp_path: Path
) -> None:
    waiting = Waiting(executor, tmp_path)
    collector = executor._runtime.session.collector  # type: ignore[union-attr]
    ran: list[bool] = []
    waiting.future.add_done_callback(lambda _: ran.append(collector.runs_here()))
    waiting.release()
    waiting.ended.result(LIMIT)
    wait_until(lambda: ran, "the callback was called")
    assert ran == [True]


def test_each_of_many_threads_gets_the_result_of_one_future(executor: Executor, tmp_path: Path) -> None:
    waiting = Waiting(executor, tmp_path)
    with ThreadPoolExecutor(16) as threads:
        others = [threads.submit(waiting.future.result, LIMIT) for _ in range(16)]
        waiting.release()
        assert {each.result(LIMIT) for each in [waiting.ended, *others]} == {waiting.future.result()}


def test_many_threads_with_a_call_each_get_their_own_results(executor: Executor) -> None:
    let_rest(executor)

    def call(number: int) -> list[int]:
        return [executor.submit(abs, -number * each).result(LIMIT) for each in range(10)]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(call, range(8)))
    assert found == [[number * each for each in range(10)] for number in range(8)]


@pytest.mark.parametrize("timeout", [0, 0.0001, 0.05])
def test_a_timeout_ends_the_wait_and_not_the_call(executor: Executor, tmp_path: Path, timeout: float) -> None:
    let_rest(executor)
    future = executor.submit(tasks.mark_and_wait, tmp_path / "begun", tmp_path / "end")
    for _ in range(2):
        with pytest.raises(futures.TimeoutError):
            future.result(timeout)
    (tmp_path / "end").touch()
    future.result(LIMIT)


def test_a_long_call_is_left_to_the_collector_thread(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    direct, wait, waits = let_rest(executor), DirectCollection._wait, []

    def record(*arguments: Any) -> None:
        waits.append(arguments)
        wait(*arguments)

    monkeypatch.setattr(DirectCollection, "_wait", record)
    future = executor.submit(tasks.mark_and_wait, tmp_path / "begun", tmp_path / "end")
    # only now: the rest, which has begun, lasts until a thread collects, however late that is
    monkeypatch.setattr(direct_collection, "LINGER", 0.02)
    thread = threading.Thread(target=future.result, args=(LIMIT,), daemon=True)
    thread.start()
    wait_until(lambda: waits and not (direct._holder or direct._resting), "the collector thread continues")
    (tmp_path / "end").touch()
    thread.join()
    assert future.done()


class Signalled(Exception):
    """Raised by a signal handler."""


@contextlib.contextmanager
def signal_once_waiting(direct: DirectCollection, handler: Callable[[], None]) -> Iterator[None]:
    """Call ``handler`` by a signal in this thread once it waits for a result."""

    over = threading.Event()

    def handle(_: int, __: FrameType | None) -> None:
        handler()

    def send() -> None:
        wait_until(lambda: direct._holder, "the main thread collects directly")
        os.kill(os.getpid(), signal.SIGUSR1)
        while not over.wait(0.01):  # in place of the short time after which a wait ends that was interrupted
            direct._watch.wake()

    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Signalled, TimeoutError, RuntimeError])
def test_an_exception_of_a_signal_handler_ends_the_wait_and_not_the_call(
    executor: Executor, tmp_path: Path, error: type[BaseException]
) -> None:
    direct = let_rest(executor)
    future = executor.submit(tasks.mark_and_wait, tmp_path / "begun", tmp_path / "end")

    def interrupt() -> None:
        raise error

    with signal_once_waiting(direct, interrupt), pytest.raises(error):
        future.result(LIMIT)
    (tmp_path / "end").touch()
    future.result(LIMIT)
    assert executor.submit(abs, -3).result(LIMIT) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, Signalled, TimeoutError])
def test_no_result_is_lost_if_a_signal_handler_raises_while_it_is_read(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    from spoolpool.client import delivery

    direct, read, interrupts = let_rest(executor), delivery.value_of, [error]

    def read_interrupted(*args: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and interrupts:
            raise interrupts.pop()
        return read(*args)

    monkeypatch.setattr(delivery, "value_of", read_interrupted)
    future = executor.submit(abs, -3)
    with pytest.raises(error):
        future.result(LIMIT)
    assert not direct._holder
    assert future.result(LIMIT) == 3


def test_a_signal_handler_may_make_calls_during_the_wait(executor: Executor, tmp_path: Path) -> None:
    direct = let_rest(executor)
    future = executor.submit(tasks.mark_and_wait, tmp_path / "begun", tmp_path / "end")
    found: list[int] = []

    def call() -> None:
        inner = executor.submit(abs, -3)  # the group runs it after the first call
        (tmp_path / "end").touch()
        found.append(inner.result(LIMIT))

    with signal_once_waiting(direct, call):
        future.result(LIMIT)
    assert found == [3]


def test_a_signal_handler_may_wait_for_the_same_future(executor: Executor, tmp_path: Path) -> None:
    direct = let_rest(executor)
    future = executor.submit(tasks.mark_and_wait, tmp_path / "begun", tmp_path / "end")
    found: list[object] = []

    def call() -> None:
        (tmp_path / "end").touch()
        found.append(future.result(LIMIT))

    with signal_once_waiting(direct, call):
        assert future.result(LIMIT) == found[0]


def test_a_fork_during_the_wait_leaves_the_result_to_the_parent(executor: Executor, tmp_path: Path) -> None:
    waiting = Waiting(executor, tmp_path)

    def child() -> None:
        with pytest.raises(BrokenSpool):
            waiting.future.result(LIMIT)

    in_fork(child)
    waiting.release()
    waiting.ended.result(LIMIT)


def test_a_fork_in_a_signal_handler_ends_the_wait_of_the_child(executor: Executor, tmp_path: Path) -> None:
    direct = let_rest(executor)
    future = executor.submit(tasks.mark_and_wait, tmp_path / "begun", tmp_path / "end")
    forked: list[int] = []

    def fork() -> None:
        forked.append(os.fork())
        if not forked[0]:
            signal.alarm(int(LIMIT))
            return
        (tmp_path / "end").touch()

    code = 1
    try:
        with signal_once_waiting(direct, fork):
            future.result(LIMIT)
    except BrokenSpool:
        code = 0
    finally:
        if forked == [0]:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 0


def test_the_end_of_the_executor_ends_the_rest_and_awaits_the_call(executor: Executor, tmp_path: Path) -> None:
    waiting = Waiting(executor, tmp_path)
    executor.shutdown(wait=False)
    wait_until(lambda: not waiting.direct._resting, "the collector thread continues")
    waiting.release()
    executor.shutdown()
    assert waiting.ended.result(LIMIT) is waiting.future.result(0)


def test_the_failure_of_the_session_ends_the_wait(executor: Executor, tmp_path: Path) -> None:
    waiting = Waiting(executor, tmp_path)
    assert executor._runtime is not None
    executor._runtime.session.fail(BrokenSpool("The spool is gone."))
    with pytest.raises(BrokenSpool, match="gone"):
        waiting.ended.result(LIMIT)
    waiting.release()


def test_a_value_that_cannot_be_unpickled_is_the_error_of_its_future(executor: Executor) -> None:
    let_rest(executor)
    future = executor.submit(BadValue)
    with pytest.raises(NotUnpicklable, match="no number"):
        future.result(LIMIT)
    assert isinstance(future.exception(LIMIT), NotUnpicklable)
    assert executor.submit(abs, -3).result(LIMIT) == 3


def test_an_exception_of_the_function_is_raised_with_its_remote_traceback(executor: Executor) -> None:
    let_rest(executor)
    future = executor.submit(int, "no number")
    with pytest.raises(ValueError, match="no number"):
        future.result(LIMIT)
    assert "rank 0" in str(future.exception(LIMIT).__cause__)  # type: ignore[union-attr]


def test_garbage_collection_during_the_wait_may_use_the_executor(executor: Executor) -> None:
    direct = let_rest(executor)
    submitted: list[futures.Future[int]] = []

    class Submits:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            submitted.append(executor.submit(abs, -1))

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(20):
            Submits()
            assert executor.submit(abs, -number).result(LIMIT) == number
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(submitted) == 20 and {each.result(LIMIT) for each in submitted} == {1}
    assert not direct._holder


def test_an_executor_without_references_ends_after_its_last_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_collection, "LINGER", LIMIT)
    monkeypatch.setattr(direct_collection, "_LONGEST", LIMIT)
    executor = Executor(max_workers=1, backend="local")
    waiting = Waiting(executor, tmp_path)
    runtime = executor._runtime
    assert runtime is not None
    del executor
    gc.collect()
    waiting.release()
    waiting.ended.result(LIMIT)
    runtime.join()
